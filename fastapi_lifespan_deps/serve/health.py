"""Routes of health: what an orchestrator asks, of an application and of what lives in it."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import FastAPI, params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Route

from fastapi_lifespan_deps._compat import exclude_from_telemetry
from fastapi_lifespan_deps.absence import runs_of
from fastapi_lifespan_deps.call.health import DependencyHealth, HealthReport
from fastapi_lifespan_deps.declare.options import seconds_given
from fastapi_lifespan_deps.declare.params import SCOPE_KEY
from fastapi_lifespan_deps.declare.plan import Plan, Provider
from fastapi_lifespan_deps.exceptions import LifespanDependencyError, location_of, name_of
from fastapi_lifespan_deps.live.run import Run

from .applications import lifespan_router

Endpoint = Callable[[Request], Awaitable[JSONResponse]]

# No proxy is to keep an answer.
HEADERS = {"Cache-Control": "no-store"}


def add_health_routes(
    app: FastAPI,
    *,
    livez: str | None = "/livez",
    readyz: str | None = "/readyz",
    ready: Iterable[Callable[..., Any]] = (),
    restart_if_dead: Iterable[Callable[..., Any]] = (),
    timeout: float | timedelta = 0.8,
    cache: float | timedelta = 1.0,
    details: str | None = None,
    details_dependencies: Sequence[params.Depends] = (),
) -> None:
    """Add routes that an orchestrator, such as Kubernetes, asks for the health of the application.

    They answer `{"status": "pass"}` with status 200, or `{"status": "fail"}` with 503, to GET and
    HEAD. Neither OpenAPI nor FastAPI's telemetry knows of them, and `dependencies=[...]` of the
    application do not hold for them. Its middleware does.

    Args:
        app: an application that knows the lifespan scope; also one that is mounted in another.
        livez: the path that tells whether the process should go on. It makes no check. None for
            no such route, here and below.
        readyz: the path that tells whether requests should come. It fails while the application
            does not serve, when a lifespan dependency has died, is being replaced by a refresh
            that has stopped it first, or could not be started, and when a check of `ready` fails.
        ready: providers whose `health=` has to pass. Other checks are not made for it. Name what
            only this process can lose: a database that all share takes all of them out at once.
        restart_if_dead: providers for which `livez` fails when they have died.
        timeout: seconds, or a `timedelta`, that each check may take.
        cache: seconds, or a `timedelta`, for which what a check has found holds. 0 for no time.
        details: a path that tells of each lifespan dependency: its name, its status, and how many
            seconds its check took. It makes all checks. Errors are for the log alone.
        details_dependencies: `Depends(...)` that guard the details.

    Raises:
        LifespanDependencyError: the application does not know the lifespan scope; or a path is
            answered by another route already. When the application starts: nothing declares one
            of the providers, or one in `ready` has no `health=` itself.
        TypeError: what is no list of providers, or of `Depends`.
        ValueError: a path without `/` at its beginning, or times that make no sense.

    Example:
        ```python
        app = LifespanFastAPI()
        add_health_routes(app, ready=[get_model])
        ```
    """
    router = lifespan_router(app)
    health = _Health(
        _providers("ready", ready),
        _providers("restart_if_dead", restart_if_dead),
        seconds_given("timeout", timeout),
        seconds_given("cache", cache, may_be_0=True),
    )
    _check_dependencies(details, details_dependencies)
    paths = {"livez": livez, "readyz": readyz, "details": details}
    asked = {name: path for name, path in paths.items() if path is not None}
    routes: list[BaseRoute] = []
    for name, path in asked.items():
        _check_path(name, path, [*router.routes, *routes])
        endpoint: Endpoint = getattr(health, name)
        if name == "details":
            route = _guarded(app, path, endpoint, details_dependencies)
        else:
            route = Route(path, endpoint, include_in_schema=False)
        routes.append(route)
    for route in routes:
        router.routes.append(route)
    router.requirements.append(health.check)
    exclude_from_telemetry(app, frozenset(asked.values()).__contains__)


def _guarded(
    app: FastAPI, path: str, endpoint: Endpoint, dependencies: Sequence[params.Depends]
) -> BaseRoute:
    """A route whose own dependencies FastAPI solves, and not those of the application."""
    return APIRoute(
        path,
        endpoint,
        methods=["GET", "HEAD"],
        dependencies=dependencies,
        dependency_overrides_provider=app,
        response_model=None,
        include_in_schema=False,
    )


@dataclass(frozen=True, slots=True)
class _Health:
    """What the routes answer; durations in seconds."""

    ready: tuple[Provider, ...]
    restart_if_dead: tuple[Provider, ...]
    timeout: float
    cache: float

    async def livez(self, request: Request) -> JSONResponse:
        run = _run_of(request)
        is_dead = run is not None and run.calls.checks.has_died(self.restart_if_dead)
        return _answer(is_passing=not is_dead)

    async def readyz(self, request: Request) -> JSONResponse:
        report = await self._report(request, self.ready)
        return _answer(is_passing=report.status == "pass")

    async def details(self, request: Request) -> JSONResponse:
        report = await self._report(request)
        found = [_shown(one) for one in report.dependencies]
        return _answer(is_passing=report.status == "pass", dependencies=found)

    async def _report(
        self, request: Request, providers: Collection[Provider] | None = None
    ) -> HealthReport:
        run = _run_of(request)
        if run is None or run.live.phase != "serving":
            return HealthReport(status="fail", dependencies=())
        self.check(run.live.originals, run.current.plan)
        report: HealthReport = await run.calls.checks.report(
            self.timeout, providers, max_age=self.cache
        )
        return report

    def check(self, originals: Plan, plan: Plan) -> None:
        """Raise if what was named makes no sense for a plan, and that without overrides."""
        for name, providers in (("ready", self.ready), ("restart_if_dead", self.restart_if_dead)):
            for provider in providers:
                asked = f"add_health_routes({name}=[{name_of(provider)}])"
                if not any(provider in one.behind for one in (originals, plan)):
                    raise LifespanDependencyError(
                        f'{asked}: nothing declares it with scope="lifespan" '
                        f"({location_of(provider)}). Name the callable that is given to Depends."
                    )
                if name == "ready" and plan.option(provider, "health") is None:
                    raise LifespanDependencyError(
                        f"{asked}: it has no health check ({location_of(provider)}). Give it one: "
                        f'Depends({name_of(provider)}, scope="lifespan", health=...). Or leave it '
                        "out: if it dies, the application is not ready anyway."
                    )


def _run_of(request: Request) -> Run | None:
    """The run that a request has come to, also where nothing has values; None if there is none."""
    pin = request.scope.get(SCOPE_KEY)
    if pin is not None:
        run: Run = pin.run
        return run
    runs = runs_of(request.scope)
    return None if runs is None else runs.find(request.scope)


def _answer(*, is_passing: bool, **more: Any) -> JSONResponse:
    body = {"status": "pass" if is_passing else "fail", **more}
    return JSONResponse(body, 200 if is_passing else 503, HEADERS)


def _shown(health: DependencyHealth) -> dict[str, Any]:
    """What a client may read: no error."""
    seconds = None if health.seconds is None else round(health.seconds, 6)
    return {"name": health.name, "status": health.status, "seconds": seconds}


def _providers(name: str, providers: Iterable[Provider]) -> tuple[Provider, ...]:
    if callable(providers) or not isinstance(providers, Iterable):
        shown = name_of(providers)
        raise TypeError(f"{name}={shown}: give a list of providers, such as {name}=[{shown}]")
    found = tuple(providers)
    for provider in found:
        if not callable(provider):
            raise TypeError(
                f"{name}=[{provider!r}]: give the callables themselves that are given to Depends"
            )
    return found


def _check_dependencies(details: str | None, dependencies: Sequence[params.Depends]) -> None:
    if isinstance(dependencies, params.Depends) or not all(
        isinstance(one, params.Depends) for one in dependencies
    ):
        raise TypeError("details_dependencies: give a list of Depends(...)")
    if details is None and dependencies:
        raise ValueError('details_dependencies guard nothing: give a path, details="/healthz"')


def _check_path(name: str, path: str, routes: Iterable[BaseRoute]) -> None:
    if not path.startswith("/"):
        raise ValueError(f'{name}={path!r}: a path begins with "/"')
    taken = next(_answering(path, routes), None)
    if taken is not None:
        call = getattr(taken, "endpoint", None)
        by = f"`{name_of(call)}` ({location_of(call)})" if call else "what is mounted or included"
        if isinstance(getattr(call, "__self__", None), _Health):
            by = "an earlier add_health_routes"
        raise LifespanDependencyError(
            f"add_health_routes({name}={path!r}): {by} answers that path already. Choose another "
            f"one, add the health routes first, or leave this one out: {name}=None."
        )


def _answering(path: str, routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes that would answer a request before one that comes now."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    for route in routes:
        match, _ = route.matches(dict(scope))
        if match is Match.FULL:
            yield route
