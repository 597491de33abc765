"""An application whose values are refreshed: numbered, and with a log of starts and stops."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_lifespan_deps import (
    Depends,
    Draining,
    LifespanContainer,
    LifespanFastAPI,
    get_container,
)
from fastapi_lifespan_deps.live.refresh import Policy
from tests.clients import PATIENCE, Gate, Thing, client_of, running
from tests.recording import named

AVAILABILITY: Policy = "availability_preserving"
RESOURCE: Policy = "resource_preserving"
Provider = Callable[..., Any]
POLICIES = pytest.mark.parametrize("policy", [AVAILABILITY, RESOURCE])


class Service:
    """An application with a database, a user of it, and a cache that has to do with neither.

    Values are numbered, and `log` tells of each start and stop. What `at` has for an event, as
    "start db 2", is awaited before.
    """

    def __init__(self, **options: Any) -> None:
        self.log: list[str] = []
        self.at: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.things: list[Thing] = []
        self.gate = Gate()
        self.get_db = get_db = self.provider("db")
        self.get_user = get_user = self.provider("user", get_db)
        self.get_cache = get_cache = self.provider("cache")
        self.app = app = LifespanFastAPI(**options)

        uses_db = Depends(get_db, scope="lifespan")
        uses_container = Depends(get_container)

        async def get_session(db: Annotated[Thing, uses_db]) -> Thing:
            return Thing("session", db)

        @app.get("/user")
        async def read_user(
            user: Annotated[Thing, Depends(get_user, scope="lifespan")],
            session: Annotated[Thing, Depends(get_session)],
            container: Annotated[LifespanContainer, uses_container],
        ) -> str:
            return f"{user} {session} {container[get_user]}"

        @app.get("/cache")
        async def read_cache(cache: Annotated[Thing, Depends(get_cache, scope="lifespan")]) -> str:
            return str(cache)

        @app.get("/session")
        async def read_session(session: Annotated[Thing, Depends(get_session)]) -> str:
            return str(session)

        @app.get("/listed", dependencies=[uses_db])
        async def read_listed() -> str:
            return "db"

        @app.get("/container")
        async def read_container(container: Annotated[LifespanContainer, uses_container]) -> str:
            return str(container[get_db])

        @app.get("/held")
        async def read_held(db: Annotated[Thing, uses_db]) -> str:
            before = str(db)
            await self.gate.wait()
            return f"{before} {db.name}"

        @app.get("/stream")
        async def stream(db: Annotated[Thing, uses_db]) -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                yield f"{db} "
                await self.gate.wait()
                yield str(db)

            return StreamingResponse(chunks())

        @app.get("/background")
        async def background(db: Annotated[Thing, uses_db], tasks: BackgroundTasks) -> str:
            async def work() -> None:
                await self.gate.wait()
                str(db)

            tasks.add_task(work)
            return f"{db} {db}"

        @app.websocket("/socket")
        async def socket(websocket: WebSocket, db: Annotated[Thing, uses_db]) -> None:
            await websocket.accept()
            await websocket.send_text(f"{db} ")
            await self.gate.wait()
            await websocket.send_text(str(db))
            await websocket.close()

        @app.get("/held/cache")
        async def hold_cache(cache: Annotated[Thing, Depends(get_cache, scope="lifespan")]) -> str:
            await self.gate.wait()
            return str(cache)

        @app.websocket("/socket/nothing")
        async def hold_nothing(websocket: WebSocket) -> None:
            await websocket.accept()
            await self.gate.wait()
            await websocket.close()

    def provider(self, name: str, *needs: Provider) -> Provider:
        count = 0

        async def get(**parts: Thing) -> AsyncIterator[Thing]:
            nonlocal count
            count += 1
            thing = Thing(f"{name} {count}", *parts.values())
            await self._reach(f"start {thing.name}")
            str(thing)  # what it is made of is alive
            self.things.append(thing)
            yield thing
            await self._reach(f"stop {thing.name}")
            str(thing)
            thing.closed = True

        return named(get, name, needs)

    async def _reach(self, event: str) -> None:
        if event in self.at:
            await self.at[event]()
        self.log.append(event)

    @asynccontextmanager
    async def running(self, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
        """Run the application, not for ever; begin with an empty log."""
        with anyio.fail_after(PATIENCE):
            async with (
                running(self.app, raises=raises) as client,
                anyio.create_task_group() as tasks,
            ):
                self._tasks = tasks
                self.log.clear()
                yield client
                self.gate.open()
        assert all(thing.closed for thing in self.things)

    def call(self, function: Callable[..., Awaitable[Any]], **options: Any) -> "Call":
        """Do something while the test goes on."""
        return Call(self._tasks, function, **options)

    async def refresh(self, provider: Provider | None = None, **options: Any) -> Draining:
        return await self.app.lifespan_container.refresh(provider or self.get_db, **options)

    async def ask(self, path: str) -> str:
        """The text of the answer, or of what a WebSocket sends, to a client that just comes."""
        if path.startswith("/socket"):
            messages = await connect(self.app, path)
            return "".join(message.get("text", "") for message in messages)
        async with client_of(self.app) as client:
            return (await client.get(path)).text.strip('"')


async def connect(app: FastAPI, path: str) -> list[dict[str, Any]]:
    """Open a WebSocket, and give all messages that come until it is closed."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        messages.append(message)

    scope: dict[str, Any] = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "ws",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return messages


class Call:
    """What is done in another task, and how it ended: `result` and `error`."""

    def __init__(
        self, tasks: TaskGroup, function: Callable[..., Awaitable[Any]], **options: Any
    ) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = anyio.Event()
        self.cancel_scope = anyio.CancelScope()
        tasks.start_soon(self._run, partial(function, **options))

    async def _run(self, function: Callable[[], Awaitable[Any]]) -> None:
        try:
            with self.cancel_scope:
                self.result = await function()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()


class Broken(Exception):
    pass


async def breaks() -> None:
    raise Broken
