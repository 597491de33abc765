"""Every name of FastAPI and Starlette that is not public, each with the releases it was seen in.

"All" means FastAPI 0.121.0 to 0.165.0. What differs between releases is chosen by feature test.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from types import FunctionType
from typing import Any

from fastapi import params, routing
from fastapi.dependencies import models
from fastapi.dependencies.models import Dependant
from starlette._utils import get_route_path  # all: the path without that of a mount
from starlette._utils import is_async_callable as is_async_callable  # all: asked of hooks
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp

NOTHING = Dependant()

# How many layers are taken for middleware around a mounted application.
MOST_MIDDLEWARE = 100


class Kind(Enum):
    """How FastAPI calls a callable."""

    FUNCTION = "in a worker thread"
    GENERATOR = "in worker threads"
    COROUTINE = "in the event loop"
    ASYNC_GENERATOR = "in the event loop, from beginning to end"

    @property
    def is_async(self) -> bool:
        return self in (Kind.COROUTINE, Kind.ASYNC_GENERATOR)


_FLAGS = {
    inspect.CO_ASYNC_GENERATOR: Kind.ASYNC_GENERATOR,
    inspect.CO_GENERATOR: Kind.GENERATOR,
    inspect.CO_COROUTINE: Kind.COROUTINE,
}


def kind_of(call: Any) -> Kind:
    """What FastAPI takes a callable for, in this release and under this Python.

    It does not look at the wrapper alone, nor at what is wrapped alone. Raise `ValueError` for
    one that wraps itself.
    """
    if type(call) is FunctionType and not call.__dict__:  # FastAPI has nothing else to look at
        flags = call.__code__.co_flags
        return next((kind for flag, kind in _FLAGS.items() if flags & flag), Kind.FUNCTION)
    for kind, is_kind in _IS_KIND.items():
        if is_kind(call):
            return kind
    return Kind.FUNCTION


def _by_function(name: str) -> Callable[[Any], bool]:
    # models._is_gen_callable_cached, _is_async_gen_callable_cached, _is_coroutine_callable_cached:
    # 0.140.0 and later. Without their cache, which is the whole process's and keeps what it knows.
    is_kind = getattr(models, f"_{name}_cached").__wrapped__
    return lambda call: bool(is_kind(models._CallIdentity(call)))


def _by_property(name: str) -> Callable[[Any], bool]:  # pragma: no cover - FastAPI 0.139 and before
    # Dependant.is_gen_callable, .is_async_gen_callable, .is_coroutine_callable: up to 0.139.2
    return lambda call: bool(getattr(Dependant(call=call), name))


_asked = _by_property if hasattr(Dependant, "is_gen_callable") else _by_function
# in the order in which FastAPI asks
_IS_KIND = {
    Kind.ASYNC_GENERATOR: _asked("is_async_gen_callable"),
    Kind.GENERATOR: _asked("is_gen_callable"),
    Kind.COROUTINE: _asked("is_coroutine_callable"),
}


def effective_routes(router: Any) -> Iterator[Any]:
    """The routes of a router, those of included routers as they are in effect under it.

    A mount comes as one route; its own routes are not entered. `router` is anything that has
    `routes`: an application's router, one that is mounted, or Starlette's.
    """
    # fastapi.routing.iter_route_contexts: 0.137.2 and later; before, including copied the routes
    contexts = getattr(routing, "iter_route_contexts", None)
    if contexts is None:  # pragma: no cover - FastAPI 0.136.3 and before
        yield from router.routes
        return
    for context in contexts(router.routes):
        # RouteContext._route_context: 0.137.2 and later. Its `starlette_route` is what serves
        # where FastAPI does not serve by the context itself: included WebSockets and mounts.
        effective = context._route_context
        yield getattr(effective, "starlette_route", None) or effective or context.route
    # APIRouter._iter_low_priority_routes: 0.138.0 and later, the routes of `frontend()`
    low_priority: Callable[[], Iterator[Any]] | None
    low_priority = getattr(router, "_iter_low_priority_routes", None)
    if low_priority is not None:
        yield from low_priority()


def listed_dependencies(router: Any) -> Iterator[params.Depends]:
    """What a router lists in `dependencies=[...]`, and where it includes others; and what they do.

    Up to 0.136.3 including copies the routes, and with them the lists: without routes nothing is
    left, but for what our own router notes (`included_dependencies`).
    """
    yield from getattr(router, "dependencies", ())
    yield from getattr(router, "included_dependencies", ())
    # _IncludedRouter.include_context, .original_router: 0.137.2 and later
    included = getattr(routing, "_IncludedRouter", ())
    for route in router.routes:
        if isinstance(route, included):  # pragma: no branch - FastAPI 0.136.3 and before
            yield from route.include_context.dependencies
            yield from listed_dependencies(route.original_router)


def is_frontend(route: Any) -> bool:
    """Whether a route serves files, so that its dependant's own callable is never called."""
    # _FrontendRouteGroup: 0.139.0 and later with dependencies
    group = getattr(routing, "_FrontendRouteGroup", ())
    return isinstance(getattr(route, "original_route", route), group)


def application(app: Any) -> Any:
    """The application or router inside a mounted ASGI application, behind its middleware."""
    for _ in range(MOST_MIDDLEWARE):
        if app is None or isinstance(app, Starlette | Router):
            return app
        app = getattr(app, "app", None)
    return None  # a mock, say, which has every attribute


def matched_dependant(scope: Any) -> Dependant | None:
    """What the route that a request was matched with will solve; None while nobody knows."""
    route: BaseRoute | None = scope.get("route")
    # scope["fastapi"]["effective_route_context"]: 0.137.2 and later, for an included route
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        return context.dependant  # type: ignore[no-any-return]
    endpoint = scope.get("endpoint")
    dependant: Dependant | None = getattr(route, "dependant", None)
    # scope["route"] is a mount on the way through it: Starlette 1.x, as with FastAPI 0.136.3
    is_stranger = endpoint is not None and application(endpoint) is None
    if isinstance(route, Route | WebSocketRoute) or (
        isinstance(route, Mount | Host | None) and is_stranger
    ):
        return dependant or NOTHING  # a route of Starlette's, or a stranger, solves nothing
    return dependant


def route_label(scope: Any) -> str:
    """The route of a request, or its path while it has none, for a person to read."""
    route = scope.get("route")
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        route = context
    path = getattr(route, "path", scope.get("path"))
    return f"{scope.get('method', 'WEBSOCKET')} {path}"


def overrides_provider_of(scope: Any) -> Any:
    """The application whose overrides FastAPI applies to the route of a request."""
    context = scope.get("fastapi", {}).get("effective_route_context")
    route = scope.get("route")
    if context is not None and context.original_route is route:
        return context.dependency_overrides_provider
    # APIRoute.dependency_overrides_provider, APIWebSocketRoute's: all
    return getattr(route, "dependency_overrides_provider", scope.get("app"))


def exclude_from_telemetry(app: Any, is_excluded: Callable[[str], bool]) -> None:
    """Let FastAPI's own telemetry take no notice of requests to some paths of an application."""
    # FastAPI._telemetry, which is looked at for each request: 0.142.0 and later
    config: dict[str, Any] = getattr(app, "_telemetry", {})
    before = config.get("exclude")

    def exclude(scope: Any) -> bool:
        return is_excluded(get_route_path(scope)) or (before is not None and before(scope))

    config["exclude"] = exclude


class EndpointContexts:
    """What validation errors say of the endpoints of an application: their file and line.

    FastAPI remembers that for the whole process, by the id of an endpoint. For callables that
    stand for others it is noted here, and forgotten with the application: they may live longer,
    in FastAPI's caches.
    """

    # routing._endpoint_context_cache, routing._extract_endpoint_context: 0.123.9 and later.
    # The latter reads source files: too slow for thousands of functions, and not needed there.

    def __init__(self, application: Any) -> None:
        self._known: dict[int, Any] | None = getattr(routing, "_endpoint_context_cache", None)
        self._ours: dict[int, Any] = {}
        if self._known is not None:  # pragma: no branch - FastAPI 0.123.8 and before
            weakref.finalize(application, _forget, self._known, self._ours).atexit = False

    def keep(self, bound: Callable[..., Any], call: Callable[..., Any]) -> None:
        """Let errors of `bound` go on naming `call`, which it stands for."""
        if self._known is None:  # pragma: no cover - FastAPI 0.123.8 and before
            return
        code = getattr(call, "__code__", None)
        inner = getattr(inspect.unwrap(call), "__code__", None)
        if code is not None and inner is not None:
            name = call.__name__
            context = {"file": code.co_filename, "line": inner.co_firstlineno, "function": name}
        else:
            # it is remembered for the original as well, of which FastAPI never asks; what it
            # remembers may be another's, that is no more
            self._known.pop(id(call), None)
            context = {**routing._extract_endpoint_context(call)}
            self._known.pop(id(call), None)
        self._known[id(bound)] = context
        # FastAPI may build the route anew: then the id may soon be another's
        forget = partial(_forget_one, self._known, self._ours, id(bound))
        self._ours[id(bound)] = context, weakref.ref(bound, forget)


def _forget(known: dict[int, Any], ours: dict[int, Any]) -> None:
    for key in list(ours):
        _forget_one(known, ours, key)


def _forget_one(known: dict[int, Any], ours: dict[int, Any], key: int, _: object = None) -> None:
    context, _ = ours.pop(key, (None, None))  # both may go at the same time
    if context is not None and known.get(key) is context:
        del known[key]


def called_by(call: Callable[..., Any], router: Any) -> ASGIApp:
    """What the `__call__` of a router does; without the call, if it has nothing to add."""
    # Router.__call__ awaits its middleware_stack, and that is all: all
    code = getattr(call, "__code__", None)
    if code is not None and code.co_names == ("middleware_stack",):
        inner: ASGIApp = router.middleware_stack
        return inner
    return partial(call, router)


def telemetry_of(application: Any) -> Mapping[str, Any]:
    """What `FastAPI(telemetry=...)` says, with FastAPI's defaults; nothing where it has none."""
    # FastAPI._telemetry: 0.142.0 and later
    found = getattr(application, "_telemetry", None)
    return found if isinstance(found, dict) else {}


def lifespan_parts(context: Any) -> Iterator[Any]:
    """The lifespan functions that a merged lifespan is made of, outermost first."""
    # routing._merge_lifespan_context, a closure over these two names: all
    code = getattr(getattr(context, "__wrapped__", context), "__code__", None)
    if code is not None and code.co_freevars == ("nested_context", "original_context"):
        cells = getattr(context, "__wrapped__", context).__closure__
        nested, original = (cell.cell_contents for cell in cells)
        yield from lifespan_parts(original)
        yield from lifespan_parts(nested)
    else:
        yield context


def hooked_router(context: Any) -> Any | None:
    """The router whose hooks a default lifespan runs; None for any other lifespan."""
    # _DefaultLifespan._router: all (Starlette's up to 0.128.2, then FastAPI's own)
    return context._router if type(context).__name__ == "_DefaultLifespan" else None
