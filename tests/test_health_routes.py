"""What an orchestrator is answered: whatever the application is, does, and suffers."""

import functools
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Annotated, Any

import anyio
import fastapi
import httpx
import pytest
import trio
from fastapi import APIRouter, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Host, Mount
from starlette.types import ASGIApp
from trio.testing import MockClock

from fastapi_lifespan_deps import (
    Depends,
    LifespanDependencyError,
    LifespanFastAPI,
    add_health_routes,
    enable_lifespan_scope,
)
from tests.clients import PATIENCE, Gate, Thing, client_of, running, settle
from tests.processes import ServerProcess
from tests.services import free_port
from tests.test_events import Listener

pytestmark = pytest.mark.anyio

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
Status = tuple[int, str]
PASS, FAIL = (200, "pass"), (503, "fail")


def lifespan(provider: Callable[..., Any], **options: Any) -> Any:
    return Depends(provider, scope="lifespan", **options)


async def get_thing() -> AsyncIterator[Thing]:
    thing = Thing("thing")
    yield thing
    thing.closed = True


async def get_other() -> str:
    return "other"


class Check:
    """A check that passes, unless it is told to fail; it counts."""

    def __init__(self) -> None:
        self.count = 0
        self.is_failing = False

    async def __call__(self, value: Any) -> bool:
        self.count += 1
        return not self.is_failing


class Service:
    """An application with a thing, which has a check, and what else is declared."""

    def __init__(self, *declared: Any, app: Any = None, **options: Any) -> None:
        self.check = Check()
        self.app = app or LifespanFastAPI()
        thing = lifespan(get_thing, health=self.check)
        self.app.get("/", dependencies=[thing, *declared])(lambda: "fine")
        options = {"ready": [get_thing], "cache": 0, "timeout": PATIENCE, **options}
        add_health_routes(self.app, **options)


async def status(client: httpx.AsyncClient, path: str) -> Status:
    with anyio.fail_after(PATIENCE):
        response = await client.get(path)
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    if not path.endswith("healthz"):
        assert body.keys() == {"status"}
    return response.status_code, body["status"]


# --- What they answer


async def test_readiness_follows_the_checks_that_were_named_and_liveness_none() -> None:
    other = Check()
    service = Service(lifespan(get_other, health=other), details="/healthz")
    async with running(service.app) as client:
        for is_failing in (False, True, False):
            service.check.is_failing = is_failing
            expected = FAIL if is_failing else PASS
            assert await status(client, "/readyz") == expected
            assert await status(client, "/livez") == PASS
            assert await status(client, "/healthz") == expected
        service.check.count = other.count = 0
        other.is_failing = True
        assert await status(client, "/livez") == PASS
        assert (service.check.count, other.count) == (0, 0)
        assert await status(client, "/readyz") == PASS
        assert (service.check.count, other.count) == (1, 0)
        assert await status(client, "/healthz") == FAIL
        assert (service.check.count, other.count) == (2, 1)


async def test_details_tell_names_and_seconds_and_never_errors() -> None:
    async def fails(value: Any) -> None:
        raise OSError("postgresql://user:secret@localhost/shop")

    service = Service(lifespan(get_other, health=fails), details="/healthz")
    async with running(service.app) as client:
        response = await client.get("/healthz")
        body = response.json()
        first, second = body["dependencies"]
        assert body.keys() == {"status", "dependencies"}
        assert first.keys() == second.keys() == {"name", "status", "seconds"}
        assert (first["name"], first["status"]) == ("get_thing", "pass")
        assert (second["name"], second["status"]) == ("get_other", "fail")
        assert second["seconds"] > 0
        assert "secret" not in response.text


async def test_nobody_is_asked_for_a_path_that_is_left_out() -> None:
    app = Service(livez=None, readyz=None, details="/healthz").app
    async with running(app) as client:
        assert (await client.get("/livez")).status_code == 404
        assert (await client.get("/readyz")).status_code == 404
        assert await status(client, "/healthz") == PASS


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
async def test_head_is_answered_too_and_nothing_else(path: str) -> None:
    async with running(Service(details="/healthz").app) as client:
        assert (await client.head(path)).status_code == 200
        assert (await client.post(path)).status_code == 405


async def test_an_application_without_lifespan_dependencies_is_ready_when_it_serves() -> None:
    app = LifespanFastAPI()
    add_health_routes(app, details="/healthz")
    async with client_of(app) as client:
        assert await status(client, "/readyz") == FAIL
        assert await status(client, "/livez") == PASS
    async with running(app) as client:
        assert await status(client, "/readyz") == PASS
        assert await status(client, "/healthz") == PASS


async def test_it_is_ready_neither_before_it_serves_nor_when_it_stops_nor_afterwards() -> None:
    found: list[Status] = []

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with client_of(app) as client:
            found.append(await status(client, "/readyz"))
            found.append(await status(client, "/livez"))
            yield
            found.append(await status(client, "/readyz"))
            found.append(await status(client, "/livez"))

    app = Service(app=LifespanFastAPI(lifespan=run)).app
    async with running(app) as client:
        assert await status(client, "/readyz") == PASS
    assert found == [FAIL, PASS, FAIL, PASS]
    async with client_of(app) as client:
        assert await status(client, "/readyz") == FAIL


async def test_it_is_not_ready_in_another_event_loop() -> None:
    service = Service()

    async def ask() -> Status:
        async with client_of(service.app) as client:
            return await status(client, "/readyz")

    async with running(service.app):
        assert await anyio.to_thread.run_sync(anyio.run, ask) == FAIL


def test_two_runs_of_one_application_answer_for_themselves() -> None:
    service = Service(cache=math.inf)
    with TestClient(service.app) as one, TestClient(service.app) as other:
        assert one.get("/readyz").status_code == 200
        service.check.is_failing = True
        assert one.get("/readyz").status_code == 200  # what was found holds
        assert other.get("/readyz").status_code == 503
    assert service.check.count == 2


async def test_what_has_died_takes_readiness_and_if_asked_for_liveness() -> None:
    gate, listener = Gate(), Listener()

    async def get_consumer() -> AsyncIterator[str]:
        async def consume() -> None:
            await gate.wait()
            raise OSError("cut")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            yield "consumer"
            tasks.cancel_scope.cancel()

    app = LifespanFastAPI(on_lifespan_event=listener)
    add_health_routes(app, livez="/lives", readyz=None, restart_if_dead=[get_thing])
    service = Service(lifespan(get_consumer), app=app, restart_if_dead=[get_consumer], ready=[])
    with pytest.raises(ExceptionGroup):
        async with running(service.app) as client:
            assert await status(client, "/livez") == PASS
            assert await status(client, "/readyz") == PASS
            gate.open()
            await listener.until("died")
            assert await status(client, "/readyz") == FAIL
            assert await status(client, "/livez") == FAIL
            assert await status(client, "/lives") == PASS
            gate.opened = anyio.Event()
            await app.lifespan_container.refresh(get_consumer)
            assert await status(client, "/readyz") == PASS
            assert await status(client, "/livez") == PASS


async def test_what_a_refresh_has_stopped_first_takes_readiness_until_it_is_back() -> None:
    gate = Gate()

    async def get_model() -> str:
        if started:
            await gate.wait()
        started.append("model")
        return "model"

    started: list[str] = []
    service = Service(lifespan(get_model), ready=[], restart_if_dead=[get_model])
    async with running(service.app) as client, anyio.create_task_group() as tasks:
        refresh = service.app.lifespan_container.refresh
        tasks.start_soon(functools.partial(refresh, policy="resource_preserving"), get_model)
        await gate.hold()
        assert await status(client, "/readyz") == FAIL
        assert await status(client, "/livez") == PASS
        gate.open()
        await settle()
        assert await status(client, "/readyz") == PASS


async def test_a_fake_in_the_place_of_what_is_named_passes_or_follows_its_own_check() -> None:
    own = Check()

    async def fake() -> str:
        return "fake"

    async def checked() -> str:
        return "checked"

    async def with_check(value: Annotated[str, lifespan(checked, health=own)]) -> str:
        return value

    async def broken() -> None:
        raise OSError

    service = Service()
    service.check.is_failing = True
    service.app.dependency_overrides[get_thing] = fake
    async with running(service.app) as client:
        assert await status(client, "/readyz") == PASS
        service.app.dependency_overrides[get_thing] = broken
        assert await status(client, "/readyz") == FAIL
        service.app.dependency_overrides = {get_thing: with_check, get_other: checked}
        assert await status(client, "/readyz") == PASS  # what the fake takes was not named
        service.app.dependency_overrides = {}
        assert await status(client, "/readyz") == FAIL


# --- Where they stand


async def require_header(token: Annotated[str, Header()]) -> None: ...


async def test_dependencies_of_the_application_and_openapi_know_nothing_of_them() -> None:
    app = LifespanFastAPI(dependencies=[fastapi.Depends(require_header)])
    service = Service(app=app, details="/healthz")
    async with running(service.app) as client:
        assert (await client.get("/")).status_code == 422
        for path in ("/livez", "/readyz", "/healthz"):
            assert await status(client, path) == PASS
        assert list((await client.get("/openapi.json")).json()["paths"]) == ["/"]


async def test_details_are_guarded_by_dependencies_of_their_own() -> None:
    async def get_password() -> str:
        return "opensesame"

    async def admin(
        password: Annotated[str, lifespan(get_password)], token: Annotated[str, Header()] = ""
    ) -> None:
        if token != password:
            raise HTTPException(403)

    def everybody() -> None: ...

    app = LifespanFastAPI(dependencies=[fastapi.Depends(require_header)])
    guard = fastapi.Depends(admin)
    service = Service(app=app, details="/healthz", details_dependencies=[guard])
    async with running(service.app) as client:
        assert (await client.get("/healthz")).status_code == 403
        assert (await client.get("/healthz", headers={"token": "opensesame"})).status_code == 200
        app.dependency_overrides[admin] = everybody
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("first", [True, False])
async def test_it_makes_no_difference_when_they_are_added(first: bool) -> None:
    check = Check()
    app = FastAPI()
    if first:
        enable_lifespan_scope(app)
        add_health_routes(app, ready=[get_thing])
    router = APIRouter(dependencies=[fastapi.Depends(require_header)])
    router.get("/thing", dependencies=[lifespan(get_thing, health=check)])(lambda: None)
    app.include_router(router)
    if not first:
        enable_lifespan_scope(app)
        add_health_routes(app, ready=[get_thing])
    async with running(app) as client:
        assert await status(client, "/readyz") == PASS
        assert check.count == 1


@pytest.mark.parametrize("enters", [True, False])
async def test_a_mounted_application_answers_for_the_run_of_its_parent(enters: bool) -> None:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with sub.router.lifespan_context(sub):
            yield

    service = Service(details="/healthz")
    sub = service.app
    app = LifespanFastAPI(lifespan=run if enters else None)
    app.mount("/sub", sub)
    add_health_routes(app)
    async with running(app) as client:
        for path in ("/readyz", "/livez", "/sub/readyz", "/sub/livez", "/sub/healthz"):
            assert await status(client, path) == PASS
        service.check.is_failing = True
        assert await status(client, "/readyz") == PASS
        assert await status(client, "/sub/readyz") == FAIL


async def test_in_a_plain_parent_a_mounted_application_runs_if_it_is_entered() -> None:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with sub.router.lifespan_context(sub):
            yield

    sub = Service().app
    for function, expected in ((None, FAIL), (run, PASS)):
        app = FastAPI(lifespan=function)
        app.mount("/sub", sub)
        async with running(app) as client:
            assert await status(client, "/sub/readyz") == expected


@pytest.mark.skipif(not hasattr(FastAPI(), "_telemetry"), reason="from 0.142.0 on")
@pytest.mark.parametrize("excludes", [True, False])
async def test_telemetry_of_fastapi_knows_nothing_of_them(excludes: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry: Any = {"tracer_provider": provider}
    if excludes:
        telemetry["exclude"] = lambda scope: scope["path"] == "/other"
    service = Service(app=LifespanFastAPI(telemetry=telemetry), details="/healthz")
    service.app.get("/other")(lambda: None)
    async with running(service.app) as client:
        for path in ("/livez", "/readyz", "/healthz", "/other"):
            await client.get(path)
        assert [span.name for span in exporter.get_finished_spans() if "GET" in span.name] == (
            [] if excludes else ["GET /other"]
        )
        await client.get("/")
        assert "GET /" in [span.name for span in exporter.get_finished_spans()]


# --- How long what was found holds


async def test_what_was_found_holds_for_a_while_for_all_routes() -> None:
    service = Service(cache=math.inf, details="/healthz")
    add_health_routes(service.app, livez=None, readyz="/ready", ready=[get_thing], cache=0)
    async with running(service.app) as client:
        assert await status(client, "/readyz") == PASS
        service.check.is_failing = True
        assert await status(client, "/readyz") == PASS
        assert await status(client, "/healthz") == PASS
        assert service.check.count == 1
        assert await status(client, "/ready") == FAIL
        service.check.is_failing = False
        assert await status(client, "/readyz") == FAIL
        assert await status(client, "/healthz") == FAIL
        assert service.check.count == 2
        await service.app.lifespan_container.refresh(get_thing)  # another instance
        assert await status(client, "/readyz") == PASS
        assert service.check.count == 3


def test_what_was_found_holds_as_long_as_was_asked() -> None:
    async def main() -> None:
        service = Service(cache=timedelta(seconds=10))
        async with running(service.app) as client:
            for wait, count in ((0, 1), (9, 1), (2, 2), (9.5, 2), (1, 3)):
                await trio.sleep(wait)
                await client.get("/readyz")
                assert service.check.count == count

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_many_clients_at_once_cause_one_check() -> None:
    gate, count = Gate(), 0

    async def wait(value: Any) -> None:
        nonlocal count
        count += 1
        await gate.wait()

    app = LifespanFastAPI()
    app.get("/", dependencies=[lifespan(get_thing, health=wait)])(lambda: None)
    add_health_routes(app, ready=[get_thing], details="/healthz", timeout=PATIENCE)
    found: list[Status] = []

    async def ask(path: str) -> None:
        found.append(await status(client, path))

    async with running(app) as client, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask, "/readyz")
            tasks.start_soon(ask, "/healthz")
        await gate.hold()
        await settle()
        assert (count, found) == (1, [])
        gate.open()
        await settle()
        assert found == [PASS] * 40


# --- On a server


class Server:
    """tests/served_health.py under uvicorn."""

    def __init__(self, port: int, process: ServerProcess) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        self.process = process

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        return response.json() if response.status_code == 200 else response.status_code


@contextmanager
def served() -> Iterator[Server]:
    port = free_port()
    command = ["-W", "error", "-m", "uvicorn", "tests.served_health:app", "--port", str(port)]
    with ServerProcess(command) as process:
        process.read_until(r"(Application startup complete\.)")
        process.read_until("(Uvicorn running)")
        server = Server(port, process)
        with server.client:
            yield server


@pytest.mark.server
def test_under_load_and_refreshes_all_is_ready_and_one_check_serves_many() -> None:
    with served() as server, ThreadPoolExecutor(10) as threads:
        paths = ["/readyz", "/value", "/livez", "/healthz", "/readyz"] * 80
        for index in range(0, 400, 20):
            paths.insert(index, "/refresh")
        answers = list(threads.map(lambda path: server.client.get(path).status_code, paths))
        assert set(answers) == {200}
        assert 0 < server.get("/checks") <= 3 * 80


@pytest.mark.server
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_hanging_check_holds_up_neither_requests_nor_draining_nor_the_shutdown(
    kind: str,
) -> None:
    with served() as server, ThreadPoolExecutor(10) as threads:
        assert server.get("/healthz")["status"] == "pass"
        server.get(f"/hang/{kind}")
        asking = threads.submit(server.get, "/healthz")
        server.process.read_until("(hangs)")
        assert server.get("/value") is True
        assert server.get("/livez") == {"status": "pass"}
        server.get("/refresh")
        server.process.read_until("(stopped)")
        assert asking.result() == 503
        assert server.get("/readyz") == ({"status": "pass"} if kind == "sync" else 503)
        if kind == "sync":
            server.get("/go_on")
            while server.get("/healthz") == 503:
                pass
        server.get(f"/hang/{kind}")
        threads.submit(server.get, "/healthz")
        server.process.process.terminate()
        server.process.wait()
        assert "Application shutdown complete." in server.process.output


# --- What makes no sense


def nothing_declared(**options: Any) -> LifespanFastAPI:
    app = LifespanFastAPI()
    add_health_routes(app, **options)
    return app


def without_check(**options: Any) -> LifespanFastAPI:
    app = LifespanFastAPI(dependencies=[lifespan(get_thing)])
    add_health_routes(app, **options)
    return app


AT_STARTUP: list[tuple[Any, str, str]] = [
    (
        nothing_declared,
        "ready",
        'nothing declares it with scope="lifespan" ({}). '
        "Name the callable that is given to Depends.",
    ),
    (
        nothing_declared,
        "restart_if_dead",
        'nothing declares it with scope="lifespan" ({}). '
        "Name the callable that is given to Depends.",
    ),
    (
        without_check,
        "ready",
        "it has no health check ({}). Give it one: Depends(get_thing, "
        'scope="lifespan", health=...). Or leave it out: if it dies, the application is not ready '
        "anyway.",
    ),
]
EMBEDDED: list[Callable[[LifespanFastAPI], ASGIApp]] = [
    lambda app: app,
    lambda app: LifespanFastAPI(routes=[Mount("/sub", app)]),
    lambda app: LifespanFastAPI(routes=[Host("api.example.org", app)]),
]


@pytest.mark.parametrize("embedded", EMBEDDED[:1])
@pytest.mark.parametrize(("make", "name", "problem"), AT_STARTUP)
@ON_ASYNCIO
async def test_what_cannot_be_asked_for_fails_the_startup(
    make: Any, name: str, problem: str, embedded: Any
) -> None:
    app = embedded(make(**{name: [get_thing]}))
    with pytest.raises(LifespanDependencyError) as refused:
        async with running(app):
            pass
    where = f"tests{os.sep}test_health_routes.py:{get_thing.__code__.co_firstlineno}"
    assert str(refused.value) == (f"add_health_routes({name}=[get_thing]): {problem.format(where)}")


@pytest.mark.parametrize("embedded", EMBEDDED)
@ON_ASYNCIO
async def test_what_a_mounted_application_cannot_ask_for_fails_the_startup_too(
    embedded: Any,
) -> None:
    app = embedded(without_check(ready=[get_thing]))
    with pytest.raises(LifespanDependencyError, match="it has no health check"):
        async with running(app):
            pass


async def test_what_a_mounted_application_of_health_routes_alone_asks_for_is_told_to_them() -> None:
    sub = LifespanFastAPI()
    add_health_routes(sub, ready=[get_other])
    app = Service().app
    app.mount("/sub", sub)
    with pytest.raises(LifespanDependencyError, match=r"ready=\[get_other\]"):
        async with running(app) as client:
            await client.get("/sub/readyz")


async def test_what_only_the_lifespan_function_adds_may_be_named() -> None:
    check = Check()

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        app.get("/late", dependencies=[lifespan(get_thing, health=check)])(lambda: None)
        yield

    app = LifespanFastAPI(lifespan=run)
    add_health_routes(app, ready=[get_thing], restart_if_dead=[get_thing])
    async with running(app) as client:
        assert await status(client, "/readyz") == PASS


async def test_what_lies_below_an_override_may_be_named() -> None:
    async def get_user(thing: Annotated[Thing, lifespan(get_thing, health=Check())]) -> str:
        return "user"

    async def fake() -> str:
        return "fake"

    app = LifespanFastAPI(dependencies=[lifespan(get_user)])
    add_health_routes(app, ready=[get_thing], restart_if_dead=[get_thing])
    app.dependency_overrides[get_user] = fake
    async with running(app) as client:
        assert await status(client, "/readyz") == PASS
        assert await status(client, "/livez") == PASS


def page() -> None: ...


TAKEN: list[tuple[Callable[[FastAPI], Any], str]] = [
    (lambda app: app.get("/readyz")(page), "`page` (tests/"),
    (lambda app: app.get("/{name}")(page), "`page` (tests/"),
    (lambda app: app.include_router(_router(), prefix="/readyz"), ""),
    (lambda app: app.add_route("/readyz", page), "`page` (tests/"),  # type: ignore[arg-type]  # never called
    (lambda app: app.mount("/", Starlette()), "what is mounted or included answers"),
    (lambda app: add_health_routes(app, livez=None), "an earlier add_health_routes answers"),
]
FREE: list[Callable[[FastAPI], Any]] = [
    lambda app: app.post("/readyz")(page),
    lambda app: app.websocket("/readyz")(page),
    lambda app: app.get("/readyz/more")(page),
    lambda app: app.mount("/sub", Starlette()),
    lambda app: app.router.routes.append(Host("api.example.org", Starlette())),
    lambda app: app.include_router(_router(), prefix="/other"),
    lambda app: add_health_routes(app, livez=None, readyz="/ready"),
]


def _router() -> APIRouter:
    router = APIRouter()
    router.get("")(page)
    return router


@pytest.mark.parametrize(("take", "name"), TAKEN)
def test_a_path_that_is_answered_already_is_refused_and_nothing_is_added(
    take: Callable[[FastAPI], Any], name: str
) -> None:
    app = LifespanFastAPI()
    take(app)
    before = list(app.router.routes)
    with pytest.raises(LifespanDependencyError) as refused:
        add_health_routes(app, livez=None)
    message = str(refused.value)
    assert message.startswith("add_health_routes(readyz='/readyz'): ")
    assert name in message
    assert message.endswith(
        "answers that path already. Choose another one, add the health routes first, or leave this "
        "one out: readyz=None."
    )
    assert app.router.routes == before


@pytest.mark.parametrize("take", FREE)
def test_a_path_that_something_else_only_resembles_is_free(
    take: Callable[[FastAPI], Any],
) -> None:
    app = LifespanFastAPI()
    take(app)
    add_health_routes(app)
    with TestClient(app) as client:
        assert client.get("/readyz").json() == {"status": "pass"}


def test_two_of_them_cannot_have_one_path() -> None:
    with pytest.raises(LifespanDependencyError, match=r"^add_health_routes\(readyz='/health'\): "):
        add_health_routes(LifespanFastAPI(), livez="/health", readyz="/health")


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"ready": get_thing},
        TypeError,
        "ready=get_thing: give a list of providers, such as ready=[get_thing]",
    ),
    (
        {"restart_if_dead": None},
        TypeError,
        "restart_if_dead=None: give a list of providers, such as restart_if_dead=[None]",
    ),
    (
        {"ready": ["get_thing"]},
        TypeError,
        "ready=['get_thing']: give the callables themselves that are given to Depends",
    ),
    ({"livez": "livez"}, ValueError, "livez='livez': a path begins with \"/\""),
    ({"timeout": 0}, ValueError, "timeout=0: give seconds, more than 0, or a timedelta"),
    ({"timeout": -1}, ValueError, "timeout=-1: give seconds, more than 0, or a timedelta"),
    ({"cache": -1}, ValueError, "cache=-1: give seconds, 0 or more, or a timedelta"),
    ({"cache": math.nan}, ValueError, "cache=nan: give seconds, 0 or more, or a timedelta"),
    (
        {"details_dependencies": [fastapi.Depends(page)]},
        ValueError,
        'details_dependencies guard nothing: give a path, details="/healthz"',
    ),
    (
        {"details": "/healthz", "details_dependencies": [page]},
        TypeError,
        "details_dependencies: give a list of Depends(...)",
    ),
    (
        {"details": "/healthz", "details_dependencies": fastapi.Depends(page)},
        TypeError,
        "details_dependencies: give a list of Depends(...)",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_what_makes_no_sense_is_refused_in_one_line(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    app = LifespanFastAPI()
    before = list(app.router.routes)
    with pytest.raises(kind) as refused:
        add_health_routes(app, **options)
    assert str(refused.value) == message
    assert app.router.routes == before


def test_a_plain_application_is_told_what_to_do() -> None:
    with pytest.raises(LifespanDependencyError, match="The application is a plain FastAPI, which"):
        add_health_routes(FastAPI())
