"""Bind: make a route's callables take their values from the generation of the request."""

import dataclasses
import functools
import inspect
import operator
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from starlette.requests import HTTPConnection

from fastapi_lifespan_deps._compat import EndpointContexts
from fastapi_lifespan_deps.absence import not_running
from fastapi_lifespan_deps.declare.collect import Injection, Route, lifespan_children
from fastapi_lifespan_deps.declare.params import SCOPE_KEY, Key, Marker
from fastapi_lifespan_deps.declare.plan import OverridesProvider
from fastapi_lifespan_deps.declare.signature import (
    Parameter,
    runs_in_thread,
    typed_signature,
    underlying,
)

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
        self._bound: dict[tuple[int, int], BoundCall] = {}
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
            is_held = is_using and runs_in_thread(dependant.call)
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
                marker = Marker(key.provider, key.place is None, key.place, key.durations)
                kept.append(get_dependant(path=child.path or "", call=marker))
        return kept

    def _bind_endpoint(self, route: Route, keys: Mapping[int, Key]) -> None:
        dependant, call = route.dependant, route.dependant.call
        assert call is not None
        # No parameter can have this name, and nobody reads an endpoint's signature again.
        name = dependant.http_connection_param_name or "lifespan connection"
        keep = name == dependant.http_connection_param_name
        dependant.call = bound = injecting(
            _injection(dependant, route.overrides_provider, keys), name, keep
        )
        functools.update_wrapper(bound, call, updated=())
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
            any(map(_takes_container, kept)) and runs_in_thread(dependant.call)
        ):
            return dependant
        identity = id(dependant.call), id(overrides_provider)
        call = self._bound.get(identity)
        if call is None:
            below = {child.name: child.call for child in kept if isinstance(child.call, BoundCall)}
            injection = _injection(dependant, overrides_provider, keys)
            call = self._bound[identity] = BoundCall(dependant, injection, below)
        if dependant.call != call:  # its own `__eq__` knows no stranger: overrides would miss it
            return dependant
        # a fresh object: 0.123.5 remembers the call of the old one
        return dataclasses.replace(
            dependant,
            call=call,
            dependencies=kept,
            http_connection_param_name=call.connection_parameter,
        )


class BoundCall:
    """A request-scoped dependency that takes values, or has another one below it that does.

    It equals the original, so that `dependency_overrides` and FastAPI's cache still find it.
    Its signature leads to what was bound: while overrides are active, FastAPI builds the
    dependant from it again for every request.
    """

    __wrapped__: Callable[..., Any]

    def __init__(
        self, dependant: Dependant, injection: Injection, below: Mapping[str | None, "BoundCall"]
    ) -> None:
        call = dependant.call
        assert call is not None
        functools.update_wrapper(self, call, updated=())
        signature = typed_signature(call)
        injected = {name for name, _ in injection.parameters}
        kept = [
            _redirected(parameter, below.get(name))
            for name, parameter in signature.parameters.items()
            if name not in injected
        ]
        self._call = call
        self.connection_parameter = dependant.http_connection_param_name
        if injection.parameters or runs_in_thread(call):
            self.__lifespan_injection__ = injection
            name = self.connection_parameter or _unused_name(signature)
            self._call = injecting(injection, name, keep=name == self.connection_parameter)
            if name != self.connection_parameter:
                self.connection_parameter = name
                kind = inspect.Parameter.KEYWORD_ONLY
                kept.append(inspect.Parameter(name, kind, annotation=HTTPConnection))
        kept.sort(key=operator.attrgetter("kind"))
        self.__signature__ = signature.replace(parameters=kept)
        # Up to 0.123.4 FastAPI looks here, not at `__wrapped__`, for what kind of callable it is.
        self.__dict__["__call__"] = functools.partial(underlying(call))

    def __call__(self, /, **values: Any) -> Any:
        return self._call(**values)

    def __eq__(self, other: object) -> bool:
        return self.__wrapped__ == (other.__wrapped__ if isinstance(other, BoundCall) else other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)


def _takes_container(dependant: Dependant) -> bool:
    """Whether solving it gives the container, and with it any value."""
    is_container = hasattr(dependant.call, "__lifespan_container__")
    return is_container or any(map(_takes_container, dependant.dependencies))


def _injection(
    dependant: Dependant, overrides_provider: OverridesProvider, keys: Mapping[int, Key]
) -> Injection:
    children = dependant.dependencies
    assert dependant.call is not None
    named = [(children[index].name, key) for index, key in keys.items()]
    return Injection(overrides_provider, tuple(named), dependant.call)


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


def injecting(injection: Injection, connection_parameter: str, keep: bool) -> Callable[..., Any]:
    """The callable of `injection` with its values; the hot path of every request.

    It takes `**values` only, for the endpoint may use any other name for itself.
    """
    take = operator.getitem if keep else dict.pop
    kind = underlying(injection.call)
    if inspect.iscoroutinefunction(kind) or inspect.isasyncgenfunction(kind):
        bound = _injecting(injection, connection_parameter, take)
    else:
        is_generator = inspect.isgeneratorfunction(kind)
        bound = _injecting_in_thread(injection, connection_parameter, take, is_generator)
    bound.__lifespan_injection__ = injection  # type: ignore[attr-defined]  # found again by collect.py
    return bound


def _injecting(injection: Injection, name: str, take: Callable[..., Any]) -> Callable[..., Any]:
    def bound(**values: Any) -> Any:
        connection = take(values, name)
        pin = connection.scope.get(SCOPE_KEY)
        if pin is None:
            raise not_running(injection.parameters[0][1].provider, connection.scope)
        if pin.holder is not connection.scope:
            pin = pin.run.follow(pin, connection.scope)
        return pin.generation[injection](**values)

    return bound


def _injecting_in_thread(
    injection: Injection, name: str, take: Callable[..., Any], is_generator: bool
) -> Callable[..., Any]:
    def bound(**values: Any) -> Any:
        connection = take(values, name)
        pin = connection.scope.get(SCOPE_KEY)
        if pin is None:
            if injection.parameters:
                raise not_running(injection.parameters[0][1].provider, connection.scope)
            return injection.call(**values)  # what it needs was overridden
        if pin.holder is not connection.scope:
            pin = pin.run.follow(pin, connection.scope)
        if is_generator:
            return held(pin, pin.generation[injection](**values))
        pin.enter_thread()
        try:
            return pin.generation[injection](**values)
        finally:
            pin.leave_thread()

    return bound


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
