"""Clients in the event loop of the test, and values whose life can be followed."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx
from fastapi import FastAPI

from fastapi_lifespan_deps import LifespanFastAPI

PATIENCE = 60.0  # seconds in which something must have gone on, even on a busy machine


@contextmanager
def progressing() -> Iterator[Callable[[], None]]:
    """A limit for each step of what is done here, which tells of each by calling what it gets.

    However long all of it takes: that depends on the machine.
    """
    with anyio.fail_after(PATIENCE) as scope:

        def go_on() -> None:
            scope.deadline = anyio.current_time() + PATIENCE

        yield go_on


class Patience:
    """The same for a loop that looks again and again, in a thread."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = time.monotonic()

    def look(self, seen: object) -> None:
        """Fail if nothing else has been seen for too long."""
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        assert time.monotonic() - self._since < PATIENCE, f"it has not got beyond {seen}"


class Thing:
    """A value that tells what it is made of, and whether it was closed."""

    def __init__(self, name: str, *parts: "Thing") -> None:
        self.name = name
        self.parts = parts
        self.closed = False

    def __str__(self) -> str:
        assert not self.closed, f"{self.name} is closed"
        return f"{self.name}({', '.join(map(str, self.parts))})" if self.parts else self.name


def provider(name: str, log: list[str]) -> Callable[[], AsyncIterator[Thing]]:
    """A dependency that notes its start and its stop in `log`."""

    async def provide() -> AsyncIterator[Thing]:
        log.append(f"start {name}")
        thing = Thing(name)
        yield thing
        thing.closed = True
        log.append(f"stop {name}")

    return provide


class Gate:
    """A point where an application waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.opened.wait()

    async def hold(self) -> None:
        """Wait until somebody waits at the gate."""
        await self.reached.wait()

    def open(self) -> None:
        self.opened.set()


@asynccontextmanager
async def running(app: FastAPI, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application, and give a client that sends it requests without a server.

    What an endpoint raises comes out of the client; with `raises=False`, as a response.
    """
    async with app.router.lifespan_context(app), client_of(app, raises=raises) as client:
        yield client


def client_of(app: FastAPI, *, raises: bool = True) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def listen(app: LifespanFastAPI, path: str, texts: list[str]) -> None:
    """Open a WebSocket, and note the texts that come, until the endpoint returns."""

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        if "text" in message:
            texts.append(message["text"])

    scope: dict[str, Any] = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "ws",
        "subprotocols": [],
    }
    await app(scope, receive, send)


async def settle() -> None:
    """Wait until what runs in the background has come to rest."""
    await anyio.wait_all_tasks_blocked()
