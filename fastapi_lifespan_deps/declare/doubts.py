"""Doubts: what FastAPI takes without a word, and nobody can have meant."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, get_args, get_origin

from fastapi import params
from fastapi.dependencies.models import Dependant

from fastapi_lifespan_deps.exceptions import InvalidDependencyScope, location_of, name_of

from .collect import LifecycleFunction, Route, Source
from .params import marker_behind
from .plan import Plan

SCOPES = (None, "function", "request", "lifespan")


def doubts(sources: Iterable[Source | LifecycleFunction], plan: Plan) -> Iterator[str]:
    """What is to be said of an application that starts with this plan."""
    routes = [source for source in sources if isinstance(source, Route)]
    for route in routes:
        for declaration, call in _declared_in(route):
            if declaration.scope not in SCOPES:
                yield (
                    f"{route.label} declares `{name_of(call)}` ({location_of(call)}): "
                    f"{InvalidDependencyScope(declaration.scope)} FastAPI takes no notice of it."
                )
    for overrides in plan.overrides.values():
        for key in overrides:
            alias = getattr(key, "__value__", key)  # of `type Name = Annotated[...]`
            if get_origin(alias) is Annotated:
                kind, *metadata = get_args(alias)
                found = [one.dependency for one in metadata if isinstance(one, params.Depends)]
                marker = marker_behind(found[0]) if found else None
                name = name_of(marker.provider if marker else (found or [None])[0] or kind)
                yield (
                    f"dependency_overrides[Annotated[{name_of(kind)}, ...]] overrides nothing: its "
                    f"key is an annotation. Use what the annotation declares: `{name}`."
                )
            elif inspect.isclass(key) and not _is_declared(key, routes, plan):
                yield (
                    f"dependency_overrides[{name_of(key)}] overrides nothing: nothing declares "
                    "that class. Use the very function or class that is passed to `Depends`."
                )


def _declared_in(route: Route) -> Iterator[tuple[Any, Any]]:
    """What the dependencies of a route were declared by, and what they call."""
    for depends in route.listed_dependencies:  # FastAPI 0.121.0 does not keep their scope
        yield depends, depends.dependency
    for dependant in _below(route.dependant):
        yield dependant, dependant.call


def _below(dependant: Dependant) -> Iterator[Dependant]:
    for child in dependant.dependencies:
        yield child
        yield from _below(child)


def _is_declared(kind: type, routes: Iterable[Route], plan: Plan) -> bool:
    if any(key.provider is kind for _, key in plan.resolved):
        return True
    calls = (call for route in routes for _, call in _declared_in(route))
    return any(getattr(call, "__wrapped__", call) is kind for call in calls)
