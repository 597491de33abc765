"""What the documentation shows and says: its code blocks are files, and here they run."""

import importlib
import inspect
import itertools
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import fastapi
import httpx
import pytest
import trio
from fastapi import BackgroundTasks, FastAPI, Request, Response
from fastapi.testclient import TestClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from trio.testing import MockClock

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    LifespanEvent,
    LifespanFastAPI,
    LifespanNotRunning,
    LifespanTimeout,
    RefreshError,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    enable_lifespan_scope,
    get_container,
)
from tests.clients import Gate, running
from tests.recording import leaves

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"

# A fenced block: its indentation, its language, its lines.
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# A file, or a section of it.
SNIPPET = re.compile(r'^ *--8<-- "([^":]+)(?::(\w+))?"$')
MODEL_SERVING = ("docs_src/model_serving/", "docs_src/ray_serve.py", "docs_src/deploy/")
# The tests of these are files of their own.
TESTED_ELSEWHERE = (
    "docs_src/command_line/",
    "docs_src/grpc/",
    "docs_src/health/",
    "docs_src/moving/",
    "docs_src/recipes/",
    "docs_src/seeing/",
    "docs_src/testing/",
    "docs_src/workers/",
)
# Commands and diagrams are no code of ours.
WRITTEN_IN_PLACE = ("console", "mermaid")


def load(name: str) -> ModuleType:
    """Import a file of docs_src/ as if for the first time, and what it imports from there."""
    for module in list(sys.modules):
        if module.startswith("docs_src.") and not module.startswith("docs_src.model_serving"):
            del sys.modules[module]
    return importlib.import_module(f"docs_src.{name.replace('/', '.')}")


def spy(app: FastAPI, provider: Callable[..., Any]) -> list[Any]:
    """Let each request to /spy add the value of a lifespan dependency to the list."""
    values: list[Any] = []

    @app.get("/spy")
    async def read_spy(value: Annotated[Any, Depends(provider, scope="lifespan")]) -> None:
        values.append(value)

    return values


# The pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_are_files(page: Path) -> None:
    for _, language, body in FENCE.findall(page.read_text()):
        if language not in WRITTEN_IN_PLACE:
            assert [line for line in body.splitlines() if not SNIPPET.match(line)] == []


def test_every_file_is_shown_and_run() -> None:
    files = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "docs_src").rglob("*")
        if file.suffix in (".md", ".py", ".txt", ".toml", ".yaml") and file.name != "__init__.py"
    }
    # Not all of it is shown; tests/test_model_serving*.py and tests/test_ray_serve.py run it.
    files = {file for file in files if not file.startswith(MODEL_SERVING)}
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    shown = {match[1] for line in lines if (match := SNIPPET.match(line))}
    shown = {file for file in shown if file.startswith("docs_src/")}
    assert {file for file in shown if not file.startswith(MODEL_SERVING)} == files

    loaded = re.findall(r'load\("([\w/]+)"\)', Path(__file__).read_text())
    run = {f"docs_src/{name}.py" for name in loaded}
    run |= {f"docs_src/errors/{name}.py" for name in ERRORS}
    code = {file for file in files if file.endswith(".py")}
    run |= {file for file in code if file.startswith(TESTED_ELSEWHERE)}
    assert code == run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_that_are_shown_are_there(page: Path) -> None:
    """The build doesn't notice a section that is missing."""
    for line in page.read_text().splitlines():
        if (match := SNIPPET.match(line)) and match[2]:
            text = (ROOT / match[1]).read_text()
            for marker in (f"--8<-- [start:{match[2]}]", f"--8<-- [end:{match[2]}]"):
                assert marker in text


def test_readme_shows_the_first_example() -> None:
    blocks = [
        body for _, language, body in FENCE.findall(README.read_text()) if language == "python"
    ]
    assert blocks == [(ROOT / "docs_src/index.py").read_text()]


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"(?:\]\(|^\[[\w-]+\]: )([^)#\s]+)", README.read_text(), re.MULTILINE)
    for target in links:
        assert target.startswith("https://") or (ROOT / target).exists(), target


# The home page and the tutorial


def test_index() -> None:
    example = load("index")
    clients = spy(example.app, example.get_client)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(204)

    async def get_offline_client() -> httpx.AsyncClient:
        transport = httpx.MockTransport(answer)
        return httpx.AsyncClient(base_url="https://example.com", transport=transport)

    with TestClient(example.app) as client:
        client.get("/spy")
        client.get("/spy")
        example.app.dependency_overrides[example.get_client] = get_offline_client
        assert client.get("/status").json() == 204
    first, second = clients
    assert first is second
    assert first.is_closed


def test_first_steps() -> None:
    example = load("first_steps")
    pools = spy(example.app, example.get_pool)
    for _ in range(2):
        with TestClient(example.app) as client:
            response = client.get("/users/1")
            assert response.json() == "user 1 of postgresql://localhost/shop"
            client.get("/spy")
            client.get("/spy")
            assert pools[-1].is_open
    assert len({id(pool) for pool in pools}) == 2
    assert not any(pool.is_open for pool in pools)


async def test_database(anyio_backend: str) -> None:
    example = load("database")
    pool = await example.connect("url")
    assert await pool.fetch_user(1) == "user 1 of url"
    await pool.close()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        await pool.fetch_user(1)


def test_model() -> None:
    with TestClient(load("model").app) as client:
        assert client.get("/sentiment", params={"text": "so good"}).json() == "positive"


def test_generic_repository() -> None:
    with TestClient(load("generic_repository").app) as client:
        assert client.post("/users", json={"name": "Ada"}).json() == 1
        assert client.post("/users", json={"name": "Grace"}).json() == 2
        assert client.post("/orders", json={"item": "tea"}).json() == 1


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("settings")
    with pytest.raises(ValueError, match="database_url"), TestClient(example.app):
        raise AssertionError("started")
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/shop")
    monkeypatch.setenv("PAGE_SIZE", "20")
    with TestClient(example.app) as client:
        assert client.get("/page-size").json() == 20


def test_dependencies_list(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(load("dependencies_list").app) as client:
        client.get("/")
        client.get("/")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_sub_dependencies(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(load("sub_dependencies").app) as client:
        assert client.get("/users/2").json() == "user 2 of postgresql://localhost/shop"
        up = ["settings read", "pool opened", "cache filled"]
        assert capsys.readouterr().out.splitlines() == up
    assert capsys.readouterr().out.splitlines() == ["cache saved", "pool closed"]


def test_request_scoped() -> None:
    with TestClient(load("request_scoped").app) as client:
        response = client.get("/me", headers={"user-id": "3"})
    assert response.json() == "user 3 of postgresql://localhost/shop"


def test_application_parameter() -> None:
    with TestClient(load("application_parameter").app) as client:
        assert client.get("/user-agent").json() == "shop/2.1"


def test_use_cache() -> None:
    with TestClient(load("use_cache").app) as client:
        assert client.post("/orders").json() == {"own": 1, "shared": 1}
        assert client.post("/orders").json() == {"own": 2, "shared": 2}
        assert client.post("/returns").json() == {"own": 1, "shared": 3}


def test_places() -> None:
    made: list[object] = []
    own = Depends(lambda: made.append(object()), scope="lifespan", use_cache=False)
    app = LifespanFastAPI()

    @app.get("/one")
    @app.get("/two")
    async def two_parameters(first: None = own, second: None = own) -> None: ...

    def get_shared(value: None = own) -> int:
        return 1

    for path in ("/three", "/four"):

        @app.get(path)
        async def endpoint(
            shared: Annotated[int, Depends(get_shared, scope="lifespan")],
        ) -> None: ...

    with TestClient(app):
        assert len(made) == 3


def test_testing(request: pytest.FixtureRequest) -> None:
    """The tests that the page on testing shows pass under pytest itself."""
    warnings = [f"-W{given}" for given in request.config.getoption("pythonwarnings") or ()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings]
    result = subprocess.run(
        [*command, "docs_src/testing"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "9 passed" in result.stdout


async def test_replacements_live_as_long_as_they_are_used(anyio_backend: str) -> None:
    example = load("first_steps")
    stopped = anyio.Event()
    started = []

    async def get_fake_pool() -> Any:
        started.append(True)
        yield load("database").Pool("fake")
        stopped.set()

    def get_broken_pool() -> None:
        raise ConnectionError

    pools = spy(example.app, example.get_pool)
    example.app.get("/unrelated")(lambda: "fine")
    transport = httpx.ASGITransport(example.app, raise_app_exceptions=False)
    async with (
        example.app.router.lifespan_context(example.app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await client.get("/spy")
        example.app.dependency_overrides[example.get_pool] = get_fake_pool
        await client.get("/spy")
        await client.get("/spy")
        assert started == [True]
        assert not stopped.is_set()
        example.app.dependency_overrides[example.get_pool] = get_broken_pool
        assert (await client.get("/spy")).status_code == 500
        assert (await client.get("/unrelated")).json() == "fine"
        with anyio.fail_after(5):
            await stopped.wait()
        example.app.dependency_overrides = {}
        await client.get("/spy")
    assert [pool.url for pool in pools[1:3]] == ["fake", "fake"]
    assert pools[0] is pools[-1]


def test_request_scoped_override_may_declare_something_new() -> None:
    example = load("testing/main")

    def get_default_user(user: Annotated[int, Depends(lambda: 7, scope="lifespan")]) -> int:
        return user

    with TestClient(example.app) as client:
        example.app.dependency_overrides[example.get_user_id] = get_default_user
        assert client.get("/me").json() == "user 7 of postgresql://localhost/shop"


async def test_state_without_a_server(anyio_backend: str) -> None:
    """`lifespan_context` alone brings no state to the requests; the dependencies work."""
    app = load("lifespan_function").app
    app.include_router(load("first_steps").app.router)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        assert (await client.get("/users/1")).status_code == 200
        with pytest.raises(AttributeError, match="first_user"):
            await client.get("/first-user")


def test_lifespan_function() -> None:
    with TestClient(load("lifespan_function").app) as client:
        assert client.get("/first-user").json() == "user 1 of postgresql://localhost/shop"


# Starlette before 1.0 warns, and says that hooks are ignored. Here they aren't.
hooks_are_deprecated = pytest.mark.filterwarnings(
    "ignore:The on_startup and on_shutdown parameters are deprecated:DeprecationWarning"
)


@hooks_are_deprecated
def test_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(load("hooks").app):
        assert capsys.readouterr().out == "serving postgresql://localhost/shop\n"
    assert capsys.readouterr().out == "goodbye\n"


@hooks_are_deprecated
@pytest.mark.filterwarnings("ignore:The `lifespan` parameter cannot be used with:UserWarning")
def test_included_routers(capsys: pytest.CaptureFixture[str]) -> None:
    up = ["dependency up", "hook up", "app's lifespan up", "router's lifespan up"]
    down = [line.replace("up", "down") for line in reversed(up)]
    with TestClient(load("included_routers").app) as client:
        assert client.get("/v1/model").json() == client.get("/v2/model").json() == "a model"
        # The router is included twice.
        assert capsys.readouterr().out.splitlines() == [*up, up[-1]]
    assert capsys.readouterr().out.splitlines() == [down[0], *down]


def test_existing_app() -> None:
    example = load("existing_app")
    assert type(example.app) is FastAPI
    with TestClient(example.app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/shop"


def test_mounted() -> None:
    example = load("mounted")
    with TestClient(example.app) as client:
        shared = client.get("/pool").json()
        assert client.get("/admin/pool").json() == shared

        example.admin.dependency_overrides[load_pool(example)] = lambda: example_pool("admin's")
        assert client.get("/pool").json() == shared
        assert client.get("/admin/pool").json().startswith("admin's")


async def test_mounted_lifespan(anyio_backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("mounted_lifespan")
    app, admin, get_pool = example.app, example.admin, load_pool(example)
    for _ in range(2):
        async with running(app) as client:
            shared = (await client.get("/pool")).json()
            assert capsys.readouterr().out == f"admin up with {shared}\n"
            pool = admin.lifespan_container[get_pool]
            assert pool is app.lifespan_container[get_pool]
        assert capsys.readouterr().out == "admin down\n"
        assert not pool.is_open

    admin.dependency_overrides[get_pool] = lambda: example_pool("admin's")
    async with running(app) as client:
        assert (await client.get("/pool")).json().startswith("postgresql")
        assert capsys.readouterr().out.startswith("admin up with admin's")
        assert admin.lifespan_container[get_pool].url == "admin's"


def load_pool(example: ModuleType) -> Any:
    """The provider behind an example's `PoolDep`."""
    return example.PoolDep.__metadata__[0].dependency.provider


def example_pool(url: str) -> Any:
    return importlib.import_module("docs_src.database").Pool(url)


def test_websockets() -> None:
    example = load("websockets")

    class Grumpy:
        def predict(self, text: str) -> str:
            return "negative"

    with TestClient(example.app) as client, client.websocket_connect("/sentiment") as first:
        example.app.dependency_overrides[example.load_model] = Grumpy
        with client.websocket_connect("/sentiment") as second:
            second.send_text("good")
            assert second.receive_text() == "negative"
        first.send_text("good")
        assert first.receive_text() == "positive"


def test_background_tasks() -> None:
    example = load("background_tasks")
    with TestClient(example.app) as client:
        client.post("/invitations", params={"address": "ada@example.com"})
        assert client.get("/sent").json() == ["ada@example.com"]


async def test_background_task_keeps_a_replacement_alive(anyio_backend: str) -> None:
    app = LifespanFastAPI()
    log = []
    stopped = anyio.Event()

    async def get_fake() -> Any:
        yield "fake"
        log.append("fake stopped")
        stopped.set()

    async def work() -> None:
        app.dependency_overrides.clear()
        await client.get("/other")
        await anyio.wait_all_tasks_blocked()
        log.append("task ended")

    def get_original() -> str:
        return "original"

    original = Depends(get_original, scope="lifespan")

    @app.get("/")
    async def read_root(tasks: BackgroundTasks, value: str = original) -> str:
        tasks.add_task(work)
        return value

    @app.get("/other")
    async def read_other(value: str = original) -> str:
        return value

    app.dependency_overrides[get_original] = get_fake
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        assert (await client.get("/")).json() == "fake"
        with anyio.fail_after(5):
            await stopped.wait()
    assert log == ["task ended", "fake stopped"]


def test_worker() -> None:
    example = load("worker")
    with TestClient(example.app) as client:
        for name in ("a", "b"):
            client.post("/jobs", params={"name": name})
    assert example.handled == ["a", "b"]


def test_container() -> None:
    with TestClient(load("container").app) as client:
        assert client.get("/health").json() == {"database": True}


def test_container_outside_of_routes() -> None:
    """`get_container` also serves middleware and exception handlers."""
    example = load("container")
    app: FastAPI = example.app
    seen = []

    async def look(connection: HTTPConnection) -> None:
        container = await get_container(connection)
        seen.append(container[example.get_pool].is_open)

    class PureMiddleware:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await look(HTTPConnection(scope))
            await self.app(scope, receive, send)

    @app.middleware("http")
    async def look_first(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await look(request)
        return await call_next(request)

    @app.exception_handler(404)
    async def explain(request: Request, error: Exception) -> Response:
        await look(request)
        return Response(status_code=404)

    app.add_middleware(PureMiddleware)
    with TestClient(app) as client:
        assert client.get("/nowhere").status_code == 404
    assert seen == [True, True, True]


def test_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    name = "fastapi_lifespan_deps"
    caplog.set_level(logging.DEBUG, name)  # puts the level back after the test
    logging.getLogger(name).setLevel(logging.WARNING)
    load("debug_log")
    with TestClient(load("first_steps").app):
        pass
    steps = ("Starting", "Started", "Stopping", "Stopped")
    debug = [record for record in caplog.records if record.levelno == logging.DEBUG]
    logged = [record.getMessage() for record in debug if record.name == name]
    assert logged == [f"{step} `get_pool`" for step in steps]


# Outside requests


async def test_outside_requests(anyio_backend: str) -> None:
    example = load("outside_requests")
    messages = [example.Message(1, "acme"), example.Message(2, "other")]
    for _ in range(2):
        example.log.clear()
        assert await example.main(messages) == [
            "user 1 of postgresql://localhost/shop, for acme",
            "user 2 of postgresql://localhost/shop, for other",
        ]
        assert example.log == ["begin", "commit", "begin", "commit"]
    with pytest.raises(LifespanNotRunning):
        await example.handle(messages[0])


async def test_an_error_reaches_the_transaction(anyio_backend: str) -> None:
    example = load("outside_requests")
    async with example.container as running:
        await running[load_pool(example)].close()
        with pytest.raises(RuntimeError, match="the pool is closed"):
            await example.handle(example.Message(1, "acme"))
    assert example.log == ["begin", "roll back"]


async def test_outside_requests_call(anyio_backend: str) -> None:
    url = "postgresql://localhost/shop"
    example = load("outside_requests_call")
    assert await example.main() == [f"user 1 of {url}", url, f"user 2 of {url}"]


async def test_outside_requests_tests(anyio_backend: str) -> None:
    await load("outside_requests_tests").test_handle()


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("commands")
    user = "user {} of postgresql://localhost/shop"
    example.container.run(example.print_user, 1)
    example.print_users([2, 3])
    lines = [user.format(1), "postgresql://localhost/shop", user.format(2), user.format(3)]
    assert capsys.readouterr().out.splitlines() == lines
    example.show_user(4)
    assert capsys.readouterr().out.splitlines() == [user.format(4)]
    assert str(inspect.signature(example.show_user)) == "(user_id: int) -> None"


async def test_consumer(anyio_backend: str) -> None:
    example = load("consumer")
    async with running(example.app) as client:
        assert (await client.get("/database")).json() == "postgresql://localhost/shop"
        with anyio.fail_after(5):
            await anyio.wait_all_tasks_blocked()
        assert example.handled == [f"user {n} of postgresql://localhost/shop" for n in (1, 2)]


async def test_injected_package(anyio_backend: str) -> None:
    example = load("injected_package")
    url = "postgresql://localhost/shop"
    assert await example.main() == [f"user 1 of {url}", url]
    with pytest.raises(LifespanNotRunning):
        await example.greet(1)


# The how-to guides


def test_events(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("events")
    with TestClient(example.app):
        pass
    [started] = example.start_seconds
    assert started.startswith("get_pool docs_src/first_steps.py:")
    assert capsys.readouterr().out == f"Slow to start: ['{started}']\n"
    example.listen(LifespanEvent(kind="died", where="a.py:1", error=OSError("lost"), time_ns=1))
    assert example.failures == {("died", "a.py:1"): 1}


async def test_outside_of_requests(anyio_backend: str) -> None:
    example = load("outside_of_requests")
    with pytest.raises(LifespanNotRunning):
        await example.greet(1)
    example.app.get("/")(lambda: "Hello")
    async with running(example.app) as client:
        assert await example.greet(1) == "user 1 of postgresql://localhost/shop"
        example.app.dependency_overrides[example.get_pool] = lambda: example_pool("fake")
        assert await example.greet(1) == "user 1 of postgresql://localhost/shop"
        await client.get("/")
        assert await example.greet(1) == "user 1 of fake"


async def test_own_request(anyio_backend: str) -> None:
    example = load("own_request")
    app = importlib.import_module("docs_src.first_steps").app
    connection = HTTPConnection({"type": "http", "app": app})
    async with running(app):
        assert await example.greet(connection, 1) == "user 1 of postgresql://localhost/shop"


def test_telemetry() -> None:
    example = load("telemetry")
    exporter = InMemorySpanExporter()
    example.provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        with TestClient(example.app) as client:
            assert client.get("/users/1").json() == "user 1 of postgresql://localhost/shop"
    finally:
        FastAPIInstrumentor.uninstrument_app(example.app)
        example.provider.shutdown()
    servers = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.name for span in servers] == ["GET /users/{user_id}"]


@pytest.mark.parametrize("kind", ["subclass", "enabled"])
def test_telemetry_that_replaces_the_class(kind: str) -> None:
    """It traces what is made of `fastapi.FastAPI` afterwards, and that is no `LifespanFastAPI`."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = FastAPIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        app = LifespanFastAPI() if kind == "subclass" else enable_lifespan_scope(fastapi.FastAPI())
        app.include_router(load("first_steps").app.router)
        with TestClient(app) as client:
            assert client.get("/users/1").status_code == 200
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    assert bool(exporter.get_finished_spans()) is (kind == "enabled")


def drawn(spans: Sequence[ReadableSpan]) -> str:
    """Spans below their parents, in the order in which they began."""
    lines = []
    for root in sorted(spans, key=lambda span: span.start_time or 0):
        if root.parent is None:
            lines.append(root.name)
            lines += [
                f"    {span.name}"
                for span in sorted(spans, key=lambda span: span.start_time or 0)
                if span.parent is not None and span.parent == root.context
            ]
    return "\n".join([*lines, ""])


@pytest.mark.skipif(find_spec("fastapi.telemetry") is None, reason="FastAPI 0.142 and later")
@pytest.mark.anyio
async def test_what_is_traced() -> None:
    example = load("telemetry_server")
    exporter = InMemorySpanExporter()
    example.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with running(example.app):
        get_pool = importlib.import_module("docs_src.first_steps").get_pool
        await (await example.app.lifespan_container.refresh(get_pool)).wait()
    example.tracer_provider.shutdown()
    example.meter_provider.shutdown()
    assert (
        drawn(exporter.get_finished_spans()) == (ROOT / "docs_src/telemetry_spans.txt").read_text()
    )


def test_what_a_command_traces() -> None:
    load("telemetry_worker")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "docs_src.telemetry_worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("user 1 of postgresql://localhost/shop\n")
    assert re.findall(r'^    "name": "(.*)"', result.stdout, re.MULTILINE) == [
        "start get_pool",
        "lifespan startup",
        "stop get_pool",
        "lifespan shutdown",
        "show user",
    ]


class ModelFile:
    """The file that the examples read their model from; it has version 1 at first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("v1")

    def write(self, version: str) -> None:
        self.path.write_text(version)

    def read(self) -> str:
        return self.path.read_text()

    def remove(self) -> None:
        self.path.unlink()


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFile:
    monkeypatch.chdir(tmp_path)
    return ModelFile(tmp_path / "model.txt")


def prediction(version: str) -> str:
    return f"tea is good, says {version}"


async def predict(client: httpx.AsyncClient) -> str:
    response = await client.get("/predict", params={"text": "tea"})
    assert response.status_code == 200
    return str(response.json())


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a clock that jumps to the next deadline when all tasks wait."""
    clock = MockClock(autojump_threshold=0.001)
    anyio.run(test, backend="trio", backend_options={"clock": clock})


async def become(read: Callable[[], Awaitable[object]], wanted: object, pause: float = 0) -> None:
    """Read again and again, until it is what is wanted; in virtual time, with a pause."""
    # A thread takes real time, so virtual time is no limit.
    with anyio.move_on_after(math.inf if pause else 10):
        for _ in range(1000) if pause else itertools.count():
            if await read() == wanted:
                return
            await anyio.sleep(pause)
    raise AssertionError(f"never {wanted}")


def test_refreshed_model(model_file: ModelFile) -> None:
    provider = load("refresh/model").load_model()
    model = next(provider)
    assert model.predict("tea") == prediction("v1")
    assert list(provider) == []
    with pytest.raises(RuntimeError, match="v1 is closed"):
        model.predict("tea")


def test_refresh_from_an_endpoint(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_KEY", "secret")
    example = load("refresh/endpoint")
    with TestClient(example.app) as client:
        model_file.write("v2")
        assert client.post("/model/refresh").is_client_error
        response = client.post("/model/refresh", headers={"admin-key": "guess"})
        assert response.status_code == 403
        assert client.get("/predict?text=tea").json() == prediction("v1")
        response = client.post("/model/refresh", headers={"admin-key": "secret"})
        assert response.json() == "this is v2"
        assert client.get("/predict?text=tea").json() == prediction("v2")


def test_refresh_every(model_file: ModelFile, caplog: pytest.LogCaptureFixture) -> None:
    example = load("refresh/every")

    async def test() -> None:
        async with running(example.app) as client:
            assert await predict(client) == prediction("v1")
            model_file.remove()
            await become(lambda: failed(caplog), True, pause=60)
            assert await predict(client) == prediction("v1")
            model_file.write("v2")
            await become(lambda: predict(client), prediction("v2"), pause=60)

    in_virtual_time(test)


async def failed(caplog: pytest.LogCaptureFixture) -> bool:
    return "not refreshed" in caplog.text


def test_refresh_from_a_timer(model_file: ModelFile, caplog: pytest.LogCaptureFixture) -> None:
    example = load("refresh/timer")
    models = spy(example.app, example.load_model)

    async def test() -> None:
        async with running(example.app) as client:
            await client.get("/spy")
            await anyio.sleep(90)
            await client.get("/spy")
            assert models[0] is models[1]  # the file is the same
            model_file.remove()
            await become(lambda: failed(caplog), True, pause=60)
            assert await predict(client) == prediction("v1")
            model_file.write("v2")
            await become(lambda: predict(client), prediction("v2"), pause=60)

    in_virtual_time(test)


async def check_signals(
    app: FastAPI, model_file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP refreshes the model; a failure is logged; at the end nobody takes the signal."""
    before = signal.getsignal(signal.SIGHUP)
    async with running(app) as client:
        assert await predict(client) == prediction("v1")
        model_file.remove()
        os.kill(os.getpid(), signal.SIGHUP)
        await become(lambda: failed(caplog), True)
        assert await predict(client) == prediction("v1")
        model_file.write("v2")
        os.kill(os.getpid(), signal.SIGHUP)
        await become(lambda: predict(client), prediction("v2"))
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.unix
async def test_refresh_on_sighup(
    anyio_backend: str, model_file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    await check_signals(load("refresh/on_signal").app, model_file, caplog)


@pytest.mark.unix
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_refresh_on_sighup_with_asyncio(
    anyio_backend: str, model_file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    await check_signals(load("refresh/on_signal_asyncio").app, model_file, caplog)


@pytest.mark.unix
def test_signals_can_be_left_out_of_tests(model_file: ModelFile) -> None:
    """`TestClient` runs the application in a thread, where no signal can be received."""
    example = load("refresh/on_signal")
    with pytest.raises((RuntimeError, ValueError)), TestClient(example.app):
        raise AssertionError("started")
    example.app.dependency_overrides[example.watch_signals] = lambda: None
    with TestClient(example.app) as client:
        assert client.get("/predict?text=tea").json() == prediction("v1")


async def test_refresh_one_at_a_time(anyio_backend: str, model_file: ModelFile) -> None:
    example = load("refresh/one_at_a_time")
    gate = Gate()
    gate.open()
    log = []

    async def get_model() -> AsyncIterator[Any]:
        await gate.wait()
        version = model_file.read()
        log.append(f"{version} started")
        yield importlib.import_module("docs_src.refresh.model").Model(version)
        log.append(f"{version} stopped")

    example.app.dependency_overrides[example.load_model] = get_model
    example.app.get("/unrelated")(lambda: "fine")
    with anyio.fail_after(10):
        async with running(example.app) as client, anyio.create_task_group() as tasks:
            assert await predict(client) == prediction("v1")
            model_file.write("v2")
            gate = Gate()
            tasks.start_soon(client.post, "/model/refresh")
            await gate.hold()
            assert log == ["v1 started", "v1 stopped"]
            response = await client.get("/predict", params={"text": "tea"})
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert (await client.get("/unrelated")).json() == "fine"
            gate.open()
            assert (await client.post("/model/refresh")).json() == "this is v2"
            assert await predict(client) == prediction("v2")


def test_draining(model_file: ModelFile, caplog: pytest.LogCaptureFixture) -> None:
    example = load("refresh/draining")
    gate = Gate()
    log = []

    @example.app.get("/held")  # type: ignore[untyped-decorator]
    async def hold(model: example.ModelDep) -> None:  # type: ignore[name-defined]
        await gate.wait()
        log.append(f"{model.version} is {'open' if model.is_open else 'closed'}")

    async def test() -> None:
        async with running(example.app) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/held")
            await gate.hold()
            model_file.write("v2")
            began = trio.current_time()
            assert (await client.post("/model/refresh")).json() == "v1 is closed"
            assert trio.current_time() - began >= 60
            gate.open()

    in_virtual_time(test)
    assert log == ["v1 is closed"]
    assert "GET /held" in caplog.text


def test_a_websocket_that_follows(model_file: ModelFile) -> None:
    example = load("refresh/websocket")
    models = spy(example.app, example.load_model)

    async def refresh() -> None:
        draining = await example.app.lifespan_container.refresh(example.load_model)
        await draining.wait()

    with TestClient(example.app) as client, client.websocket_connect("/predict") as websocket:
        client.get("/spy")
        for version in ("v1", "v2"):
            websocket.send_text("tea")
            assert websocket.receive_text() == prediction(version)
            model_file.write("v2")
            assert client.portal is not None
            client.portal.call(refresh)
            assert not models[0].is_open


def test_concurrent_start(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("concurrent_start")

    async def test() -> None:
        began = trio.current_time()
        async with running(example.app) as client:
            assert trio.current_time() - began == 4  # on a clock that runs only while all wait
            assert (await client.get("/")).json() == "a model and a cache of a pool"

    in_virtual_time(test)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["pool opened", "cache filled", "model loaded"]
    assert sorted(printed[3:]) == ["cache saved", "model freed", "pool closed"]
    assert printed.index("cache saved") < printed.index("pool closed")


def test_time_limits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    example = load("time_limits")

    async def hang(*arguments: object) -> None:
        await anyio.sleep_forever()

    async def start_and_stop() -> None:
        async with running(example.app) as client:
            assert (await client.get("/users/1")).status_code == 200

    in_virtual_time(start_and_stop)
    with monkeypatch.context() as patched:
        patched.setattr(example.Pool, "close", hang)
        with pytest.raises(LifespanTimeout, match="did not stop within 10 seconds"):
            in_virtual_time(start_and_stop)
    monkeypatch.setattr(example, "connect", hang)
    with pytest.raises(LifespanTimeout, match="did not start within 30 seconds"):
        in_virtual_time(start_and_stop)


def test_time_limits_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("time_limits_thread")
    with TestClient(example.app) as client:
        assert client.get("/sentiment?text=so good").json() == "positive"

    released = threading.Event()
    monkeypatch.setattr(example, "load_model", released.wait)

    async def start() -> None:
        async with running(example.app):
            raise AssertionError("started")

    try:
        with pytest.raises(LifespanTimeout, match="did not start within 60 seconds"):
            in_virtual_time(start)
    finally:
        released.set()


def test_a_dependency_that_died_is_brought_back(caplog: pytest.LogCaptureFixture) -> None:
    example = load("crash")
    feeds = spy(example.app, example.get_feed)

    async def test() -> None:
        async with running(example.app, raises=False) as client:

            async def status() -> int:
                return (await client.get("/feed")).status_code

            await client.get("/spy")
            assert await status() == 200
            feeds[0].is_cut.set()
            await become(status, 500)
            await become(status, 200, pause=5)

    with pytest.raises(ExceptionGroup) as caught:
        in_virtual_time(test)
    # a refresh has brought it back, and it is reported nevertheless
    assert [str(error) for error in leaves(caught.value)] == ["the feed was cut"]
    assert "`get_feed` ended by itself while serving" in caplog.text


# The page on errors: each of these files raises its error when it is imported

ERRORS: dict[str, type[Exception]] = {
    "unknown_scope": InvalidDependencyScope,
    "called": InvalidLifespanDependency,
    "sync_timeout": InvalidLifespanDependency,
    "conflicting_options": InvalidLifespanDependency,
    "hidden": InvalidLifespanDependency,
    "hook_wrapper": InvalidLifespanDependency,
    "request_parameter": DependencyScopeError,
    "request_object": DependencyScopeError,
    "request_dependency": DependencyScopeError,
    "cycle": DependencyCycleError,
    "start_timeout": LifespanTimeout,
    "call_timeout": LifespanTimeout,
    "without_with": UninitializedLifespanDependency,
    "plain_app": UninitializedLifespanDependency,
    "other_event_loop": UninitializedLifespanDependency,
    "late_route": UninitializedLifespanDependency,
    "no_health_check": LifespanDependencyError,
    "own_place": UninitializedLifespanDependency,
    "no_request": UninitializedLifespanDependency,
    "no_application": UninitializedLifespanDependency,
    "stopped": UninitializedLifespanDependency,
    "failed_override": UninitializedLifespanDependency,
    "invalid_override": UninitializedLifespanDependency,
    "unavailable": UnavailableLifespanDependency,
    "refused_refresh": RefreshError,
    "waiting_for_itself": RefreshError,
    "no_container": LifespanNotRunning,
    "cancelled_by_others": RuntimeError,
    "no_async_iterable": TypeError,
    "failed_stops": ExceptionGroup,
    # warnings are errors in our tests
    "stock_scope": UserWarning,
    "override_of_nothing": UserWarning,
}


def shown(name: str) -> str:
    """The message that the page shows."""
    return (ROOT / f"docs_src/errors/{name}.txt").read_text().rstrip("\n")


@hooks_are_deprecated
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # files in messages are relative to it
    with pytest.raises(ERRORS[name]) as caught:
        load(f"errors/{name}")
    kind, *rest = shown(name).split("\n")
    head, _, first = kind.partition(": ")
    assert head == ERRORS[name].__name__
    assert str(caught.value) == "\n".join([first, *rest])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("failed_override", ConnectionError),
        ("invalid_override", DependencyCycleError),
        ("unavailable", ConnectionError),
    ],
)
def test_causes_of_errors(name: str, cause: type[Exception]) -> None:
    with pytest.raises(UninitializedLifespanDependency) as caught:
        load(f"errors/{name}")
    assert isinstance(caught.value.__cause__, cause)


def test_headings_are_parts_of_messages() -> None:
    _, *sections = (ROOT / "docs/reference/errors.md").read_text().split("\n### ")
    for section in sections:
        heading = section.splitlines()[0]
        message = shown(re.findall(r"errors/(\w+)\.txt", section)[0])
        for part in heading.split("`…`"):
            assert part.strip() in message


def test_a_failed_start() -> None:
    example = load("errors/failed_start")
    with pytest.raises(FileNotFoundError) as caught, TestClient(example.app):
        raise AssertionError("started")
    assert f"FileNotFoundError: {caught.value}" == shown("failed_start")
    assert example.log == ["pool closed"]


async def test_a_crash(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    example = load("errors/crashed")
    example.app.get("/unrelated")(lambda: "fine")
    transport = httpx.ASGITransport(example.app)
    caught: Exception = Exception()
    with pytest.raises(ExceptionGroup) as stopping:
        async with (
            example.app.router.lifespan_context(example.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert (await client.get("/feed")).json() == "alive"
            await client.post("/cut")
            with anyio.fail_after(5):
                # it is dead at once, and has an error when its task group has ended
                while caught.__cause__ is None:
                    await anyio.lowlevel.checkpoint()
                    try:
                        await client.get("/feed")
                    except UninitializedLifespanDependency as error:
                        caught = error
            assert (await client.get("/unrelated")).json() == "fine"
    assert f"UninitializedLifespanDependency: {caught}" == shown("crashed")
    assert caught.__cause__ is stopping.value


def test_what_a_client_sees() -> None:
    app = load("errors/app").app
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/users/1").text == "Internal Server Error"
    app.debug = True
    app.middleware_stack = None
    assert "the application is not running" in client.get("/users/1").text
