"""Declare: `Depends(provider, scope="lifespan")`, and what it leaves in a signature."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from types import FunctionType
from typing import Any, Literal, Never

from fastapi import Depends as FastAPIDepends
from fastapi import params
from fastapi.security import SecurityScopes
from starlette.applications import Starlette
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection
from starlette.responses import Response

from fastapi_lifespan_deps.absence import (
    current_run,
    not_running,
    outside_of_requests,
    without_request,
)
from fastapi_lifespan_deps.exceptions import (
    DependencyCycleError,
    DependencyScopeError,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    Step,
    location_of,
    name_of,
)

from .options import NO_OPTIONS, Options, check_options, options_of
from .provider import check_callable, is_settings
from .signature import Parameter, layers, parameters

# Where the pin of a request stands in its ASGI scope, and its run in the lifespan state.
SCOPE_KEY = "fastapi_lifespan_deps"

LIFESPAN_NOTE = 'scope="lifespan"'


def Depends(
    dependency: Callable[..., Any] | None = None,
    *,
    use_cache: bool = True,
    scope: Literal["function", "request", "lifespan"] | None = None,
    refresh_every: float | timedelta | None = None,
    start_timeout: float | timedelta | None = None,
    stop_timeout: float | timedelta | None = None,
    health: Callable[[Any], object] | None = None,
    **options: Any,
) -> Any:
    """Declare a dependency of a path operation, of another dependency, or of a lifespan hook.

    This is FastAPI's `Depends` with one more scope. With `scope="lifespan"` the dependency is
    started once, when the application starts, before it serves. Every request and WebSocket
    gets the same object, and the code after a `yield` runs when the application stops.

    A synchronous dependency is called in a worker thread, an asynchronous one in a task of its
    own in the application's event loop: that one task runs it from beginning to end, so it may
    hold a task group or a cancel scope across its `yield`.

    Args:
        dependency: any callable that FastAPI takes. Left out, it is the annotated class. With
            `scope="lifespan"` it may take other lifespan dependencies, parameters with plain
            defaults, and the application, by a parameter annotated `FastAPI` or `Starlette`.
        use_cache: with `scope="lifespan"`, whether the whole application shares one instance
            (the default), or every place that declares it has its own.
        scope: `"lifespan"`, or one of FastAPI's own scopes, or `None`, which is FastAPI's default.
        refresh_every: seconds, or a `timedelta`, after which a fresh instance takes the place of
            the old one, as by `LifespanContainer.refresh`, again and again while the application
            serves. Each wait is up to 5 % shorter or longer, so that many workers do not refresh
            at once. A failure is logged, and the old instance goes on serving.
        start_timeout: seconds, or a `timedelta`, that the start may take. Then it is cancelled,
            and fails. For asynchronous dependencies only.
        stop_timeout: the same for the code after `yield`.
        health: a function of the value, async or not, that tells whether it is in order: it fails
            if it raises or returns False. Called by `LifespanContainer.check_health` and by the
            routes of `add_health_routes`; a plain one in a worker thread.
        **options: FastAPI's other options, passed on untouched. None of them applies to
            `scope="lifespan"`.

    These options belong to the dependency, wherever it is declared: where one is not set, what
    another place sets counts, and two places that set different ones fail the startup. An
    override has no time limits and no health but its own; it is refreshed in the place of what it
    overrides.

    Raises:
        InvalidDependencyScope: there is no such scope.
        InvalidLifespanDependency: the dependency is not callable, or an option makes no sense
            for it.
        DependencyScopeError: raised later, when FastAPI reads the signature that holds this
            declaration, if the dependency asks for something of a request.

    Example:
        ```python
        async def get_client() -> AsyncIterator[httpx.AsyncClient]:
            async with httpx.AsyncClient() as client:
                yield client

        @app.get("/")
        async def read_root(
            client: Annotated[httpx.AsyncClient, Depends(get_client, scope="lifespan")],
        ) -> int:
            return (await client.get("https://example.com")).status_code
        ```
    """
    __tracebackhide__ = True
    if scope not in (None, "function", "request", "lifespan"):
        raise InvalidDependencyScope(scope)
    asked = {
        "refresh_every": refresh_every,
        "start_timeout": start_timeout,
        "stop_timeout": stop_timeout,
        "health": health,
    }
    if scope != "lifespan":
        for option in asked:
            if asked[option] is not None:
                raise InvalidLifespanDependency(
                    dependency,
                    f'takes `{option}` with scope="lifespan" only',
                    'Add scope="lifespan", or leave the option out.',
                    asked=f"Depends({name_of(dependency)}, scope={scope!r})",
                )
        return FastAPIDepends(dependency, use_cache=use_cache, scope=scope, **options)
    for option in options:
        meant = get_close_matches(option, asked, 1)
        raise InvalidLifespanDependency(
            dependency,
            f"does not take `{option}`",
            f"Did you mean `{meant[0]}`?"
            if meant
            else "That option is for requests: leave it out.",
        )
    return LifespanDepends(dependency, use_cache=use_cache, options=options_of(dependency, **asked))


@dataclass(frozen=True)
class _OptionsField:
    options: Options = NO_OPTIONS


class LifespanDepends(params.Depends):
    """What `Depends(..., scope="lifespan")` returns; FastAPI takes it for one of its own."""

    # Read by `dataclasses.replace`. Not made by `@dataclass`: FastAPI's own class is frozen in
    # some releases only, and this one would have to be the same.
    __dataclass_fields__ = params.Depends.__dataclass_fields__ | _OptionsField.__dataclass_fields__
    options: Options

    def __init__(
        self,
        dependency: Callable[..., Any] | None = None,
        use_cache: bool = True,
        scope: Any = "lifespan",
        options: Options = NO_OPTIONS,
        **others: Any,
    ) -> None:
        __tracebackhide__ = True
        super().__init__(None, use_cache=use_cache, scope=scope, **others)
        self.__dict__["options"] = options
        object.__setattr__(self, "dependency", dependency)

    # Python takes an `Annotated` for another that has equal metadata.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LifespanDepends) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __getattr__(self, name: str) -> Never:
        marker: Marker | None = self.__dict__.get("marker")
        if name.startswith("_") or marker is None:
            raise AttributeError(name)
        # a function was called with its defaults, which are its declarations
        raise AttributeError(
            f"This is the declaration of `{name_of(marker.provider)}`, not its value: whoever "
            "called the function did not give it what it declares. "
            f"{outside_of_requests(marker.provider)}"
        )

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.dependency, self.use_cache, self.scope, self.options

    # FastAPI copies a declaration when it infers the class from the annotation: by
    # `dataclasses.replace`, up to 0.121.2 by assigning to the copy. Both come through here.
    @property
    def dependency(self) -> "Marker | None":
        marker: Marker | None = self.__dict__.get("marker")
        return marker

    @dependency.setter
    def dependency(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, dependency: Callable[..., Any] | None
    ) -> None:
        __tracebackhide__ = True
        known = marker_behind(dependency)
        if known is not None:  # a copy, perhaps with another `use_cache`
            dependency = known.provider
        if dependency is not None:
            check_callable(dependency)
            check_options(dependency, self.options)
            dependency = Marker(dependency, self.use_cache, options=self.options)
        self.__dict__["marker"] = dependency


@dataclass(frozen=True, slots=True)
class Place:
    """Where a declaration stands: a parameter of a callable, an index in a route's list."""

    owner: Hashable
    parameter: str | int

    def __str__(self) -> str:
        owner = self.owner[0] if isinstance(self.owner, tuple) else self.owner
        label = owner if isinstance(owner, str) else name_of(owner)
        is_listed = isinstance(self.parameter, int)
        return (
            f"{label} dependencies[{self.parameter}]" if is_listed else f"{label}({self.parameter})"
        )


@dataclass(frozen=True, slots=True)
class Key:
    """What is shared: a provider, and for `use_cache=False` the one place that it is for."""

    provider: Callable[..., Any]
    place: Place | None = None
    # of the one declaration that this comes from; another one asks for the same value
    options: Options = field(default=NO_OPTIONS, compare=False)


# Who calls a marker without a connection is not FastAPI.
NO_CONNECTION: Any = None


@dataclass(frozen=True)
class Marker:
    """The callable that stands in a signature for a lifespan dependency.

    To FastAPI it is an asynchronous dependency that takes the connection. An application that
    has started takes it out of its routes and injects the values by a shorter way (binding.py).
    Where that did not happen, calling it gives the value, or says why there is none.
    """

    provider: Callable[..., Any]
    use_cache: bool
    place: Place | None = None  # where it is known already (frontends)
    options: Options = NO_OPTIONS

    def key(self, owner: Hashable, parameter: str | int) -> Key:
        """What this declares, standing at a parameter of `owner`."""
        if self.use_cache:
            return self.shared_key
        return Key(self.provider, self.place or Place(_owner(owner), parameter), self.options)

    @functools.cached_property
    def shared_key(self) -> Key:
        # One object for all places: what looks it up finds the same one, and compares nothing.
        return Key(self.provider, None, self.options)

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        # FastAPI reads this when a route is registered: the earliest moment at which the names
        # in the provider's annotations can be expected to exist.
        validate(self.provider)
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature([inspect.Parameter("connection", kind, annotation=HTTPConnection)])

    async def __call__(self, connection: HTTPConnection = NO_CONNECTION) -> Any:
        if connection is NO_CONNECTION:
            raise without_request(self.provider)
        scope = connection.scope
        pin = scope.get(SCOPE_KEY)
        # Somebody else may solve it, on a request of his own that names our application.
        run = current_run(scope) if pin is None else pin.run
        if run is None:
            raise not_running(self.provider, scope)
        return await run.marked_value(pin, self, scope)


def marker_behind(call: Any) -> Marker | None:
    """The marker that a callable is, or that others have wrapped; None if there is none."""
    if isinstance(call, Marker):
        return call
    if not callable(call) or (type(call) is FunctionType and not call.__dict__):
        return None
    with suppress(Exception):  # it answers what it likes
        for layer in layers(call):
            # a bound method of it; or an object that holds it, and equals it for overrides' sake
            held = getattr(layer, "__self__", None), *getattr(layer, "__dict__", {}).values()
            for one in (layer, *held):
                if isinstance(one, Marker):
                    return one
    return None


def _owner(call: Any) -> Hashable:
    try:
        hash(call)
    except TypeError:
        return type(call), id(call)
    return call  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A parameter that is filled at startup: by a lifespan dependency or by the application."""

    parameter: str
    marker: Marker | None  # None: the application

    @property
    def step(self) -> Step:
        return Step(self.parameter, self.marker and self.marker.provider, LIFESPAN_NOTE)


def has_lifespan_scope(declaration: Any) -> bool:
    """Whether a `Depends`, or what FastAPI made of it, was given `scope="lifespan"`."""
    scope: str | None = declaration.scope
    return scope == "lifespan"


def lifespan_marker(depends: params.Depends, annotation: Any) -> Marker | None:
    """The marker of a declaration, ours or `fastapi.Depends(..., scope="lifespan")`, if it is."""
    if not has_lifespan_scope(depends):
        return None
    dependency = annotation if depends.dependency is None else depends.dependency
    known = marker_behind(dependency)
    if known is not None:
        return known
    check_callable(dependency)
    options: Options = getattr(depends, "options", NO_OPTIONS)
    check_options(dependency, options)
    return Marker(dependency, depends.use_cache, options=options)


def requirements(provider: Callable[..., Any], path: Sequence[Step] = ()) -> list[Requirement]:
    """What a provider takes.

    Raises `DependencyScopeError` for a parameter that cannot be filled at startup; `path` leads
    from the route to the provider.
    """
    if is_settings(provider):
        return []  # pydantic-settings fills its fields itself, whatever the signature says
    found = (requirement(provider, parameter, path) for parameter in parameters(provider))
    return [one for one in found if one is not None]


def validate(provider: Callable[..., Any]) -> None:
    """Raise unless `provider`, and all that it depends on, can start before any request."""
    _validate(provider, [Step(name_step(provider), provider, LIFESPAN_NOTE)], set())


def _validate(
    provider: Callable[..., Any], path: list[Step], valid: set[Callable[..., Any]]
) -> None:
    for one in requirements(provider, path):
        if one.marker is not None and one.marker.provider not in valid:
            branch = [*path, one.step]
            check_cycle(branch)
            _validate(one.marker.provider, branch, valid)
    valid.add(provider)


def check_cycle(path: Sequence[Step]) -> None:
    """Raise if the last step of `path` is there already."""
    for index, step in enumerate(path[:-1]):
        if step.note.startswith(LIFESPAN_NOTE) and step.call == path[-1].call:
            raise DependencyCycleError(path[index:])


def name_step(provider: Callable[..., Any]) -> str:
    """The label of a provider that nobody has given a parameter name."""
    while isinstance(provider, functools.partial):
        provider = provider.func
    return getattr(provider, "__name__", type(provider).__name__)


def requirement(
    provider: Callable[..., Any], parameter: Parameter, path: Sequence[Step], **texts: str
) -> Requirement | None:
    """What a provider takes through one parameter; None if it is left to its default.

    `texts` are those of the error, for what isn't a provider.
    """
    if isinstance(parameter.marker, params.Depends):
        marker = lifespan_marker(parameter.marker, parameter.annotation)
        if marker is not None:
            return Requirement(parameter.name, marker)
        dependency = parameter.marker.dependency or parameter.annotation
        step = Step(parameter.name, dependency, "scope of a request")
        found = "a dependency of a request"
        advice = f"Declare `{parameter.name}` as a lifespan dependency too"
    elif parameter.is_a(HTTPConnection, Response, BackgroundTasks, SecurityScopes):
        step = Step(str(parameter), None, "belongs to a request")
        found = "which exists only during a request"
        advice = f"Leave `{parameter.name}` out"
    elif parameter.marker is None and parameter.is_a(Starlette):
        return Requirement(parameter.name, None)
    elif parameter.marker is None and parameter.has_default:
        check_seen(provider, parameter)
        return None
    else:
        kind = type(parameter.marker).__name__.lower() if parameter.marker else "query or body"
        step = Step(str(parameter), None, f"a {kind} parameter")
        found = f"which is a parameter of a request ({kind})"
        advice = f"Declare `{parameter.name}` as a lifespan dependency too"
        if parameter.marker is None:
            advice = (
                f"Give `{parameter.name}` a plain default, declare it as a lifespan dependency too"
            )
    raise DependencyScopeError(provider, parameter.name, found, [*path, step], advice, **texts)


def check_seen(call: Callable[..., Any], parameter: Parameter) -> None:
    """Raise for a declaration that nobody would see, since a default would take its place."""
    if isinstance(parameter.annotation, str) and "Depends" in parameter.annotation:
        shown = parameter.annotation
        problem = (
            ", and not all of these names exist at run time. Import what is imported for type "
            "checkers alone; define the function where its annotations can be resolved, at the top "
            "of a module."
        )
    elif parameter.hides_declaration:
        shown = "..."
        problem = (
            " with `Depends` inside of a larger type, where it is not looked for. Put it "
            "outermost: `Annotated[Client | None, Depends(...)]`."
        )
    else:
        return
    raise LifespanDependencyError(
        f"`{name_of(call)}` ({location_of(call)}) declares `{parameter.name}: {shown}`{problem}"
    )
