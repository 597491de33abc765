"""Bind: make a route's callables take their values from the generation of the request."""

import dataclasses
import functools
import inspect
import operator
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any, Self

from anyio import from_thread
from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from starlette.requests import HTTPConnection

from fastapi_lifespan_deps._compat import EndpointContexts, Kind, kind_of
from fastapi_lifespan_deps.absence import current_run, not_running
from fastapi_lifespan_deps.declare.collect import NO_INJECTION, Injection, Route, lifespan_children
from fastapi_lifespan_deps.declare.params import SCOPE_KEY, Key, Marker
from fastapi_lifespan_deps.declare.plan import OverridesProvider
from fastapi_lifespan_deps.declare.signature import Parameter, typed_signature
from fastapi_lifespan_deps.live.tasks import current_loop

# FastAPI's dependants belong to the application, not to a run: two runs that start in two
# threads must not bind one of them twice.
_one_at_a_time = threading.Lock()


class Binder:
    """Makes the routes of an application take their values from the generation of a request.

    A FastAPI dependency costs microseconds per request whatever it does, so lifespan
    dependencies leave the dependant. Instead its `call` becomes a callable that takes the
    connection, finds the generation in its scope, and there what has all values already.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        # What was bound for one route serves the others of its application too. The objects of
        # which these are the ids live as long as the routes.
        self._bound: dict[tuple[int, int], tuple[BoundCall, str | None]] = {}
        self._contexts: dict[int, EndpointContexts] = {}

    def bind(self, route: Route) -> None:
        """Rewrite what serves a route, once; what needs no values is left as it is."""
        with _one_at_a_time:
            dependant = route.dependant
            keys = lifespan_children(dependant, route)
            others = [one for index, one in enumerate(dependant.dependencies) if index not in keys]
            kept = self._kept(route, keys)
            # what an endpoint uses through others is held for its thread, too
            is_using = not all(map(operator.is_, kept, others)) or any(map(_takes_container, kept))
            is_held = is_using and _runs_in_thread(dependant.call)
            if route.has_endpoint and (keys or is_held):
                self._bind_endpoint(route, keys)
            dependant.dependencies[:] = kept

    def _kept(self, route: Route, keys: Mapping[int, Key]) -> list[Dependant]:
        """The dependencies that FastAPI goes on to solve."""
        kept = []
        for index, child in enumerate(route.dependant.dependencies):
            if index not in keys:
                kept.append(self._bind_dependency(child, route.overrides_provider))
            elif not route.has_endpoint:
                key = keys[index]
                marker = Marker(key.provider, key.place is None, key.place, key.options)
                kept.append(get_dependant(path=child.path or "", call=marker))
        return kept

    def _bind_endpoint(self, route: Route, keys: Mapping[int, Key]) -> None:
        dependant, call = route.dependant, route.dependant.call
        assert call is not None
        # No parameter can have this name, and nobody reads an endpoint's signature again.
        name = dependant.http_connection_param_name or "lifespan connection"
        keep = name == dependant.http_connection_param_name
        injection = _injection(dependant, route.overrides_provider, keys)
        bound = _BOUND.get(kind_of(call), BoundCall)(call, injection, name, keep)
        dependant.call = bound
        dependant.http_connection_param_name = name
        application = route.overrides_provider or self._application
        if id(application) not in self._contexts:
            self._contexts[id(application)] = EndpointContexts(application)
        self._contexts[id(application)].keep(bound, call)

    def _bind_dependency(
        self, dependant: Dependant, overrides_provider: OverridesProvider
    ) -> Dependant:
        """A request-scoped dependency, bound; the same one if nothing in it takes values."""
        keys = lifespan_children(dependant)
        others = [child for index, child in enumerate(dependant.dependencies) if index not in keys]
        kept = [self._bind_dependency(child, overrides_provider) for child in others]
        is_using = keys or not all(map(operator.is_, kept, others))
        if not is_using and not (
            any(map(_takes_container, kept)) and _runs_in_thread(dependant.call)
        ):
            return dependant
        identity = id(dependant.call), id(overrides_provider)
        if identity not in self._bound:
            below = {child.name: child.call for child in kept if isinstance(child.call, BoundCall)}
            injection = _injection(dependant, overrides_provider, keys)
            self._bound[identity] = _bound_dependency(dependant, injection, below)
        call, name = self._bound[identity]
        if dependant.call != call:  # its own `__eq__` knows no stranger: overrides would miss it
            return dependant
        # a fresh object: 0.123.5 remembers the call of the old one
        return dataclasses.replace(
            dependant, call=call, dependencies=kept, http_connection_param_name=name
        )


class BoundCall(functools.partial[Any]):
    """Stands for a callable of a route, and gives it the values of the request's generation.

    FastAPI and others look through a `partial` for what they want to know of a callable, above
    all how to call it: they find what they would find without us. It equals the original, so that
    `dependency_overrides` and FastAPI's cache still find it.
    """

    __slots__ = ("__lifespan_injection__", "_name", "_take")

    __wrapped__: Callable[..., Any]

    def __new__(cls, call: Callable[..., Any], *_: object) -> Self:
        return super().__new__(cls, call)

    def __init__(
        self, call: Callable[..., Any], injection: Injection, name: str, keep: bool
    ) -> None:
        functools.update_wrapper(self, call)  # with all that others have left on the original
        self.__lifespan_injection__ = injection  # found again by collect.py
        self._name = name  # of the parameter that takes the connection
        self._take = operator.getitem if keep else dict.pop
        # Up to 0.123.4 FastAPI looks through no `partial`: it looks at this.
        is_plain = inspect.isroutine(call) or inspect.isclass(call)
        self.__dict__["__call__"] = call if is_plain else getattr(call, "__call__")  # noqa: B004, B009

    def __call__(self, /, **values: Any) -> Any:
        """Call it in the event loop; the hot path of every request.

        It takes `**values` only, for the endpoint may use any other name for itself.
        """
        connection = self._take(values, self._name)
        pin = connection.scope.get(SCOPE_KEY)
        injection = self.__lifespan_injection__
        if pin is None:
            return self._unpinned(current_run, connection.scope)(**values)
        if pin.holder is not connection.scope:
            pin = pin.run.follow(pin, connection.scope)
        return pin.generation[injection](**values)

    def _unpinned(self, find: Callable[[Any], Any], scope: Any) -> Callable[..., Any]:
        """What to call for somebody else, who solves it on a request of his own."""
        run, injection = find(scope), self.__lifespan_injection__
        if run is not None:
            return run.current[injection]  # type: ignore[no-any-return]
        if injection.parameters:
            raise not_running(injection.parameters[0][1].provider, scope)
        return injection.call  # what it needs was overridden

    def __eq__(self, other: object) -> bool:
        return self.__wrapped__ == (other.__wrapped__ if isinstance(other, BoundCall) else other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __reduce__(self) -> Any:
        keep = self._take is operator.getitem
        arguments = self.__wrapped__, self.__lifespan_injection__, self._name, keep
        return type(self), arguments, self.__dict__

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


class _CallInThread(BoundCall):
    """The same in a worker thread, which may outlive its request: it holds the values."""

    __slots__ = ()

    def __call__(self, /, **values: Any) -> Any:
        connection = self._take(values, self._name)
        pin = connection.scope.get(SCOPE_KEY)
        injection = self.__lifespan_injection__
        if pin is None:
            return self._unpinned(_run_for_thread, connection.scope)(**values)
        if pin.holder is not connection.scope:
            pin = pin.run.follow(pin, connection.scope)
        return self._within(pin, pin.generation[injection], values)

    def _within(self, pin: Any, call: Callable[..., Any], values: dict[str, Any]) -> Any:
        pin.enter_thread()
        try:
            return call(**values)
        finally:
            pin.leave_thread()


def _run_for_thread(scope: Any) -> Any:
    if current_loop() is not None:
        return current_run(scope)
    try:
        return from_thread.run_sync(current_run, scope)
    except RuntimeError:  # it is nobody's thread
        return None


class _GeneratorInThread(_CallInThread):
    """A generator function, whose steps are taken in worker threads."""

    __slots__ = ()

    def _within(self, pin: Any, call: Callable[..., Any], values: dict[str, Any]) -> Any:
        result = call(**values)
        return held(pin, result) if isinstance(result, Generator) else result


class _Passing(BoundCall):
    """It takes no values itself, but has a dependency below it that does."""

    __slots__ = ()

    def __call__(self, /, **values: Any) -> Any:
        return self.__wrapped__(**values)


_BOUND = {Kind.FUNCTION: _CallInThread, Kind.GENERATOR: _GeneratorInThread}


def _bound_dependency(
    dependant: Dependant, injection: Injection, below: Mapping[str | None, BoundCall]
) -> tuple[BoundCall, str | None]:
    """What stands for a request-scoped dependency, and the parameter that takes the connection.

    Its signature leads to what was bound: while overrides are active, FastAPI builds the
    dependant from it again for every request.
    """
    call = injection.call
    signature = typed_signature(call)
    injected = {name for name, _ in injection.parameters}
    kept = [
        _redirected(parameter, below.get(name))
        for name, parameter in signature.parameters.items()
        if name not in injected
    ]
    name = known = dependant.http_connection_param_name
    kind = kind_of(call)
    if injected or not kind.is_async:
        name = known or _unused_name(signature)
        bound = _BOUND.get(kind, BoundCall)(call, injection, name, name == known)
        if name != known:
            keyword = inspect.Parameter.KEYWORD_ONLY
            kept.append(inspect.Parameter(name, keyword, annotation=HTTPConnection))
    else:
        bound = _Passing(call, NO_INJECTION, "", True)
    kept.sort(key=operator.attrgetter("kind"))
    bound.__dict__["__signature__"] = signature.replace(parameters=kept)
    return bound, name


def _takes_container(dependant: Dependant) -> bool:
    """Whether solving it gives the container, and with it any value."""
    is_container = hasattr(dependant.call, "__lifespan_container__")
    return is_container or any(map(_takes_container, dependant.dependencies))


def _runs_in_thread(call: Any) -> bool:
    return not kind_of(call).is_async


def _injection(
    dependant: Dependant, overrides_provider: OverridesProvider, keys: Mapping[int, Key]
) -> Injection:
    children = dependant.dependencies
    assert dependant.call is not None
    named = tuple((children[index].name, key) for index, key in keys.items())
    positions = tuple(index - number for number, index in enumerate(keys))
    return Injection(overrides_provider, named, dependant.call, positions=positions)


def _redirected(parameter: inspect.Parameter, call: BoundCall | None) -> inspect.Parameter:
    """A parameter for FastAPI, which passes all by name; it declares `call` if there is one."""
    if (
        parameter.kind is not parameter.VAR_POSITIONAL
        and parameter.kind is not parameter.VAR_KEYWORD
    ):
        parameter = parameter.replace(kind=parameter.KEYWORD_ONLY)
    if call is None:
        return parameter
    depends = Parameter.of(parameter).marker
    assert isinstance(depends, params.Depends)
    # Not in an `Annotated`: Python takes equal ones for the same, and another application may
    # have bound the same dependency.
    depends = dataclasses.replace(depends, dependency=call)
    return parameter.replace(default=depends, annotation=Any)


def held(pin: Any, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """A generator of a request, each step of which is run in a worker thread."""
    step: Callable[[Any], Any] = generator.send
    argument: Any = None
    while True:
        pin.enter_thread()
        try:
            value = step(argument)
            if pin.is_over:  # nobody goes on with it, so its clean-up is this thread's
                return generator.close()
        except StopIteration as stop:
            return stop.value
        finally:
            pin.leave_thread()
        try:
            step, argument = generator.send, (yield value)
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:
            step, argument = generator.throw, error


def _unused_name(signature: inspect.Signature) -> str:
    name = "lifespan_connection"
    while name in signature.parameters:
        name += "_"
    return name
