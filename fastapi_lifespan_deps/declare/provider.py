"""Provider: what can be one, and what is refused when it is declared."""

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import BuiltinFunctionType, FunctionType, MethodType, UnionType
from typing import Any, Literal, NewType, Union, get_origin

from fastapi import params

from fastapi_lifespan_deps._compat import Kind, kind_of
from fastapi_lifespan_deps.exceptions import InvalidLifespanDependency, location_of, name_of

from .signature import (
    VARIADIC,
    innermost,
    is_annotated,
    is_missing,
    is_variadic,
    layers,
    origin_of,
    parameters,
    plain_signature,
)

# What contextlib's decorators make, by its code.
_ANY: Any = print
_MANAGERS: dict[Any, Kind] = {
    contextmanager(_ANY).__code__: Kind.GENERATOR,
    asynccontextmanager(_ANY).__code__: Kind.ASYNC_GENERATOR,
}


def how_to_call(provider: Any) -> Kind:
    """How a provider is called: as FastAPI calls it in a request.

    What contextlib's decorators make is of no use in a request. Here it is what it is made of,
    which is also what FastAPI takes it for, from 0.123.5 on.
    """
    for layer in layers(provider):
        code = getattr(layer, "__code__", None)
        if code in _MANAGERS:
            return _MANAGERS[code]
    return kind_of(provider)


def check_value(provider: Callable[..., Any], value: object) -> None:
    """Raise if what a provider gave is a declaration: nobody has put the value in its place."""
    if isinstance(value, params.Depends):
        raise InvalidLifespanDependency(
            provider,
            "gave a declaration, what `Depends` returns, for its value",
            "Something called a function without what it declares, and got the default: pass it.",
        )


def _check_kind(dependency: object) -> None:
    """Raise for what is callable, or nearly so, and can't be meant."""
    __tracebackhide__ = True
    if inspect.iscoroutine(dependency):
        dependency.close()  # it was never to be awaited
    if inspect.iscoroutine(dependency) or isinstance(dependency, Generator | AsyncGenerator):
        name = name_of(dependency)
        raise InvalidLifespanDependency(
            dependency,
            f"needs the function itself, and you called `{name}()`",
            f'Write `Depends({name}, scope="lifespan")`.',
            asked=f'Depends({name}(), scope="lifespan")',
        )
    if is_annotated(dependency):
        raise InvalidLifespanDependency(
            dependency,
            "needs a function or a class, and that is an annotation",
            "Annotate the parameter with it, or pass what it declares.",
        )
    if get_origin(dependency) in (Literal, Union, UnionType) or isinstance(dependency, NewType):
        raise InvalidLifespanDependency(
            dependency,
            f"needs a class or a function, and `{dependency}` makes nothing",
            "Pass to `Depends` the function or the class that makes the value.",
        )
    cached = dependency.__wrapped__ if isinstance(dependency, _LRU_CACHE) else int
    if how_to_call(cached) is not Kind.FUNCTION:
        raise InvalidLifespanDependency(
            dependency,
            "is cached by `lru_cache`, so a second start would get what the first has used up",
            "Leave `lru_cache` out: a lifespan dependency is called once for each start.",
        )


_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
PROTOCOLS = "typing", "typing_extensions"
ROUTINES = FunctionType, MethodType, BuiltinFunctionType

# How many callables behind a variadic one are looked at.
MOST_BEHIND = 100

_LRU_CACHE = type(functools.lru_cache(int))


def check_callable(dependency: object, asked: str | None = None) -> None:
    """Raise `InvalidLifespanDependency` unless it can be a provider; `asked` tells who wants it."""
    __tracebackhide__ = True
    if dependency is inspect.Parameter.empty or dependency is Any:
        raise InvalidLifespanDependency(
            None,
            "needs a class to infer the dependency from",
            "Annotate the parameter with a class, or pass the dependency to `Depends`.",
        )
    _check_kind(dependency)
    if not callable(dependency):
        raise InvalidLifespanDependency(
            dependency,
            "needs a callable",
            "Pass the function or the class itself, without calling it.",
            asked=asked,
        )
    try:
        hash(dependency)
    except Exception:
        raise InvalidLifespanDependency(
            dependency,
            "needs a hashable callable, to tell it from others",
            "Give its class a `__hash__`, or wrap it in a function.",
            asked=asked,
        ) from None
    _check_layers(dependency, asked)
    _check_variadic(dependency, asked)


def _check_layers(provider: Callable[..., Any], asked: str | None) -> None:
    """Raise unless FastAPI can tell how to call it: it looks through partials and wrappers."""
    __tracebackhide__ = True
    if is_missing(provider):  # pragma: no cover - Python 3.14
        return
    try:
        inspect.unwrap(provider)
        how_to_call(provider)
    except Exception as error:
        raise InvalidLifespanDependency(
            provider,
            f"cannot be looked at ({type(error).__name__}: {error})",
            "Its `__wrapped__` must lead to the function that is called in the end.",
            asked=asked,
        ) from error


def _check_variadic(provider: Callable[..., Any], asked: str | None) -> None:
    """Raise if a signature does not show what there is to be given.

    FastAPI would ask the request for an `args` and a `kwargs`. Called without them, what is behind
    would take its own defaults, declarations among them, for values.
    """
    __tracebackhide__ = True
    signature = _signature(provider)
    if not is_variadic(signature) or _is_protocol(provider):
        return
    name = name_of(provider)
    advice = "Wrap it in a function that names what it takes"
    if name.isidentifier():
        advice += f", or takes nothing: `lambda: {name}()`"
    advice += ". If it is a decorator's, `functools.wraps` shows what the decorated one takes."
    known = signature.parameters.keys()
    names = [_STARS.get(one.kind, "") + one.name for one in signature.parameters.values()]
    takes = f"({', '.join(names)})"
    for behind in _behind(provider):
        if not _declared_names(behind) <= known:
            raise InvalidLifespanDependency(
                provider,
                f"hides what `{name_of(behind)}` ({location_of(behind)}) declares, for it takes "
                f"`{takes}`",
                "Wrap it in a function that names its parameters, and so can declare them. A "
                "decorator shows the parameters of what it decorates if it is made with "
                "`functools.wraps`.",
                asked=asked,
            )
    # by its type: a mock says that it is what it stands for
    is_plain = issubclass(type(provider), ROUTINES) or inspect.isclass(origin_of(provider))
    if is_plain and all(one.kind in VARIADIC for one in signature.parameters.values()):
        raise InvalidLifespanDependency(
            provider,
            f"takes `{takes}`, which does not tell what it is to be given",
            advice,
            asked=asked,
        )


def _is_protocol(provider: Any) -> bool:
    """Whether it takes nothing, by a class that typing gives a constructor until it is called."""
    kind: Any = origin_of(provider)
    return inspect.isclass(kind) and getattr(kind.__init__, "__module__", "") in PROTOCOLS


def _signature(call: Any) -> inspect.Signature:
    try:
        return plain_signature(origin_of(call))
    except Exception:  # written in C; what else is wrong is told when it is read for its values
        return inspect.Signature()


def _declared_names(call: Callable[..., Any]) -> set[str]:
    """The parameters that are declared by a `Depends`."""
    try:
        found = parameters(call)
    except Exception:
        return set()
    return {one.name for one in found if isinstance(one.marker, params.Depends)}


def _behind(provider: Any) -> Iterator[Callable[..., Any]]:
    """What a variadic callable may pass its arguments on to: what it is made of, wraps or holds."""
    seen: set[int] = set()
    left = [provider]
    while left and len(seen) < MOST_BEHIND:
        for one in _parts_of(left.pop()):
            if callable(one) and id(one) not in seen:
                seen.add(id(one))
                yield one
                if is_variadic(_signature(one)):
                    left.append(one)


def _parts_of(call: Any) -> list[Any]:
    with suppress(Exception):  # it answers what it likes
        return [*_flat(_parts(call))]
    return []


def _flat(parts: Iterable[Any]) -> Iterator[Any]:
    """These, and those that are in a collection."""
    for part in parts:
        if isinstance(part, dict):
            yield from part.values()
        elif isinstance(part, tuple | list | set | frozenset):
            yield from part
        else:
            yield part


def _parts(call: Any) -> Iterator[Any]:
    if isinstance(call, functools.partial):
        yield from (call.func, *call.args, *call.keywords.values())
    elif origin_of(call) is not call:
        yield origin_of(call)
    elif inspect.isclass(call):
        yield from (type(call).__call__, vars(call).get("__wrapped__"))
        for base in call.__mro__:
            yield from (vars(base).get(name) for name in ("__new__", "__init__"))
    elif isinstance(call, MethodType):
        yield call.__func__
    elif isinstance(call, FunctionType):
        yield from (call.__dict__.get("__wrapped__"), *(call.__defaults__ or ()))
        yield from (call.__kwdefaults__ or {}).values()
        yield from _contents(call)
    elif _is_mock(call):
        yield from (call.__dict__.get("_mock_wraps"), call.__dict__.get("_mock_side_effect"))
    else:
        yield from (type(call).__call__, *getattr(call, "__dict__", {}).values())
        for kind in type(call).__mro__:  # and what it has in its slots
            names = vars(kind).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                yield getattr(call, name, None)


def _is_mock(call: Any) -> bool:
    mock = sys.modules.get("unittest.mock")
    return mock is not None and issubclass(type(call), mock.NonCallableMock)


def _contents(function: FunctionType) -> Iterator[Any]:
    """What is in the cells of a function, but for the class that `super()` needs."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it may still be empty
            if name != "__class__":
                yield cell.cell_contents


def is_settings(provider: Callable[..., Any]) -> bool:
    """Whether pydantic-settings fills it by itself."""
    settings = sys.modules.get("pydantic_settings")
    provider = innermost(provider)
    return (
        settings is not None
        and isinstance(provider, type)
        and issubclass(provider, settings.BaseSettings)
    )
