"""The clients: requests, streams and WebSockets, and what each of them sees.

Some leave in the middle: what they see is `gone`. What fails as it is planned to is `planned`.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from time import monotonic

import anyio
import anyio.abc
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from proof.load import Seen
from proof.waiting import PATIENCE

# The routes, and how many requests go there.
WEIGHTS = {
    "/": 6,
    "/thread": 3,
    "/session": 3,
    "/background": 2,
    "/container": 2,
    "/refresh": 0.1,
    "/reader": 2,
    "/scarce": 2,
    "/journal": 2,
    "/gauge": 1,
    "/included/1": 1,
    "/mounted/own": 2,
}


CONNECTION = "a connection"  # which fails, not a route


class Plan:
    """When it was planned that requests to a path fail."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._ended: dict[str, float] = {}

    @contextmanager
    def failing(self, path: str) -> Iterator[None]:
        self._open.append(path)
        try:
            yield
        finally:
            self._open.remove(path)
            self._ended[path] = monotonic()

    def covers(self, path: str, since: float) -> bool:
        """Whether a request that began then may have failed by plan."""
        return path in self._open or self._ended.get(path, -math.inf) >= since


@dataclass
class Clients:
    """They go on until they are told to stop; then each ends what it has begun."""

    port: int
    name: str  # of the random numbers, and of the requests
    plan: Plan = field(default_factory=Plan)
    may_lose: bool = False  # what is under way when the server stops
    seen: list[Seen] = field(default_factory=list)
    stop: anyio.Event = field(default_factory=anyio.Event)
    _ids: "itertools.count[int]" = field(default_factory=itertools.count)

    def start(self, tasks: anyio.abc.TaskGroup, *, each: int = 1) -> None:
        flows = {
            self._requests: 3 * each,
            self._hasty: each,
            self._streams: each,
            self._talks: each,
            self._long_talk: 2 * each,
        }
        for flow, number in flows.items():
            for at in range(number):
                random = Random(f"{self.name}/{flow.__name__}/{at}")
                tasks.start_soon(flow, random)

    async def ask_once(self) -> None:
        async with self._client() as client:
            self.seen.append(await self._ask(client, "/"))

    def _id(self) -> str:
        return f"{self.name}-{next(self._ids)}"

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=PATIENCE,
            trust_env=False,
            verify=False,  # which takes no time to prepare
        )

    def _excused(self, seen: Seen, since: float) -> Seen:
        """What is seen; some of it is planned, or in order, only when the server stops."""
        is_lost = self.may_lose and seen.outcome in ("unanswered", "broken")
        # uvicorn answers 500 to a handshake that isn't complete when it stops
        is_cut = seen.kind == "websocket" and seen.outcome == "failed"
        if self.plan.covers(CONNECTION, since):
            return replace(seen, outcome="planned") if is_lost or is_cut else seen
        # a server that goes on has no reason to close a WebSocket
        return replace(seen, outcome="broken") if seen.outcome == "closed" else seen

    async def _requests(self, random: Random) -> None:
        async with self._client() as client:
            while not self.stop.is_set():
                [path] = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
                self.seen.append(await self._ask(client, path))

    async def _ask(self, client: httpx.AsyncClient, path: str) -> Seen:
        since, id = monotonic(), self._id()
        seen = partial(Seen, id, "request")
        try:
            response = await client.get(path, params={"id": id})
        except httpx.TransportError as error:
            return self._excused(seen(_outcome(error), repr(error)), since)
        if response.status_code == 200:
            return seen("complete")
        planned = response.status_code in (500, 503) and self.plan.covers(path, since)
        return seen(
            "planned" if planned else "failed", f"{path} {response.status_code} {response.text}"
        )

    async def _hasty(self, random: Random) -> None:
        """A client that doesn't wait: for the answer, or for the end of a stream."""
        while not self.stop.is_set():
            async with self._client() as client:
                path, id = random.choice(["/", "/session", "/thread", "/stream"]), self._id()
                seen = Seen(id, "request", "gone", path)
                with anyio.move_on_after(random.uniform(0, 0.03)):
                    try:
                        await client.get(path, params={"id": id, "lines": 5})
                    except httpx.TransportError as error:
                        seen = Seen(id, "request", "gone", repr(error))
                self.seen.append(seen)
            await anyio.sleep(0.02)

    async def _streams(self, random: Random) -> None:
        async with self._client() as client:
            while not self.stop.is_set():
                since, is_cut, lines = monotonic(), random.random() < 0.2, random.randint(1, 10)
                seen = await self._read(client, lines, is_cut)
                self.seen.append(self._excused(seen, since))

    async def _read(self, client: httpx.AsyncClient, lines: int, is_cut: bool) -> Seen:
        id, got = self._id(), []
        seen = partial(Seen, id, "stream")
        try:
            async with client.stream("GET", "/stream", params={"id": id, "lines": lines}) as answer:
                async for line in answer.aiter_lines():
                    got.append(line)
                    if is_cut:
                        return seen("gone")
        except httpx.TransportError as error:
            return seen("broken" if got else _outcome(error), repr(error))
        if answer.status_code != 200:
            return seen("failed", f"/stream {answer.status_code}")
        return seen("complete" if got[-1:] == ["end"] else "broken", f"{len(got)} of {lines} lines")

    async def _talks(self, random: Random) -> None:
        while not self.stop.is_set():
            since = monotonic()
            seen = await self._talk(random.randint(1, 5), random.random() < 0.3)
            self.seen.append(self._excused(seen, since))

    async def _long_talk(self, random: Random) -> None:
        """A WebSocket that stays, over all that is done meanwhile; anew if the server closes it."""
        while not self.stop.is_set():
            since = monotonic()
            self.seen.append(self._excused(await self._talk(0, False), since))

    async def _talk(self, messages: int, is_cut: bool) -> Seen:
        """So many messages and their echo; with 0, until the clients are told to stop."""
        id = self._id()
        seen = partial(Seen, id, "websocket")
        try:
            async with connect(
                f"ws://127.0.0.1:{self.port}/talk?id={id}",
                open_timeout=PATIENCE,
                ping_interval=None,
                proxy=None,
            ) as websocket:
                said = 0
                while said < messages or not (messages or self.stop.is_set()):
                    await websocket.send(f"{said}")
                    if await websocket.recv() != f"{said}":
                        return seen("broken", f"message {said} has no echo")
                    said += 1
                    with anyio.move_on_after(0.02):
                        await self.stop.wait()
                if is_cut:
                    websocket.transport.abort()
                    return seen("gone")
            return seen("complete", f"{said} messages")
        except ConnectionClosed as error:
            return seen("closed" if error.rcvd else "broken", repr(error))
        except InvalidStatus as error:
            return seen("failed", repr(error))
        except (OSError, EOFError, InvalidMessage, InvalidHandshake) as error:
            return seen("unanswered", repr(error))


def _outcome(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "refused"
    # closed before a byte of the answer, or within its body
    is_within = isinstance(error, httpx.RemoteProtocolError) and "body" in str(error)
    return "broken" if is_within else "unanswered"
