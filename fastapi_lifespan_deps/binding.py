"""Bind: make a route's callables take their values from the generation of the request."""

import dataclasses
import functools
import inspect
import operator
import threading
from collections.abc import Callable
from typing import Any

from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection

from ._compat import keep_endpoint_context
from .collect import Route, Site, lifespan_children
from .params import SCOPE_KEY, Marker, not_running
from .plan import Domain
from .signature import typed_signature, underlying

# FastAPI's dependants belong to the application, not to a run: two runs that start in two
# threads must not bind one of them twice.
_one_at_a_time = threading.Lock()


def bind(route: Route) -> None:
    """Rewrite what serves `route`, once; what needs no values is left as it is.

    A FastAPI dependency costs microseconds per request whatever it does, so lifespan
    dependencies leave the dependant. Instead its `call` becomes a callable that takes the
    connection, finds the generation in its scope, and adds all values in one merge.
    """
    with _one_at_a_time:
        dependant = route.dependant
        _bind_children(dependant, route.domain, route)
        site, others = _split(dependant, route.domain, route)
        if site.parameters and route.is_called:
            # No parameter can have this name, and nobody reads an endpoint's signature again.
            name = dependant.http_connection_param_name or "lifespan connection"
            keep = name == dependant.http_connection_param_name
            assert dependant.call is not None
            bound = _injecting(dependant.call, site, name, keep)
            functools.update_wrapper(bound, dependant.call, updated=())
            keep_endpoint_context(bound, dependant.call)
            dependant.call = bound
            dependant.http_connection_param_name = name
            dependant.dependencies[:] = others


class BoundCall:
    """A request-scoped dependency that takes values.

    It equals the original, so that `dependency_overrides` and FastAPI's cache still find it,
    and has a signature without the values: while overrides are active, FastAPI builds the
    dependant from it again for every request.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, call: Callable[..., Any], site: Site) -> None:
        functools.update_wrapper(self, call, updated=())
        self.__lifespan_site__ = site
        signature = typed_signature(call)
        injected = {name for name, _ in site.parameters}
        kept = [p for name, p in signature.parameters.items() if name not in injected]
        connection = inspect.Parameter(
            _unused_name(signature), inspect.Parameter.KEYWORD_ONLY, annotation=HTTPConnection
        )
        rest = len(kept) - any(p.kind is p.VAR_KEYWORD for p in kept)
        kept.insert(rest, connection)
        self.__signature__ = signature.replace(parameters=kept)
        self.connection_parameter = connection.name
        self._call = _injecting(call, site, connection.name, keep=False)
        # Up to 0.123.4 FastAPI looks here, not at `__wrapped__`, for what kind of callable it is.
        self.__dict__["__call__"] = functools.partial(underlying(call))

    def __call__(self, **values: Any) -> Any:
        return self._call(**values)

    def __eq__(self, other: object) -> bool:
        return self.__wrapped__ == (other.__wrapped__ if isinstance(other, BoundCall) else other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)


def _bind_children(dependant: Dependant, domain: Domain, route: Route | None = None) -> None:
    keys = lifespan_children(dependant, route)
    for index, child in enumerate(dependant.dependencies):
        if index not in keys:
            _bind_children(child, domain)
            site, others = _split(child, domain)
            if site.parameters:
                assert child.call is not None
                call = BoundCall(child.call, site)
                name = call.connection_parameter
                # a fresh object: 0.123.5 remembers the call of the old one
                dependant.dependencies[index] = dataclasses.replace(
                    child, call=call, dependencies=others, http_connection_param_name=name
                )
        elif route is not None and not route.is_called:
            key = keys[index]
            marker = Marker(key.provider, key.place is None, key.place)
            dependant.dependencies[index] = dataclasses.replace(child, call=marker)


def _split(
    dependant: Dependant, domain: Domain, route: Route | None = None
) -> tuple[Site, list[Dependant]]:
    """The values that a dependant takes, and its other dependencies."""
    keys = lifespan_children(dependant, route)
    children = dependant.dependencies
    site = Site(domain, tuple((children[index].name, key) for index, key in keys.items()))
    return site, [child for index, child in enumerate(children) if index not in keys]


def _injecting(
    call: Callable[..., Any], site: Site, connection_parameter: str, keep: bool
) -> Callable[..., Any]:
    """`call` with the values of `site` added; the hot path of every request."""
    take = operator.getitem if keep else dict.pop

    # Only `**values`: the endpoint may use any other name for itself.
    def bound(**values: Any) -> Any:
        connection = take(values, connection_parameter)
        generation = connection.scope.get(SCOPE_KEY)
        if generation is None:
            raise not_running(site.parameters[0][1].provider, connection)
        return call(**values, **generation[site])

    bound.__lifespan_site__ = site  # type: ignore[attr-defined]  # found again by collect.py
    return bound


def _unused_name(signature: inspect.Signature) -> str:
    name = "lifespan_connection"
    while name in signature.parameters:
        name += "_"
    return name
