"""Clause 14: a request sees one generation, and holds only what its route can reach."""

from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)
from tests.clients import Gate, Thing, listen, provider, running, settle

pytestmark = pytest.mark.anyio

Container = Annotated[LifespanContainer, Depends(get_container)]


async def get_model() -> Thing:
    return Thing("model")


Model = Annotated[Thing, Depends(get_model, scope="lifespan")]


class Watched:
    """An application with a model, whose fakes are watched, and gates in its routes."""

    def __init__(self, app: LifespanFastAPI | None = None) -> None:
        self.log: list[str] = []
        self.app = app or LifespanFastAPI()
        self.gate = Gate()

        @self.app.get("/current")
        async def read_current(model: Model) -> str:
            return str(model)

    def switch(self, name: str) -> None:
        self.app.dependency_overrides[get_model] = provider(name, self.log)

    async def ask(self, path: str) -> str:
        """Send a request whose answer waits at the gate; switch; open the gate."""
        answers: list[str] = []
        async with running(self.app) as client, anyio.create_task_group() as tasks:
            self.switch("old")

            async def send() -> None:
                if path.startswith("/ws"):
                    await listen(self.app, path, answers)
                else:
                    answers.append((await client.get(path)).text.strip('"'))

            tasks.start_soon(send)
            await self.gate.hold()
            self.switch("new")
            assert (await client.get("/current")).json() == "new"
            await settle()
            assert "stop old" not in self.log
            self.gate.open()
            await settle()
            assert self.log[-1] == "stop old"
        assert self.log.count("stop old") == 1
        [answer] = answers
        return answer


async def test_the_endpoint_and_all_its_dependencies_see_one_generation() -> None:
    watched = Watched()

    async def first(model: Model) -> str:
        seen = str(model)
        await watched.gate.wait()
        return seen

    async def second(first: Annotated[str, Depends(first)], model: Model) -> AsyncIterator[str]:
        yield f"{first} {model}"
        watched.log.append(f"left with {model}")

    @watched.app.get("/", dependencies=[Depends(get_model, scope="lifespan")])
    async def read(second: Annotated[str, Depends(second)], model: Model) -> str:
        return f"{second} {model}"

    assert await watched.ask("/") == "old old old"
    assert "left with old" in watched.log


@pytest.mark.parametrize("is_applied", [True, False])
async def test_an_override_of_a_request_scoped_dependency_changes_in_the_middle(
    is_applied: bool,
) -> None:
    """FastAPI takes the override that is there when it gets to it; its values must be there."""
    watched = Watched()
    get_extra = provider("extra", watched.log)

    async def slow() -> None:
        await watched.gate.wait()

    async def session(model: Model) -> str:
        return f"session {model}"

    async def fake_session(
        model: Model,
        extra: Annotated[Thing, Depends(get_extra, scope="lifespan")],
    ) -> str:
        return f"fake {model} {extra}"

    @watched.app.get("/", dependencies=[Depends(slow)])
    async def read(session: Annotated[str, Depends(session)]) -> str:
        return session

    answers: list[str] = []

    async def send(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/")).json())

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(send, client)
        await watched.gate.hold()
        watched.app.dependency_overrides[session] = fake_session
        if is_applied:
            await client.get("/current")
        watched.gate.open()
    assert answers in (["session model"], ["fake model extra"])


async def test_an_override_that_takes_the_container_keeps_everything() -> None:
    watched = Watched()

    async def session() -> str:
        return "session"

    async def fake_session(container: Container) -> str:
        await watched.gate.wait()
        return f"fake {container[get_model]}"

    @watched.app.get("/")
    async def read(session: Annotated[str, Depends(session)]) -> str:
        return session

    watched.app.dependency_overrides[session] = fake_session
    assert await watched.ask("/") == "fake old"


async def test_a_request_that_waits_to_be_told_of_a_wrong_override_keeps_nothing() -> None:
    watched = Watched()

    async def slow() -> None:
        await watched.gate.wait()

    @watched.app.get("/", dependencies=[Depends(slow)])
    async def read(model: Model) -> str:
        return str(model)

    async def send(client: httpx.AsyncClient) -> None:
        with pytest.raises(UninitializedLifespanDependency, match="not valid"):
            await client.get("/")

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        wrong: Any = "not callable"
        watched.app.dependency_overrides[get_model] = wrong
        tasks.start_soon(send, client)
        await watched.gate.hold()
        watched.app.dependency_overrides.clear()
        assert (await client.get("/current")).json() == "model"
        watched.gate.open()


async def test_streaming_body() -> None:
    watched = Watched()

    @watched.app.get("/")
    async def read(model: Model, container: Container) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield f"{model} "
            await watched.gate.wait()
            yield f"{model} {container[get_model]}"

        return StreamingResponse(chunks())

    assert await watched.ask("/") == "old old old"


async def test_background_tasks() -> None:
    watched = Watched()
    done: list[str] = []

    @watched.app.get("/")
    async def read(model: Model, container: Container, tasks: BackgroundTasks) -> str:
        async def work() -> None:
            await watched.gate.wait()
            done.append(f"{model} {container[get_model]}")

        tasks.add_task(work)
        return str(model)

    assert await watched.ask("/") == "old"
    assert done == ["old old"]


async def test_websocket() -> None:
    watched = Watched()

    @watched.app.websocket("/ws")
    async def talk(websocket: WebSocket, model: Model, container: Container) -> None:
        await websocket.accept()
        before = str(model)
        await watched.gate.wait()
        await websocket.send_text(f"{before} {model} {container[get_model]}")
        await websocket.close()

    assert await watched.ask("/ws") == "old old old"


@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_a_container_keeps_everything_that_it_can_give(path: str) -> None:
    watched = Watched()

    @watched.app.get("/")
    async def read(container: Container) -> str:
        await watched.gate.wait()
        return str(container[get_model])

    @watched.app.websocket("/ws")
    async def talk(websocket: WebSocket, container: Container) -> None:
        await websocket.accept()
        await watched.gate.wait()
        await websocket.send_text(str(container[get_model]))
        await websocket.close()

    assert await watched.ask(path) == "old"


async def test_a_container_that_is_still_to_come_keeps_everything_too() -> None:
    watched = Watched()

    async def slow() -> None:
        await watched.gate.wait()

    @watched.app.get("/")
    async def read(slow: Annotated[None, Depends(slow)], container: Container) -> str:
        return str(container[get_model])

    assert await watched.ask("/") == "old"


async def test_a_container_behind_a_copied_scope_keeps_everything_too() -> None:
    watched = Watched()

    class CopiedScope(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def handle_copy(request: Request) -> Any:
                return await handle(Request({**request.scope}, request.receive))

            return handle_copy

    router = APIRouter(route_class=CopiedScope)

    @router.get("/")
    async def read(container: Container) -> str:
        await watched.gate.wait()
        return str(container[get_model])

    watched.app.include_router(router)
    assert await watched.ask("/") == "old"


@pytest.mark.parametrize("copies", [False, True])
async def test_a_request_that_is_still_in_a_middleware_of_a_mounted_app(copies: bool) -> None:
    """Nobody knows yet what it will need, so it keeps everything; wherever it is counted."""
    gate = Gate()

    class Slow:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/in/":
                await gate.wait()
            await self.app({**scope} if copies else scope, receive, send)

    app, inner = LifespanFastAPI(), FastAPI()
    inner.add_middleware(Slow)
    inner.dependency_overrides = app.dependency_overrides
    app.mount("/in", inner)
    watched = Watched(app)
    watched.gate = gate

    @inner.get("/")
    async def read(model: Model) -> str:
        return str(model)

    assert await watched.ask("/in/") == "old"


def talks(watched: Watched) -> Callable[..., Any]:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await watched.gate.wait()
        await websocket.close()

    return talk


def add_directly(watched: Watched) -> None:
    watched.app.add_api_websocket_route("/in/ws", talks(watched))


def add_by_a_router(watched: Watched) -> None:
    router = APIRouter()
    router.add_api_websocket_route("/ws", talks(watched))
    watched.app.include_router(router, prefix="/in")


def add_to_a_mounted_application(watched: Watched) -> None:
    mounted = FastAPI()
    mounted.add_api_websocket_route("/ws", talks(watched))
    watched.app.mount("/in", mounted)


def add_a_route_of_starlette(watched: Watched) -> None:
    watched.app.router.routes.append(WebSocketRoute("/in/ws", talks(watched)))


ADDED = pytest.mark.parametrize(
    "add",
    [add_directly, add_by_a_router, add_to_a_mounted_application, add_a_route_of_starlette],
)


@ADDED
async def test_a_websocket_that_does_not_use_a_model_does_not_keep_it(
    add: Callable[[Watched], None],
) -> None:
    watched = Watched()
    add(watched)
    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        watched.switch("old")
        tasks.start_soon(listen, watched.app, "/in/ws", [])
        await watched.gate.hold()
        watched.switch("new")
        assert (await client.get("/current")).json() == "new"
        await settle()
        assert "stop old" in watched.log
        watched.gate.open()


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
async def test_a_request_to_a_mounted_application_keeps_what_it_uses(kind: type[FastAPI]) -> None:
    watched = Watched()
    mounted = kind()

    async def session(model: Model) -> Thing:
        return model

    @mounted.get("/")
    async def read(session: Annotated[Thing, Depends(session)]) -> str:
        await watched.gate.wait()
        return str(session)

    watched.app.mount("/in", mounted)
    answers: list[str] = []

    async def send(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/in/")).json())

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        mounted.dependency_overrides[get_model] = provider("old", watched.log)
        tasks.start_soon(send, client)
        await watched.gate.hold()
        mounted.dependency_overrides.clear()
        assert (await client.get("/current")).json() == "model"
        await settle()
        assert "stop old" not in watched.log
        watched.gate.open()
        await settle()
        assert "stop old" in watched.log
    assert answers == ["old"]


async def test_a_request_keeps_what_a_request_scoped_override_of_its_time_uses() -> None:
    watched = Watched()

    async def session() -> str:
        return "session"

    async def fake_session(model: Model) -> AsyncIterator[str]:
        yield str(model)

    @watched.app.get("/")
    async def read(session: Annotated[str, Depends(session)]) -> str:
        await watched.gate.wait()
        return session

    watched.app.dependency_overrides[session] = fake_session
    assert await watched.ask("/") == "old"


async def test_generations_that_overlap_end_in_any_order() -> None:
    watched = Watched()
    gates: dict[str, Gate] = {}
    answers: list[str] = []

    @watched.app.get("/{name}")
    async def read(name: str, model: Model) -> str:
        gates[name] = Gate()
        await gates[name].wait()
        return f"{name} {model}"

    async def send(client: httpx.AsyncClient, name: str) -> None:
        answers.append((await client.get(f"/{name}")).json())

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        for name in ("one", "two", "three"):
            watched.switch(name)
            tasks.start_soon(send, client, name)
            await settle()
        watched.app.dependency_overrides.clear()
        assert (await client.get("/current")).json() == "model"
        for name in ("two", "one", "three"):
            gates[name].open()
            await settle()
            assert watched.log[-1] == f"stop {name}"
    assert answers == ["two two", "one one", "three three"]


async def test_a_request_keeps_its_generation_when_one_ends_that_looks_the_same() -> None:
    """Nothing was asked of either generation yet."""
    watched = Watched()
    first, second = Gate(), Gate()
    answers: list[str] = []

    @watched.app.get("/first", dependencies=[Depends(first.wait)])
    async def read_first(model: Model) -> str:
        return str(model)

    @watched.app.get("/second")
    async def read_second() -> None:
        await second.wait()

    async def send(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/first")).json())

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        watched.switch("one")
        tasks.start_soon(send, client)
        await first.hold()
        watched.switch("two")
        tasks.start_soon(client.get, "/second")
        await second.hold()
        watched.switch("three")
        assert (await client.get("/current")).json() == "three"
        second.open()
        await settle()
        assert (await client.get("/current")).json() == "three"
        await settle()
        first.open()
    assert answers == ["one"]


async def test_a_fake_that_is_in_force_again_is_the_one_that_a_request_still_uses() -> None:
    watched = Watched()
    seen: list[Thing] = []

    @watched.app.get("/")
    async def read(model: Model) -> None:
        seen.append(model)
        await watched.gate.wait()

    async with running(watched.app) as client, anyio.create_task_group() as tasks:
        watched.switch("fake")
        fakes = watched.app.dependency_overrides.copy()
        tasks.start_soon(client.get, "/")
        await watched.gate.hold()
        watched.app.dependency_overrides.clear()
        assert (await client.get("/current")).json() == "model"
        watched.app.dependency_overrides = fakes
        tasks.start_soon(client.get, "/")
        await settle()
        watched.gate.open()
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert watched.log.count("start fake") == watched.log.count("stop fake") == 1


async def test_an_unmatched_request_is_pinned_and_released_like_any_other() -> None:
    watched = Watched()
    async with running(watched.app) as client:
        for name in ("one", "two"):
            watched.switch(name)
            assert (await client.get("/no/such/page")).status_code == 404
            assert (await client.get("/current")).json() == name
        await settle()
        assert watched.log == ["start one", "start two", "stop one"]


async def test_a_scope_that_is_sent_again_is_pinned_anew() -> None:
    watched = Watched()
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/current",
        "raw_path": b"/current",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    async with watched.app.router.lifespan_context(watched.app):
        await watched.app(scope, receive, send)
        watched.switch("new")
        await watched.app(scope, receive, send)
    assert b"".join(sent) == b'"model""new"'


async def test_a_request_behind_a_copied_scope_lets_go_of_what_came_in_the_middle() -> None:
    """Another generation than its own, for an override that was set after it arrived."""
    watched = Watched()
    get_extra = provider("extra", watched.log)

    class Copies:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope}, receive, send)

    async def slow() -> None:
        await watched.gate.wait()

    async def session() -> str:
        return "session"

    async def fake_session(
        extra: Annotated[Thing, Depends(get_extra, scope="lifespan")],
    ) -> str:
        return str(extra)

    @watched.app.get("/", dependencies=[Depends(slow)])
    async def read(session: Annotated[str, Depends(session)]) -> str:
        return session

    watched.app.add_middleware(Copies)
    answers: list[str] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/")).json())

    async with running(watched.app) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client)
            await watched.gate.hold()
            watched.app.dependency_overrides[session] = fake_session
            watched.gate.open()
        watched.app.dependency_overrides.clear()
        await client.get("/current")
        await settle()
        assert answers == ["extra"]
        assert watched.log == ["start extra", "stop extra"]


async def test_a_request_that_is_thrown_away_in_another_context_is_released() -> None:
    """As the garbage collector does it, when a server forgets the task of a request."""
    log: list[str] = []
    app = LifespanFastAPI()
    get_value = provider("value", log)

    @app.get("/")
    async def read(value: Annotated[Thing, Depends(get_value, scope="lifespan")]) -> None:
        await anyio.sleep_forever()

    async def nothing(*message: Any) -> Any: ...

    async with running(app):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        request = app(scope, nothing, nothing)
        copy_context().run(request.send, None)
        draining = await app.lifespan_container.refresh(get_value)
        assert "stop value" not in log
        request.close()
        with anyio.fail_after(10):
            await draining.wait()
