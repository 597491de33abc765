"""Order: what a function needs when it is called outside of a request, and in which order. Pure."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastapi import params
from fastapi.security import SecurityScopes
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection
from starlette.responses import Response

from fastapi_lifespan_deps._compat import Kind, kind_of
from fastapi_lifespan_deps.declare.collect import Injection
from fastapi_lifespan_deps.declare.params import (
    LIFESPAN_NOTE,
    Key,
    check_seen,
    lifespan_marker,
    name_step,
    validate,
)
from fastapi_lifespan_deps.declare.plan import Declaration, Overrides, OverridesProvider
from fastapi_lifespan_deps.declare.signature import Parameter, parameters
from fastapi_lifespan_deps.exceptions import (
    DependencyCycleError,
    DependencyScopeError,
    Step,
    name_of,
)

# Where the value of a parameter comes from: what lives, the caller's arguments, the container, or
# a dependency that is entered before; and which of these.
Place = tuple[Literal["value", "given", "container", "entry"], int]
# The same for a call, which has all of these in one list: parameters, and places in the list.
Arguments = tuple[tuple[str, int], ...]


class Entry(NamedTuple):
    """A dependency that is made for one call, and left with it."""

    call: Callable[..., Any]
    kind: Kind
    is_early: bool  # scope="function": it is left before the others
    arguments: Arguments


class CallHolder(Injection):
    """What a call holds of a generation: it is pinned as a request is."""

    is_lasting = False

    def lasting(self) -> "CallHolder":
        """The same for a call that ends only with what it is a part of."""
        lasting = copy(self)
        lasting.is_lasting = True
        return lasting


@dataclass(frozen=True, slots=True)
class Order:
    """The dependencies of a function, as a call enters them."""

    keys: tuple[Key, ...]  # of the values that live longer
    given: tuple[str, ...]  # the arguments of the caller that dependencies take, too
    entries: tuple[Entry, ...]
    arguments: Arguments  # of the function itself
    takes_container: bool
    holder: CallHolder
    kind: Kind  # of the function
    rebinds: bool  # positional arguments are not those of the function, but of what is visible


class Named:
    """A name that is shown, and keeps nothing alive."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__qualname__ = name_of(function)

    def __call__(self) -> None: ...


class Handler:
    """A function whose declarations a container or an application starts, and never calls."""

    def __init__(self, function: Callable[..., Any], overrides_provider: OverridesProvider) -> None:
        self.function = function
        self.overrides_provider = overrides_provider

    @property
    def target(self) -> Callable[..., Any]:
        return self.function

    def declarations(self, overrides: Overrides) -> Iterator[Declaration]:
        yield from walked(self.function, self.overrides_provider, overrides).declarations


def walked(
    function: Callable[..., Any],
    overrides_provider: OverridesProvider,
    overrides: Overrides,
    explicit: frozenset[str] = frozenset(),
) -> "Walk":
    """Read what a function needs; `explicit` names what the caller gives by keyword."""
    walk = Walk(overrides_provider, overrides, visible_names(function) | explicit)
    walk.read(function, explicit)
    return walk


def order_of(
    function: Callable[..., Any],
    overrides_provider: OverridesProvider,
    overrides: Overrides,
    explicit: frozenset[str] = frozenset(),
) -> Order:
    """The order of a call of a function.

    Raises `DependencyScopeError` for what exists only in a request.
    """
    return walked(function, overrides_provider, overrides, explicit).order(function)


def injected_names(function: Callable[..., Any]) -> list[str]:
    """The parameters that are filled for the caller."""
    return [one.name for one in parameters(function) if isinstance(one.marker, params.Depends)]


def visible_names(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters that the caller fills."""
    injected = injected_names(function)
    return frozenset(one.name for one in parameters(function) if one.name not in injected)


class Walk:
    """A walk through what a function needs: depth first, as FastAPI solves it."""

    def __init__(
        self, overrides_provider: OverridesProvider, overrides: Overrides, given: frozenset[str]
    ) -> None:
        self._overrides_provider = overrides_provider
        self._overrides = overrides
        self._can_be_given = given
        self.declarations: list[Declaration] = []
        self._keys: dict[Key, int] = {}
        self._given: dict[str, int] = {}
        self._entries: list[tuple[Callable[..., Any], bool, list[tuple[str, Place]]]] = []
        self._known: dict[Any, int] = {}  # what is entered once for all that share it
        self._arguments: list[tuple[str, Place]] = []

    def read(self, function: Callable[..., Any], explicit: frozenset[str]) -> None:
        top = Step(name_step(function), function, "is called")
        owner = getattr(function, "__func__", function)  # a method, whatever it is bound to
        found = []
        for parameter in parameters(function):
            if parameter.name in explicit:
                continue
            check_seen(function, parameter)
            if isinstance(parameter.marker, params.Depends):
                found.append((parameter.name, self._depends(owner, parameter, (top,))))
            elif parameter.marker is not None:
                raise _of_a_request(function, parameter, (top,), is_called=True)
        self._arguments = found

    def order(self, function: Callable[..., Any]) -> Order:
        """What was read, for the calls of the function."""
        takes_container = any(one.key is None for one in self.declarations)
        held = tuple((None, key) for key in self._keys)
        entries = (
            Entry(call, kind_of(call), is_early, self._numbered(arguments))
            for call, is_early, arguments in self._entries
        )
        return Order(
            tuple(self._keys),
            tuple(self._given),
            tuple(entries),
            self._numbered(self._arguments),
            takes_container,
            CallHolder(self._overrides_provider, held, Named(function), takes_container),
            kind_of(function),
            _rebinds(function, injected_names(function)),
        )

    def _numbered(self, arguments: list[tuple[str, Place]]) -> Arguments:
        container = len(self._keys) + len(self._given)
        first = {"value": 0, "given": len(self._keys), "container": container}
        takes_container = any(one.key is None for one in self.declarations)
        first["entry"] = container + takes_container
        return tuple((name, first[kind] + index) for name, (kind, index) in arguments)

    def _depends(self, owner: Any, parameter: Parameter, path: Sequence[Step]) -> Place:
        depends = parameter.marker
        assert isinstance(depends, params.Depends)
        marker = lifespan_marker(depends, parameter.annotation)
        if marker is not None:
            key = marker.key(owner, parameter.name)
            step = Step(parameter.name, key.provider, LIFESPAN_NOTE)
            self.declarations.append(Declaration(self._overrides_provider, key, (*path, step)))
            return "value", self._keys.setdefault(key, len(self._keys))
        original = depends.dependency or parameter.annotation
        call = self._overrides.get(original, original)
        branch = (*path, Step(parameter.name, call, "of a call"))
        if hasattr(call, "__lifespan_container__"):
            self.declarations.append(Declaration(self._overrides_provider, None, branch))
            return "container", 0
        if any(step.call is call for step in path):
            raise DependencyCycleError(branch)
        if depends.scope == "function" and path[-1].note == REQUEST_NOTE:
            raise _of_a_shorter_scope(owner, parameter, branch)
        if depends.scope != "function" and _is_generator(call):  # else nothing is left later
            branch = (*path, Step(parameter.name, call, REQUEST_NOTE))
        shared = original, depends.scope or ("request" if _is_generator(original) else None)
        if depends.use_cache and shared in self._known:
            return "entry", self._known[shared]
        number = self._enter(call, depends.scope, branch)
        self._known.setdefault(shared, number)
        return "entry", number

    def _enter(self, call: Callable[..., Any], scope: str | None, path: Sequence[Step]) -> int:
        arguments = []
        for parameter in parameters(call):
            place = self._argument(call, parameter, path)
            if place is not None:
                arguments.append((parameter.name, place))
        self._entries.append((call, scope == "function", arguments))
        return len(self._entries) - 1

    def _argument(self, call: Any, parameter: Parameter, path: Sequence[Step]) -> Place | None:
        if isinstance(parameter.marker, params.Depends):
            return self._depends(call, parameter, path)
        check_seen(call, parameter)
        is_of_request = parameter.is_a(HTTPConnection, Response, BackgroundTasks, SecurityScopes)
        if parameter.marker is not None or is_of_request:
            raise _of_a_request(call, parameter, path)
        if parameter.name in self._can_be_given:
            return "given", self._given.setdefault(parameter.name, len(self._given))
        if parameter.has_default:
            return None
        raise _of_a_request(call, parameter, path)


def _of_a_request(
    call: Callable[..., Any], parameter: Parameter, path: Sequence[Step], *, is_called: bool = False
) -> DependencyScopeError:
    names = HTTPConnection, Response, BackgroundTasks, SecurityScopes
    if parameter.marker is not None:
        found = f"which is a parameter of a request ({type(parameter.marker).__name__.lower()})"
    elif parameter.is_a(*names):
        found = "which exists only during a request"
    else:
        found = "for nothing gives it"
    return DependencyScopeError(
        call,
        parameter.name,
        found,
        [*path, Step(str(parameter))],
        (
            f"Give it a plain annotation, and its caller gives `{parameter.name}`"
            if is_called
            else f"Override `{name_of(call)}`, give `{parameter.name}` a plain default"
        ),
        reason="is called outside of a request",
        otherwise=(
            "let a dependency make it"
            if is_called
            else "let the function that is called take a parameter of that name"
        ),
    )


def check(
    function: Callable[..., Any], overrides_provider: OverridesProvider, overrides: Overrides
) -> None:
    """Raise if a function cannot be called outside of a request, or what it declares not start."""
    if not callable(function):
        raise TypeError(
            f"{function!r} cannot be called, and so nothing can be injected into it. Give the "
            "function itself."
        )
    overrides = overrides or {}  # which may be None, for FastAPI
    for declaration in walked(function, overrides_provider, overrides).declarations:
        key = declaration.key
        if key is not None and key.provider not in overrides:
            validate(key.provider)


REQUEST_NOTE = "of a call, left at its end"


def _is_generator(call: Callable[..., Any]) -> bool:
    return kind_of(call) in (Kind.GENERATOR, Kind.ASYNC_GENERATOR)


def _of_a_shorter_scope(
    call: Callable[..., Any], parameter: Parameter, path: Sequence[Step]
) -> DependencyScopeError:
    return DependencyScopeError(
        call,
        parameter.name,
        "which is left before it",
        path,
        f"Leave the scope of `{parameter.name}` out",
        reason='is left after what has scope="function"',
        otherwise='give `{name}` scope="function", too',
    )


def _rebinds(function: Callable[..., Any], injected: Collection[str]) -> bool:
    """Whether an injected parameter stands before one that is given by position."""
    found = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in injected:
            found = found or parameter.kind is not parameter.KEYWORD_ONLY
            if parameter.kind is parameter.POSITIONAL_ONLY:
                return True
        elif found and parameter.kind in POSITIONAL:
            return True
    return False


POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def rebound(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    injected: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the caller gave, by the visible signature, and what is injected: for the function."""
    signature = inspect.signature(function)
    given, explicit = _bound(function, args, kwargs, injected)
    values = {**injected, **explicit, **given.arguments}
    ordered = {name: values[name] for name in signature.parameters if name in values}
    bound = inspect.BoundArguments(signature, OrderedDict(ordered))
    return bound.args, bound.kwargs


def bound_arguments(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    injected: Collection[str],
) -> dict[str, Any]:
    """What the caller has given, by name; with the defaults of what he has not."""
    given, explicit = _bound(function, args, kwargs, injected)
    given.apply_defaults()
    return {**given.arguments, **explicit}


def _bound(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    injected: Collection[str],
) -> tuple[inspect.BoundArguments, dict[str, Any]]:
    """The arguments bound to the visible signature; and those that would have been injected."""
    names = injected_names(function) if kwargs else ()
    explicit = {name: kwargs[name] for name in names if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in explicit}
    signature = inspect.signature(function)
    visible = [
        one
        for name, one in signature.parameters.items()
        if name not in injected and name not in explicit
    ]
    return signature.replace(parameters=visible).bind(*args, **others), explicit
