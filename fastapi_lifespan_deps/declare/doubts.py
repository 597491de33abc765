"""Doubts: what FastAPI takes without a word, and nobody can have meant."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, get_args

from fastapi import params
from fastapi.dependencies.models import Dependant

from fastapi_lifespan_deps.exceptions import InvalidDependencyScope, location_of, name_of

from .collect import Route, Source, bound_by
from .params import marker_behind
from .plan import Plan
from .signature import is_annotated, parameters

SCOPES = (None, "function", "request", "lifespan")


def doubts(sources: Iterable[Source], plan: Plan) -> list[str]:
    """What is to be said of an application that starts with this plan, each thing once."""
    routes = [source for source in sources if isinstance(source, Route)]
    found: dict[object, str] = {}
    for what, doubt in _wrong_scopes(routes):
        found.setdefault(what, doubt)
    keys = [key for overrides in plan.overrides.values() for key in overrides]
    if keys:
        calls = [*_calls(routes, plan)]
        for key in keys:
            with suppress(Exception):  # it may be any object
                found[key] = _about_key(key, calls)
    return [doubt for doubt in found.values() if doubt]


def unused_overrides(sources: Iterable[Source], plan: Plan) -> list[str]:
    """What is said of an override of which nobody has a use, where somebody asks.

    A startup does not say it: tests set overrides for more than the one application.
    """
    sources = list(sources)
    routes = [source for source in sources if isinstance(source, Route)]
    others = [source.target for source in sources if not isinstance(source, Route)]
    calls = [*_calls(routes, plan, others)]
    found: dict[object, str] = {}
    for overrides in plan.overrides.values():
        for key in overrides:
            with suppress(Exception):  # it may be any object
                if not _about_key(key, calls) and not any(call == key for call in calls):
                    found[key] = (
                        f"dependency_overrides[{name_of(key)}] overrides nothing: nothing declares "
                        f"it ({location_of(key)})."
                    )
    return list(found.values())


def _wrong_scopes(routes: Iterable[Route]) -> Iterator[tuple[object, str]]:
    for route in routes:
        for declaration, call in _declared_in(route):
            if declaration.scope not in SCOPES:
                yield (
                    (declaration.scope, id(call)),
                    f"{route.label} declares `{name_of(call)}` ({location_of(call)}): "
                    f"{InvalidDependencyScope(declaration.scope)} FastAPI takes no notice of it.",
                )


def _about_key(key: Any, calls: Iterable[Any]) -> str:
    """What is wrong with the key of an override; nothing, most often."""
    alias = getattr(key, "__value__", key)  # of `type Name = Annotated[...]`
    if is_annotated(key):
        kind, *metadata = get_args(alias)
        dependency = [one.dependency for one in metadata if isinstance(one, params.Depends)]
        marker = marker_behind(dependency[0]) if dependency else None
        name = name_of(marker.provider if marker else (dependency or [None])[0] or kind)
        return (
            f"dependency_overrides[Annotated[{name_of(kind)}, ...]] overrides nothing: its key is "
            f"an annotation. Use what the annotation declares: `{name}`."
        )
    if inspect.isclass(key) and not any(call is key for call in calls):
        return (
            f"dependency_overrides[{name_of(key)}] overrides nothing: nothing declares that "
            "class. Use the very function or class that is passed to `Depends`."
        )
    return ""


def _declared_in(route: Route) -> Iterator[tuple[Any, Any]]:
    """What the dependencies of a route were declared by, and what they call."""
    for depends in route.listed_dependencies:  # FastAPI 0.121.0 does not keep their scope
        yield depends, depends.dependency
    for dependant in _below(route.dependant):
        yield dependant, bound_by(dependant.call)


def _below(dependant: Dependant) -> Iterator[Dependant]:
    for child in dependant.dependencies:
        yield child
        yield from _below(child)


def _calls(routes: Iterable[Route], plan: Plan, others: Iterable[Any] = ()) -> Iterator[Any]:
    """All that may be called for a dependency: of routes and others, at the start, by overrides."""
    left = [*others, *(key.provider for _, key in plan.resolved)]
    left += [call for route in routes for _, call in _declared_in(route)]
    left += [override for overrides in plan.overrides.values() for override in overrides.values()]
    seen: set[int] = set()
    while left:
        call = left.pop()
        if id(call) in seen or not callable(call):
            continue
        seen.add(id(call))
        yield call
        with suppress(Exception):  # nobody can tell what it takes
            for one in parameters(call):
                if isinstance(one.marker, params.Depends):
                    dependency = one.marker.dependency or one.annotation
                    marker = marker_behind(dependency)
                    left.append(dependency if marker is None else marker.provider)
