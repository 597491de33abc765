"""Inject: a function that looks as if it took only what its caller gives."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from types import CodeType, MethodType
from typing import Any

from fastapi_lifespan_deps._compat import Kind, kind_of
from fastapi_lifespan_deps.declare.plan import Overrides, OverridesProvider
from fastapi_lifespan_deps.declare.signature import typed_signature
from fastapi_lifespan_deps.exceptions import LifespanDependencyError, name_of
from fastapi_lifespan_deps.live.asking import Standing

from .order import check, injected_names
from .streams import Stream, StreamInThread
from .threads import call_in_thread

MISSING = inspect.Signature.empty

# What Python takes for a function, and is something that is made of one.
NO_FUNCTIONS = functools.partial, staticmethod, classmethod


def check_function(function: object) -> None:
    """Raise for what is no function or method: nothing can be injected into it."""
    if not inspect.isroutine(function) or isinstance(function, NO_FUNCTIONS):
        raise LifespanDependencyError(
            f"`{name_of(function)}` is not a function or a method, so nothing can be injected into "
            "it. A decorator that makes something else goes above: `@app.task`, `@staticmethod`, "
            "and below it `@container.inject`."
        )


def injecting(
    function: Callable[..., Any], standing: Callable[[], Standing], container: object = None
) -> Any:
    """A function of the same kind, whose injected parameters are filled, and hidden.

    `container` is known from it, if it is by itself.
    """
    check_function(function)

    def call_async(*args: Any, **kwargs: Any) -> Any:
        at = standing()
        return at.run.calls.call(at, function, args, kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return await call_async(*args, **kwargs)

    def plain(*args: Any, **kwargs: Any) -> Any:
        return call_in_thread(standing(), function, args, kwargs)

    async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with Stream(standing(), function, args, kwargs) as items:
            async for item in items:
                yield item

    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = StreamInThread(standing(), function, args, kwargs)
        try:
            yield from items
        finally:
            items.close()

    made: dict[Kind, Callable[..., Any]] = {
        Kind.COROUTINE: coroutine,
        Kind.FUNCTION: plain,
        Kind.ASYNC_GENERATOR: async_generator,
        Kind.GENERATOR: generator,
    }
    wrapper = shown(made[kind_of(function)], function)
    wrapper.__lifespan_function__ = function  # type: ignore[attr-defined]  # see `original_of`
    wrapper.__lifespan_injector__ = container  # type: ignore[attr-defined]  # see `container_of`
    return wrapper


def original_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that was injected, or this one."""
    made = getattr(function, "__func__", function)
    if getattr(made, "__code__", None) not in _WRAPPERS:
        return function  # also what is made around it, and has its attributes
    original: Callable[..., Any] = vars(made)["__lifespan_function__"]
    return MethodType(original, function.__self__) if isinstance(function, MethodType) else original


# The code of what `injecting` makes.
_WRAPPERS = {one for one in injecting.__code__.co_consts if isinstance(one, CodeType)}


def declaring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose declarations count: also one that was injected and then decorated."""
    found = original_of(function)
    layer = inspect.unwrap(found, stop=lambda one: hasattr(one, "__lifespan_function__"))
    injected: Callable[..., Any] | None = getattr(layer, "__lifespan_function__", None)
    return found if injected is None else declaring(injected)


def handlers_of(
    handlers: Iterable[Callable[..., Any]],
    overrides_provider: OverridesProvider,
    overrides: Overrides,
) -> list[Callable[..., Any]]:
    """The functions whose declarations count, checked."""
    if callable(handlers) or isinstance(handlers, str) or not isinstance(handlers, Iterable):
        name = name_of(handlers) if callable(handlers) else repr(handlers)
        raise TypeError(f"handlers={name}: give a list of functions, such as handlers=[handle]")
    found = [declaring(one) for one in handlers]
    for function in found:
        check(function, overrides_provider, overrides)
    return found


def container_of(function: Callable[..., Any]) -> Any:
    """The container that has injected a function, if one by itself has."""
    return getattr(function, "__lifespan_injector__", None)


def shown(wrapper: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper, looking like the function without what is injected.

    Without `__wrapped__`, and with annotations of its own: other libraries read all three.
    """
    injected = injected_names(function)
    functools.update_wrapper(wrapper, function)
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    with suppress(ValueError, TypeError):
        # Resolved here: the wrapper has other globals, in which others would look the names up.
        signature = typed_signature(function)
        kept = [one for name, one in signature.parameters.items() if name not in injected]
        wrapper.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        found = {one.name: one.annotation for one in kept}
        found["return"] = signature.return_annotation
        wrapper.__annotations__ = {
            name: annotation for name, annotation in found.items() if annotation is not MISSING
        }
    return wrapper
