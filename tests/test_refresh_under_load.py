"""Hundreds of refreshes while clients send requests of all kinds: none fails, nothing is left."""

import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import uvicorn
from fastapi import WebSocket
from fastapi.responses import StreamingResponse
from websockets.asyncio.client import connect

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container
from fastapi_lifespan_deps.live.refresh import Policy
from tests.clients import client_of, listen, progressing, running

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CLIENTS = 32


@pytest.fixture
def refreshes(is_thorough: bool) -> int:
    return 200 if is_thorough else 40


class Part:
    """A value that knows what it is made of, and whether it was stopped."""

    def __init__(self, number: int, below: "Part | None" = None) -> None:
        self.number = number
        self.below = below
        self.is_stopped = False


class Shop:
    """An application in which an engine is below a model, and requests tell what they see."""

    def __init__(self) -> None:
        self.started = 0
        self.alive: weakref.WeakSet[Part] = weakref.WeakSet()
        self.running = 0
        self.most = 0  # that were running at the same time
        self.refreshed = anyio.Event()  # another one after each refresh
        # of each thread that watches, coverage would remember something to the end
        self.app = app = LifespanFastAPI(slow_after=None)

        async def get_engine() -> AsyncIterator[Part]:
            part = self.start()
            yield part
            self.stop(part)

        async def get_model(
            engine: Annotated[Part, Depends(get_engine, scope="lifespan")],
        ) -> AsyncIterator[Part]:
            part = self.start(engine)
            await anyio.lowlevel.checkpoint()
            yield part
            await anyio.lowlevel.checkpoint()
            self.stop(part)

        async def get_other() -> Part:
            return self.start()

        async def get_session(
            engine: Annotated[Part, Depends(get_engine, scope="lifespan")],
        ) -> Part:
            await anyio.lowlevel.checkpoint()  # there may be a refresh now
            return engine

        self.get_engine, self.get_model = get_engine, get_model
        uses_engine = Depends(get_session)
        uses_model = Depends(get_model, scope="lifespan")

        @app.get("/")
        async def read(
            engine: Annotated[Part, uses_engine],
            model: Annotated[Part, uses_model],
            container: Annotated[LifespanContainer, Depends(get_container)],
        ) -> list[int]:
            assert container[get_model] is model
            return seen(engine, model)

        @app.get("/stream")
        async def stream(
            engine: Annotated[Part, uses_engine], model: Annotated[Part, uses_model]
        ) -> StreamingResponse:
            async def lines() -> AsyncIterator[str]:
                for _ in range(3):
                    yield f"{seen(engine, model)}\n"
                    await self.refreshed.wait()

            return StreamingResponse(lines())

        @app.websocket("/socket")
        async def talk(
            websocket: WebSocket,
            engine: Annotated[Part, uses_engine],
            model: Annotated[Part, uses_model],
        ) -> None:
            await websocket.accept()
            for _ in range(4):
                await websocket.send_text(f"{seen(engine, model)}")
                await self.refreshed.wait()
            await websocket.close()

        @app.get("/other")
        async def read_other(
            other: Annotated[Part, Depends(get_other, scope="lifespan")],
        ) -> list[int]:
            return [other.number]

        @app.post("/refresh")
        async def refresh(
            container: Annotated[LifespanContainer, Depends(get_container)], policy: Policy
        ) -> list[int]:
            await container.refresh(get_model, policy=policy)
            return seen(container[get_engine], container[get_model])

    def start(self, below: Part | None = None) -> Part:
        part = Part(self.started, below)
        self.alive.add(part)
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        return part

    def stop(self, part: Part) -> None:
        assert not part.is_stopped
        assert part.below is None or not part.below.is_stopped
        part.is_stopped = True
        self.running -= 1

    def note_refresh(self) -> None:
        self.refreshed.set()
        self.refreshed = anyio.Event()

    async def drain(self, go_on: Callable[[], None]) -> None:
        """Wait until no value is left but the current ones."""
        left = self.running + len(self.alive)
        while self.running > 3 or len(self.alive) > 3:
            gc.collect()
            await anyio.to_thread.run_sync(int)
            if self.running + len(self.alive) < left:
                left = self.running + len(self.alive)
                go_on()
        assert (self.running, len(self.alive)) == (3, 3)


def seen(engine: Part, model: Part) -> list[int]:
    """What a request tells of the values that it has."""
    assert model.below is engine
    assert not engine.is_stopped
    assert not model.is_stopped
    return [engine.number, model.number]


# --- Clients. Each request gives what the application has told, as lists of numbers.


class Clients:
    """Requests to an application, by a way of asking it."""

    def __init__(
        self,
        http: Callable[[], httpx.AsyncClient],
        listen: Callable[[str], Awaitable[list[str]]],
    ) -> None:
        self.http = http
        self.listen = listen


@asynccontextmanager
async def in_process(shop: Shop) -> AsyncIterator[Clients]:
    """Ask the application itself."""

    async def texts_of(path: str) -> list[str]:
        texts: list[str] = []
        await listen(shop.app, path, texts)
        return texts

    async with running(shop.app):
        yield Clients(lambda: client_of(shop.app), texts_of)


@asynccontextmanager
async def served(shop: Shop) -> AsyncIterator[Clients]:
    """Ask a server, through sockets. Neither it nor the clients have a time limit of their own."""
    config = uvicorn.Config(
        shop.app,
        lifespan="on",
        log_config=None,
        timeout_keep_alive=3600,
        ws_ping_interval=None,
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # clients that come before the startup is over wait
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        async def texts_of(path: str) -> list[str]:
            async with connect(
                f"ws://{address}{path}", open_timeout=None, ping_interval=None, close_timeout=None
            ) as websocket:
                return [str(text) async for text in websocket]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(server.serve, sockets=[listener]))
            http = partial(
                httpx.AsyncClient, base_url=f"http://{address}", verify=False, timeout=None
            )
            yield Clients(http, texts_of)
            server.should_exit = True


async def read_stream(http: httpx.AsyncClient, path: str) -> list[str]:
    async with http.stream("GET", path) as response:
        assert response.status_code == 200
        return [line async for line in response.aiter_lines()]


async def read(http: httpx.AsyncClient, path: str) -> list[str]:
    """The answer; none if the application told to come again later."""
    response = await http.get(path)
    if response.status_code == 503:
        assert int(response.headers["retry-after"]) > 0
        return []
    assert response.status_code == 200, response.text
    return [response.text]


class Load:
    """Clients that send requests all the time, while values are refreshed.

    `go_on` is told of what brings the end nearer, and of nothing that could go on for ever.
    """

    def __init__(
        self,
        shop: Shop,
        clients: Clients,
        go_on: Callable[[], None],
        policy: Policy = "availability_preserving",
    ) -> None:
        self.shop = shop
        self.clients = clients
        self.go_on = go_on
        self.policy: Policy = policy
        self.is_over = False
        self.switched = [0, 0]  # what requests that are sent now may be given, or later ones
        self.permits = anyio.Semaphore(0)  # for short requests, lest these starve all else
        self.replaced = 0
        self.answers = 0
        self.refused = 0
        self.answered = anyio.Event()
        self.other: set[str] = set()

    async def run(self, refreshes: int) -> None:
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as clients:
                for number in range(CLIENTS):
                    clients.start_soon(self.client, number)
                async with self.clients.http() as http:
                    for number in range(refreshes):
                        await self.some_answers()
                        async with anyio.create_task_group() as meanwhile:
                            meanwhile.start_soon(self.feed)
                            await self.refresh(number, http)
                            meanwhile.cancel_scope.cancel()
                        self.shop.note_refresh()
                        self.go_on()
                self.is_over = True
                tasks.start_soon(self.let_go)
            tasks.cancel_scope.cancel()
        assert len(self.other) == 1

    async def some_answers(self) -> None:
        """Let more requests begin than are answered when this returns."""
        for _ in range(CLIENTS // 2):
            self.permits.release()
        wanted = self.answers + CLIENTS // 4
        while self.answers < wanted:
            await self.answered.wait()
            self.go_on()

    async def feed(self) -> None:
        """Let requests begin all the time."""
        while True:
            self.permits.release()
            await anyio.lowlevel.checkpoint()

    async def refresh(self, number: int, http: httpx.AsyncClient) -> None:
        shop = self.shop
        if number % 5 == 4:
            self.switched = (await http.post("/refresh", params={"policy": self.policy})).json()
            self.replaced += 1
        else:
            container = shop.app.lifespan_container
            provider = shop.get_model if number % 2 else shop.get_engine
            await container.refresh(provider, policy=self.policy)
            self.switched = seen(container[shop.get_engine], container[shop.get_model])
            self.replaced += 1 if number % 2 else 2

    async def client(self, number: int) -> None:
        is_short = number % 4 < 2 or self.policy == "resource_preserving"
        async with self.clients.http() as http:
            while not self.is_over:
                if is_short:
                    await self.permits.acquire()
                    await self.note(read(http, "/"), 1)
                    [text] = await read(http, "/other")
                    self.other.add(text)
                elif number % 4 == 2:
                    await self.note(read_stream(http, "/stream"), 3)
                else:
                    await self.note(self.clients.listen("/socket"), 4)
        self.go_on()

    async def note(self, request: Awaitable[list[str]], length: int) -> None:
        """Send a request. All that it tells is of one generation, and that is not an old one."""
        expected = self.switched
        answer = await request
        if self.policy == "resource_preserving" and not answer:
            self.refused += 1
            return
        assert len(answer) == length
        assert len(set(answer)) == 1
        engine, model = json.loads(answer[0])
        assert engine >= expected[0]
        assert model >= expected[1]
        self.answers += 1
        self.answered.set()
        self.answered = anyio.Event()

    async def let_go(self) -> None:
        """Let requests end that wait for more refreshes."""
        while True:
            self.permits.release()
            self.shop.note_refresh()
            await anyio.to_thread.run_sync(int)


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize(
    ("way", "anyio_backend"),
    [(served, "asyncio"), (in_process, "asyncio"), (in_process, "trio")],
)
async def test_no_request_fails_no_generation_is_mixed_and_nothing_is_left(
    way: Callable[[Shop], AbstractAsyncContextManager[Clients]], refreshes: int
) -> None:
    shop = Shop()
    sizes: list[int] = []
    with progressing() as go_on:
        async with way(shop) as clients:
            for _ in range(2):
                before = shop.started if sizes else 3
                load = Load(shop, clients, go_on)
                await load.run(refreshes // 2)
                assert shop.started - before == load.replaced
                await shop.drain(go_on)
                sizes.append(objects())
                go_on()
    # a request keeps the generation alone that it began with
    assert shop.most <= 2 * (CLIENTS + 2) + 1
    # A generation, and what belongs to it, is more. On a busy machine, some connections are still
    # about to close.
    assert sizes[1] - sizes[0] < 50 * refreshes // 2
    gc.collect()
    assert not shop.alive


async def test_a_resource_preserving_refresh_never_has_two_and_sends_some_requests_away(
    refreshes: int,
) -> None:
    shop = Shop()
    with progressing() as go_on:
        async with in_process(shop) as clients:
            load = Load(shop, clients, go_on, "resource_preserving")
            await load.run(refreshes // 4)
            await shop.drain(go_on)
    assert shop.most == 3
    assert shop.started == 3 + load.replaced
    assert load.refused > 0
