"""Collect: from an application to its declarations, each with the place where it stands."""

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol

from fastapi import params
from fastapi.dependencies.models import Dependant
from starlette.routing import Host, Mount

from fastapi_lifespan_deps._compat import (
    application,
    effective_routes,
    is_frontend,
    listed_dependencies,
)
from fastapi_lifespan_deps.exceptions import (
    DependencyScopeError,
    InvalidLifespanDependency,
    Step,
    name_of,
)

from .params import (
    LIFESPAN_NOTE,
    Key,
    Marker,
    has_lifespan_scope,
    lifespan_marker,
    marker_behind,
    name_step,
    requirement,
)
from .plan import Declaration, Overrides, OverridesProvider
from .signature import Parameter, parameters


class Injection:
    """A callable that values are injected into: the key for each parameter.

    A `dependencies=[...]` entry has no parameter name: its value must be there, that is all.
    """

    is_lasting = True  # what is pinned by it is so until the application stops

    def __init__(
        self,
        overrides_provider: OverridesProvider,
        parameters: tuple[tuple[str | None, Key], ...],
        call: Callable[..., Any],
        takes_container: bool = False,
        positions: tuple[int, ...] = (),
    ) -> None:
        # FastAPI remembers, for the whole process, thousands of callables and what they are; a
        # bound one must not keep its application alive there.
        self._overrides_provider = (
            None if overrides_provider is None else weakref.ref(overrides_provider)
        )
        self.parameters = parameters
        self.call = call
        self.takes_container = takes_container
        # How many dependencies that FastAPI solves were declared before each, of a bound callable.
        self.positions = positions

    @property
    def overrides_provider(self) -> OverridesProvider:
        return None if self._overrides_provider is None else self._overrides_provider()

    def __reduce__(self) -> Any:
        arguments = self.overrides_provider, self.parameters, self.call
        return Injection, (*arguments, self.takes_container, self.positions)

    def declared_at(self, position: int, last: int) -> list[tuple[str | None, Key]]:
        """What was declared after so many dependencies that FastAPI solves, of `last` in all."""
        together = zip(self.positions, self.parameters, strict=True)
        return [parameter for one, parameter in together if min(one, last) == position]

    def filled(self, values: Mapping[str, Any]) -> Callable[..., Any]:
        """The callable, given these values.

        Those of its first parameters go by position: then it makes no difference how many they are.
        """
        named = dict(values)
        # a function itself: what looks like one may want them by name
        code = self.call.__code__ if type(self.call) is FunctionType else None
        by_position = []
        for name in code.co_varnames[: code.co_argcount] if code is not None else ():
            if name not in named:
                break
            by_position.append(named.pop(name))
        return partial(self.call, *by_position, **named)


class Route(NamedTuple):
    """A route as it is in effect, included and mounted where it is."""

    label: str
    overrides_provider: OverridesProvider
    dependant: Dependant
    listed_dependencies: tuple[params.Depends, ...]
    number: int  # tells it from routes with the same label, also when FastAPI builds it again
    has_endpoint: bool  # a frontend's dependencies are solved, but no endpoint is called

    @property
    def target(self) -> Dependant:
        return self.dependant

    def declarations(self, overrides: Overrides) -> Iterator[Declaration]:
        path = (Step(self.label, self.dependant.call if self.has_endpoint else None),)
        return declared(self.dependant, self.overrides_provider, overrides, path, self)


class ListedDependency(NamedTuple):
    """An entry of a `dependencies=[...]` list that no route takes, for there is none.

    Applications that only mount others declare so what is to run with them.
    """

    prefix: str  # of the application or router whose list it is
    overrides_provider: OverridesProvider
    depends: params.Depends
    position: int

    @property
    def target(self) -> params.Depends:
        return self.depends

    def declarations(self, overrides: Overrides) -> Iterator[Declaration]:
        marker = lifespan_marker(self.depends, inspect.Parameter.empty)
        assert marker is not None  # it has the scope, or would not be here
        owner = f"dependencies of {self.prefix or 'the application'}"
        path = Step(owner), Step(f"dependencies[{self.position}]", marker.provider, LIFESPAN_NOTE)
        yield Declaration(self.overrides_provider, marker.key(owner, self.position), path)


class Source(Protocol):
    """What declares something: a route, a list, a hook, a function that is called."""

    @property
    def target(self) -> object:
        """What tells it from others."""

    @property
    def overrides_provider(self) -> OverridesProvider: ...

    def declarations(self, overrides: Overrides) -> Iterator[Declaration]:
        """What it declares, where these overrides hold."""
        ...


class LifecycleFunction:
    """A startup hook, a shutdown hook or a lifespan function, which may take values too.

    Its signature is read once.
    """

    def __init__(
        self, function: Callable[..., Any], overrides_provider: OverridesProvider, passed: int = 0
    ) -> None:
        self.function = function
        self.overrides_provider = overrides_provider
        # without the leading arguments that the caller passes himself
        self._parameters = parameters(function)[passed:]
        keys = ((one.name, self._key(one)) for one in self._parameters)
        found = tuple((name, key) for name, key in keys if key is not None)
        self.injection = Injection(overrides_provider, found, function)
        if not passed:  # a lifespan function has a wrapper of FastAPI's
            self._check_wrapper()

    def _check_given(self, parameter: Parameter, top: Step) -> None:
        """Raise for a parameter that nobody fills."""
        texts = {
            "reason": "runs when the application starts or stops, and not in a request",
            "otherwise": "give it a default",
        }
        found = requirement(self.function, parameter, (top,), **texts)
        if found is not None and found.marker is None:
            raise DependencyScopeError(
                self.function,
                parameter.name,
                "for nobody passes the application to it",
                (top, Step(str(parameter))),
                "Take the application from where the function stands",
                **texts,
            )

    def _check_wrapper(self) -> None:
        """Raise if what wraps the function does not take what the function declares."""
        names = [name or "" for name, _ in self.injection.parameters]
        try:
            own = inspect.signature(self.function, follow_wrapped=False)
        except ValueError:  # written in C
            return
        try:
            own.bind_partial(**dict.fromkeys(names))
        except TypeError:
            raise InvalidLifespanDependency(
                self.function,
                f"declares `{'`, `'.join(names)}`, and what wraps it takes no such argument",
                "Let the wrapper pass its arguments on, or ask `app.lifespan_container` in the "
                "function for the values.",
                asked=name_of(self.function),
            ) from None

    @property
    def target(self) -> Callable[..., Any]:
        return self.function

    def _key(self, parameter: Parameter) -> Key | None:
        if not isinstance(parameter.marker, params.Depends):
            return None
        marker = lifespan_marker(parameter.marker, parameter.annotation)
        return None if marker is None else marker.key(self.function, parameter.name)

    def declarations(self, overrides: Overrides) -> Iterator[Declaration]:
        top = Step(name_step(self.function), self.function, "runs with the lifespan")
        for parameter in self._parameters:
            if isinstance(parameter.marker, params.Depends):
                is_given = parameter.default is not parameter.marker and parameter.has_default
            else:  # where nothing is injected, it is called as FastAPI calls it
                is_given = parameter.has_default or not self.injection.parameters
            if not is_given:
                self._check_given(parameter, top)
        for name, key in self.injection.parameters:
            yield Declaration(
                self.overrides_provider, key, (top, Step(name or "", key.provider, LIFESPAN_NOTE))
            )


class Sources:
    """All that declares something: routes, hooks, lifespan functions."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._others: list[Source] = []
        self.unstarted: list[Source] = []
        """What declares options for what others start, and is not started itself."""

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    def update(self, sources: Iterable[Source], others: Iterable[Source]) -> bool:
        """Take these for what there was, and keep the others. Return whether anything is new."""
        known = {id(source.target) for source in self._sources}
        self._others += others
        self._sources = [*sources, *self._others]
        return not known or any(id(source.target) not in known for source in self._sources)

    def declarations(
        self, overrides: Mapping[OverridesProvider, Overrides], failures: list[Exception]
    ) -> Iterator[Declaration]:
        """What they declare under these overrides. What goes wrong is added to `failures`."""
        yield from _declarations(self._sources, overrides, failures)

    def options(self) -> Iterator[Declaration]:
        """What declares options alone; if it can't be read, that is told where it is started."""
        yield from _declarations(self.unstarted, {}, [])


def _declarations(
    sources: Iterable[Source],
    overrides: Mapping[OverridesProvider, Overrides],
    failures: list[Exception],
) -> Iterator[Declaration]:
    for source in sources:
        try:
            yield from source.declarations(overrides.get(source.overrides_provider, {}))
        except Exception as error:  # a wrong override is no other route's trouble
            failures.append(error)


def collect_routes(app: Any) -> Iterator[Route | ListedDependency]:
    """All routes that an application can reach, in the order in which it tries them.

    After them what its `dependencies=[...]`, and those of its routers, list for no route.
    """
    walk = _Walk()
    taken: set[int] = set()
    for route in walk.routes(app, app, ""):
        taken.update(map(id, route.listed_dependencies))
        yield route
    for prefix, overrides_provider, router in walk.routers:
        for index, depends in enumerate(listed_dependencies(router)):
            if id(depends) not in taken and has_lifespan_scope(depends):
                taken.add(id(depends))
                yield ListedDependency(prefix, overrides_provider, depends, index)


def mounted_routers(app: Any) -> list[Any]:
    """The routers of an application and of all that is mounted in it."""
    walk = _Walk()
    for _ in walk.routes(app, app, ""):
        pass
    return [router for _, _, router in walk.routers]


def declared(
    dependant: Dependant,
    overrides_provider: OverridesProvider,
    overrides: Overrides,
    path: tuple[Step, ...] = (),
    route: Route | None = None,
) -> Iterator[Declaration]:
    """What solving a dependant needs, request-scoped dependencies and their overrides included."""
    if hasattr(dependant.call, "__lifespan_container__"):
        yield Declaration(overrides_provider, None, path)
    injection = injection_of(dependant.call)
    keys = lifespan_children(dependant, route)
    last = len(dependant.dependencies)
    for index, child in enumerate(dependant.dependencies):
        if injection is not NO_INJECTION:
            yield from _bound_at(index, last, injection, path)
        label = child.name or f"dependencies[{index}]"
        if index in keys:
            step = Step(label, keys[index].provider, LIFESPAN_NOTE)
            yield Declaration(overrides_provider, keys[index], (*path, step))
            continue
        call = overrides.get(child.call, child.call) if overrides and child.call else child.call
        if call is None or call is child.call:
            yield from declared(child, overrides_provider, overrides, (*path, Step(label, call)))
        else:
            yield from _declared_by(call, overrides_provider, overrides, (*path, Step(label, call)))
    if injection is not NO_INJECTION:
        yield from _bound_at(last, last, injection, path)


def _bound_at(
    position: int, last: int, injection: Injection, path: tuple[Step, ...]
) -> Iterator[Declaration]:
    for name, key in injection.declared_at(position, last):
        step = Step(name or "dependencies", key.provider, LIFESPAN_NOTE)
        yield Declaration(injection.overrides_provider, key, (*path, step))


def lifespan_children(dependant: Dependant, route: Route | None = None) -> dict[int, Key]:
    """The lifespan declarations among the dependencies of a dependant, by their index."""
    listed = [] if route is None else list(enumerate(route.listed_dependencies))
    keys = {}
    for index, child in enumerate(dependant.dependencies):
        declaration: Any = child
        owner: Any = dependant.call
        position: str | int = child.name or -1 - index
        if route is not None and child.name is None:
            # FastAPI puts the `dependencies=[...]` of a route here without their `use_cache` (all
            # releases) and `scope` (0.121.0), and others may have put theirs between them.
            place = next((one for one in listed if one[1].dependency is child.call), None)
            if place is not None:
                listed.remove(place)
                position, declaration = place
            owner = route.label, route.number
        marker = marker_behind(child.call)
        if marker is None and child.call and has_lifespan_scope(declaration):
            marker = Marker(child.call, declaration.use_cache)  # declared by FastAPI's own Depends
        if marker is not None:
            keys[index] = marker.key(owner, position)
    return keys


NO_INJECTION = Injection(None, (), lambda: None)


def injection_of(call: Any) -> Injection:
    """The injection of a callable that was bound (binding.py); `NO_INJECTION` for any other."""
    injection: Injection = getattr(call, "__lifespan_injection__", NO_INJECTION)
    return injection


def bound_by(call: Any) -> Any:
    """The callable that was bound, for one that stands for it."""
    injection = injection_of(call)
    return call if injection is NO_INJECTION else injection.call


def _declared_by(
    call: Callable[..., Any],
    overrides_provider: OverridesProvider,
    overrides: Overrides,
    path: tuple[Step, ...],
) -> Iterator[Declaration]:
    """What a request-scoped override needs, of which FastAPI builds the dependant per request."""
    if hasattr(call, "__lifespan_container__"):
        yield Declaration(overrides_provider, None, path)
    if not callable(call):
        return  # FastAPI tells the requests that need it
    for parameter in parameters(call):
        if not isinstance(parameter.marker, params.Depends):
            continue
        marker = lifespan_marker(parameter.marker, parameter.annotation)
        if marker is not None:
            step = Step(parameter.name, marker.provider, LIFESPAN_NOTE)
            yield Declaration(overrides_provider, marker.key(call, parameter.name), (*path, step))
            # FastAPI will read this signature for each request, and would call the provider of
            # a declaration of its own: let it find the marker.
            object.__setattr__(parameter.marker, "dependency", marker)
            continue
        dependency = parameter.marker.dependency or parameter.annotation
        dependency = overrides.get(dependency, dependency)
        if all(step.call is not dependency for step in path):
            step = Step(parameter.name, dependency)
            yield from _declared_by(dependency, overrides_provider, overrides, (*path, step))


class _Walk:
    """A walk through an application and what is mounted in it, each router once."""

    def __init__(self) -> None:
        self.routers: list[tuple[str, OverridesProvider, Any]] = []
        self._labels: dict[str, int] = {}

    def routes(
        self, router: Any, overrides_provider: OverridesProvider, prefix: str
    ) -> Iterator[Route]:
        router = getattr(router, "router", router)
        if any(known is router for _, _, known in self.routers):
            return
        self.routers.append((prefix, overrides_provider, router))
        for route in effective_routes(router):
            path = prefix + getattr(route, "path", "")
            dependant = getattr(route, "dependant", None)
            if dependant is not None:
                # as FastAPI does it: a route may have come from another application
                provider = getattr(route, "dependency_overrides_provider", overrides_provider)
                yield self._route(route, provider, prefix, path)
            elif isinstance(route, Mount | Host):
                mounted = application(route.app)
                if mounted is not None:
                    yield from self.routes(mounted, _overrides_provider(mounted), path)

    def _route(self, route: Any, provider: OverridesProvider, prefix: str, path: str) -> Route:
        frontend = is_frontend(route)
        if frontend:
            label = f"{prefix}{getattr(route, 'frontend_prefix', '')} frontend".lstrip()
        else:
            label = " ".join([*sorted(getattr(route, "methods", ["WEBSOCKET"])), path])
        number = self._labels.get(label, 0)
        self._labels[label] = number + 1
        listed = tuple(route.dependencies)
        return Route(label, provider, route.dependant, listed, number, not frontend)


def _overrides_provider(mounted: Any) -> OverridesProvider:
    if hasattr(mounted, "dependency_overrides"):
        return mounted
    return getattr(mounted, "dependency_overrides_provider", None)
