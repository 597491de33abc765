"""Clients without a server: each starts the lifespan in its own way, and some pass no state."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Literal

import anyio
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from tests.clients import client_of, listen

STARTED = ["start engine", "start model"]
STOPPED = ["stop model", "stop engine"]


class Broken(Exception):
    pass


def app_writing(events: list[str], *, broken: bool = False, **options: Any) -> LifespanFastAPI:
    """An application with an asynchronous dependency, and a synchronous one that takes it."""
    app = LifespanFastAPI(**options)

    async def get_engine() -> AsyncIterator[object]:
        events.append("start engine")
        yield object()
        events.append("stop engine")

    def get_model(
        engine: Annotated[object, Depends(get_engine, scope="lifespan")],
    ) -> Iterator[list[object]]:
        if broken:
            raise Broken
        events.append("start model")
        yield [engine]
        events.append("stop model")

    lifespan_model = Depends(get_model, scope="lifespan")

    @app.get("/")
    async def read_root(model: Annotated[list[object], lifespan_model]) -> int:
        return id(model)

    @app.get("/state")
    def read_state(request: Request, model: Annotated[list[object], lifespan_model]) -> str:
        return str(request.state.word)

    @app.websocket("/")
    async def talk(websocket: WebSocket, model: Annotated[list[object], lifespan_model]) -> None:
        await websocket.accept()
        await websocket.send_text(str(id(model)))
        await websocket.close()

    return app


@asynccontextmanager
async def yielding_state(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"word": "spoken"}


async def check_requests(app: Any) -> None:
    """HTTP and WebSocket requests see the same object."""
    async with client_of(app) as client:
        found = [(await client.get("/")).text for _ in range(3)]
    await listen(app, "/", found)
    assert len(found) == 4
    assert len(set(found)) == 1


def without_protocol(app: FastAPI) -> AbstractAsyncContextManager[Any]:
    return app.router.lifespan_context(app)


@asynccontextmanager
async def mounted(app: FastAPI) -> AsyncIterator[None]:
    """As BentoML does: another application enters the lifespan, and mounts the application."""

    @asynccontextmanager
    async def lifespan(outer: Starlette) -> AsyncIterator[dict[str, int]]:
        async with app.router.lifespan_context(app):
            yield {"of outer": 1}

    outer = Starlette(routes=[Mount("/", app)], lifespan=lifespan)
    async with LifespanManager(outer) as manager:
        await check_requests(manager.app)
        yield


@asynccontextmanager
async def stateless(app: FastAPI) -> AsyncIterator[None]:
    """A server that has no lifespan state, as ASGI allows."""
    to_app, from_server = anyio.create_memory_object_stream[Any](2)
    from_app, to_server = anyio.create_memory_object_stream[Any](2)

    async def serve() -> None:
        await app({"type": "lifespan"}, from_server.receive, from_app.send)

    async with to_app, from_server, from_app, to_server, anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await to_app.send({"type": "lifespan.startup"})
        message = await to_server.receive()
        if message["type"] == "lifespan.startup.complete":
            yield
            await to_app.send({"type": "lifespan.shutdown"})
            assert await to_server.receive() == {"type": "lifespan.shutdown.complete"}


Host = Callable[[LifespanFastAPI], AbstractAsyncContextManager[Any]]
every_host = pytest.mark.parametrize(
    "host", [without_protocol, LifespanManager, mounted, stateless]
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_test_client_shares_one_object_from_its_start_to_its_end(
    backend: Literal["asyncio", "trio"],
) -> None:
    events: list[str] = []
    with TestClient(app_writing(events, lifespan=yielding_state), backend=backend) as client:
        found = {client.get("/").text for _ in range(3)}
        with client.websocket_connect("/") as websocket:
            found.add(websocket.receive_text())
        assert client.get("/state").json() == "spoken"
        assert len(found) == 1
        assert events == STARTED
    assert events == STARTED + STOPPED


@every_host
@pytest.mark.anyio
async def test_requests_to_the_app_itself_find_the_values_without_any_state(host: Host) -> None:
    events: list[str] = []
    app = app_writing(events)
    async with host(app):
        await check_requests(app)
        assert events == STARTED
    assert events == STARTED + STOPPED


@pytest.mark.anyio
async def test_requests_through_the_app_of_asgi_lifespan_have_the_state_too() -> None:
    events: list[str] = []
    app = app_writing(events, lifespan=yielding_state)
    async with LifespanManager(app) as manager, client_of(manager.app) as client:  # type: ignore[arg-type]  # any ASGI application will do
        await check_requests(manager.app)
        assert (await client.get("/state")).json() == "spoken"
    assert events == STARTED + STOPPED


@every_host
@pytest.mark.anyio
async def test_a_failed_start_is_raised_after_what_had_started_was_stopped(host: Host) -> None:
    events: list[str] = []
    # the host's own task group may wrap it
    with pytest.RaisesGroup(Broken, allow_unwrapped=True, flatten_subgroups=True):
        async with host(app_writing(events, broken=True)):
            pytest.fail("it served")
    assert events == ["start engine", "stop engine"]


def test_a_failed_start_is_raised_by_the_test_client() -> None:
    events: list[str] = []
    with pytest.raises(Broken), TestClient(app_writing(events, broken=True)):
        pytest.fail("it served")
    assert events == ["start engine", "stop engine"]


@pytest.mark.anyio
async def test_state_that_a_server_has_no_room_for_is_refused_as_fastapi_refuses_it() -> None:
    events: list[str] = []
    for app in FastAPI(lifespan=yielding_state), app_writing(events, lifespan=yielding_state):
        refusal = pytest.RaisesExc(RuntimeError, match='does not support "state" in the lifespan')
        with pytest.RaisesGroup(refusal):
            async with stateless(app):
                pytest.fail("it served")
    assert events == STARTED + STOPPED


@pytest.mark.anyio
async def test_a_run_may_be_entered_in_one_task_used_in_another_and_left_in_a_third() -> None:
    events: list[str] = []
    app = app_writing(events)
    context = app.router.lifespan_context(app)
    for step in (
        context.__aenter__,
        lambda: check_requests(app),
        lambda: context.__aexit__(None, None, None),
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)
    assert events == STARTED + STOPPED


@pytest.mark.parametrize("passes_state", [True, False])
@pytest.mark.anyio
async def test_an_app_behind_a_wrapper_in_another_app_keeps_its_own_run(passes_state: bool) -> None:
    """The outer application can't look into the wrapper, so it starts nothing for what is in it."""
    events: list[str] = []
    app = app_writing(events)

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    outer = app_writing([], lifespan=lambda outer: app.router.lifespan_context(app))
    outer.mount("/wrapped", wrapper)
    async with LifespanManager(outer) as manager:
        async with client_of(manager.app if passes_state else outer) as client:  # type: ignore[arg-type]  # any ASGI application will do
            found = [(await client.get("/wrapped/")).text for _ in range(2)]
            assert (await client.get("/")).text not in found
        assert len(set(found)) == 1
        assert events == STARTED
    assert events == STARTED + STOPPED
