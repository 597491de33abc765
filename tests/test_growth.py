"""Nothing grows with the number of refreshes, and nothing of an application outlives it."""

import gc
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket, routing
from fastapi import Depends as FastAPIDepends
from fastapi.exceptions import ResponseValidationError
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Route

from fastapi_lifespan_deps import Depends, LifespanFastAPI, get_container
from tests.clients import Gate, listen, running, settle

pytestmark = pytest.mark.anyio

CACHE: dict[int, Any] = getattr(routing, "_endpoint_context_cache", {})
needs_cache = pytest.mark.skipif(
    not hasattr(routing, "_endpoint_context_cache"), reason="FastAPI 0.123.9 and later"
)


async def get_number() -> int:
    return 1


Number = Annotated[int, Depends(get_number, scope="lifespan")]


# What FastAPI remembers for the whole process


def endpoints(app: FastAPI) -> None:
    """Declare every kind of callable that is bound."""

    async def get_session(number: Number) -> int:
        return number

    class Callable_:
        def __call__(self, number: Number) -> int:
            return number

    class Class:
        def __init__(self, number: Number) -> None: ...

    router = APIRouter()

    @router.get("/included")
    def included(number: Number) -> None: ...

    @app.get("/sync")
    def sync(session: Annotated[int, FastAPIDepends(get_session)]) -> None: ...

    @app.websocket("/websocket")
    async def websocket(websocket: WebSocket, number: Number) -> None: ...

    app.add_api_route("/callable", Callable_())
    app.add_api_route("/class", Class, response_model=None)
    app.include_router(router)


@needs_cache
async def test_nothing_of_an_application_stays_in_fastapis_cache() -> None:
    gc.collect()
    before = dict(CACHE)
    app = LifespanFastAPI()
    mounted = FastAPI()
    endpoints(app)
    endpoints(mounted)
    app.mount("/mounted", mounted)
    async with app.router.lifespan_context(app):
        assert len(CACHE) > len(before)
    references: list[weakref.ref[Any]] = [weakref.ref(app), weakref.ref(mounted)]
    del app, mounted
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert CACHE.keys() <= before.keys()  # others may have gone meanwhile, too


@needs_cache
async def test_what_fastapi_has_built_anew_is_forgotten_at_once() -> None:
    app = LifespanFastAPI()
    router = APIRouter()

    def declare(path: str) -> None:
        @router.get(path)
        async def read(number: Number) -> None: ...

    declare("/first")
    app.include_router(router)
    async with running(app) as client:
        gc.collect()
        before = set(CACHE)
        declare("/second")  # FastAPI builds the other routes of this router anew
        assert (await client.get("/first")).status_code == 200
    async with running(app):
        gc.collect()
        assert len(CACHE) <= len(before) + 2


@needs_cache
def test_an_error_names_the_endpoint_of_its_own_application() -> None:
    """It is found by an id, which another endpoint may have had before."""

    def started_and_dropped() -> None:
        app = LifespanFastAPI(openapi_url=None)
        for number in range(50):

            def gone(number: Number) -> None: ...

            app.get(f"/{number}")(gone)
        with TestClient(app):
            pass

    for _ in range(5):
        started_and_dropped()
    gc.collect()
    kept = []
    for _ in range(50):
        app = FastAPI(openapi_url=None)
        kept.append(app)

        def plain() -> int:
            return "no number"  # type: ignore[return-value]

        app.get("/")(plain)
        with pytest.raises(ResponseValidationError) as raised:
            TestClient(app).get("/")
        assert "gone" not in str(raised.value)


# What an open request keeps


@pytest.fixture
def times(is_thorough: bool) -> int:
    return 50 if is_thorough else 15


def websocket(app: LifespanFastAPI, gate: Gate) -> str:
    @app.websocket("/ws")
    async def wait(websocket: WebSocket, number: Number) -> None:
        await websocket.accept()
        await gate.wait()

    return "/ws"


def websocket_that_uses_nothing(app: LifespanFastAPI, gate: Gate) -> str:
    @app.websocket("/ws")
    async def wait(websocket: WebSocket) -> None:
        await websocket.accept()
        await gate.wait()

    return "/ws"


def stream_of_starlette(app: LifespanFastAPI, gate: Gate) -> str:
    async def stream(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "x"
            await gate.wait()

        return StreamingResponse(body())

    app.router.routes.append(Route("/stream", stream))
    return "/stream"


def stranger(app: LifespanFastAPI, gate: Gate) -> str:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    app.mount("/stranger", serve)
    return "/stranger/x"


def mounted_starlette(app: LifespanFastAPI, gate: Gate) -> str:
    async def wait(request: Request) -> StreamingResponse:
        await gate.wait()
        return StreamingResponse(iter([]))

    app.mount("/mounted", Starlette(routes=[Route("/x", wait)]))
    return "/mounted/x"


@pytest.mark.parametrize(
    "declare",
    [
        websocket,
        websocket_that_uses_nothing,
        stream_of_starlette,
        stranger,
        mounted_starlette,
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_open_requests_do_not_grow_with_the_number_of_refreshes(
    declare: Callable[[LifespanFastAPI, Gate], str],
    times: int,
) -> None:
    app, gate = LifespanFastAPI(), Gate()
    app.get("/")(lambda number: number)
    path = declare(app, gate)

    @app.get("/number")
    async def read(number: Number) -> int:
        return number

    async def ask(client: httpx.AsyncClient) -> None:
        if path == "/ws":
            await listen(app, path, [])
        else:
            await client.get(path)

    async with running(app) as client, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, client)
        await gate.hold()
        await refresh_often(app, times)
        gate.open()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio keeps deadlines that are over
async def test_a_websocket_that_asks_for_the_container_again_and_again_does_not_grow(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    # pytest would keep what is logged
    monkeypatch.setattr(logging.getLogger("fastapi_lifespan_deps"), "disabled", True)
    app = LifespanFastAPI()
    asked, go_on = anyio.Event(), anyio.Event()
    is_open = True

    @app.get("/number")
    async def read(number: Number) -> int:
        return number

    @app.websocket("/ws")
    async def ask(websocket: WebSocket) -> None:
        nonlocal asked, go_on
        await websocket.accept()
        while is_open:
            container = await get_container(websocket)
            assert container[get_number] == 1
            asked.set()
            await go_on.wait()
            go_on = anyio.Event()

    async with running(app), anyio.create_task_group() as tasks:

        async def listen_on() -> None:
            await listen(app, "/ws", [])

        tasks.start_soon(listen_on)

        async def step() -> None:
            nonlocal asked
            await asked.wait()
            asked = anyio.Event()
            container = app.lifespan_container
            await (await container.refresh(get_number, drain_timeout=0)).wait()
            go_on.set()

        await refresh_often(app, times, step)
        is_open = False
        go_on.set()


async def refresh_often(app: LifespanFastAPI, times: int, step: Any = None) -> None:
    """Refresh, and see that it leaves no more when it has been done twice as often."""

    async def refresh() -> None:
        await app.lifespan_container.refresh(get_number)
        await settle()

    counts = []
    for _ in range(3):
        for _ in range(times):
            await (step or refresh)()
        gc.collect()
        counts.append(Counter(type(one).__name__ for one in gc.get_objects() if is_ours(one)))
    assert counts[1] == counts[2]


def is_ours(one: object) -> bool:
    return str(type(one).__module__).startswith("fastapi_lifespan_deps")
