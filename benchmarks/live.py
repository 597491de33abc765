"""What it costs to refresh, and to end what holds old values, as their number doubles.

An application that serves for days has WebSockets that stay for hours, each pinned to the
generation that it found, and values that others depend on. What one refresh, or the end of one
such WebSocket, costs must not grow faster than their number. So everything is measured at several
numbers, each twice the one before: what is linear then takes twice as long, what is quadratic four
times.

The applications of all numbers are up at the same time, and take turns in random order. Times are
process CPU time, without the garbage collector, in a batch that takes milliseconds; the figures
are minima over the rounds. What other processes do to the caches hits what is large and not what is
small: on a busy machine, medians let what is linear grow by 2.6, minima by 2.2. Before anything is
measured, each application has done all of it once.
"""

import asyncio
import gc
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import process_time
from typing import Annotated, Any

from fastapi import WebSocket
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .requests import WEBSOCKET, WrongAnswer, get

NUMBERS = (100, 200, 400, 800)
QUICK_NUMBERS = (25, 50, 100, 200)  # whatever is quadratic takes minutes to set up with 800
ROUNDS = 11
CYCLES = 20  # of open, refresh and close, in a batch
REFRESHES = 2  # of many values, in a batch
BATCH_SECONDS = 300  # at most
SEED = 4

NAMES = {
    "close": "close a WebSocket",
    "refresh": "refresh their value",
    "uninvolved": "refresh another",
    "dependents": "refresh a base of n",
    "chain": "refresh a chain of n",
}

# By what is measured and the number: seconds, one for each round.
Samples = dict[str, dict[int, list[float]]]


def steps(effort: float) -> int:
    return len(SUBJECTS) * (len(numbers(effort)) + rounds(effort))


def numbers(effort: float) -> tuple[int, ...]:
    return NUMBERS if effort >= 1 else QUICK_NUMBERS


def rounds(effort: float) -> int:
    return max(3, round(ROUNDS * effort))


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """The least seconds at each number, and by what each doubling multiplies them."""
    found: Samples = {}
    for kind in SUBJECTS:
        found |= asyncio.run(_measure(kind, numbers(effort), rounds(effort), advance))
    return {
        "numbers": list(numbers(effort)),
        "rounds": rounds(effort),
        "rows": {name: {"what": what, **_growth(found[name])} for name, what in NAMES.items()},
    }


class Subject(ABC):
    """An application with a number of something, and what is done to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.made = itertools.count()
        self.alive = 0
        self.app = LifespanFastAPI(openapi_url=None)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with self.app.router.lifespan_context(self.app) as state:
            self.state: Mapping[str, Any] = state or {}
            yield

    @abstractmethod
    async def batch(self) -> dict[str, float]:
        """Do everything that is measured a few times, and leave as much as there was before.

        Give the seconds of each, on the average.
        """

    async def refresh(self, provider: Callable[..., Any]) -> None:
        """Until the new value serves."""
        await self.app.lifespan_container.refresh(provider)

    async def refresh_and_drain(self, provider: Callable[..., Any]) -> None:
        """Until the old value has been stopped, and those that depend on it."""
        draining = await self.app.lifespan_container.refresh(provider)
        await draining.wait()

    def verify_alive(self, expected: int) -> None:
        if self.alive != expected:
            raise WrongAnswer(f"{self.alive} values are there instead of {expected}")


async def _measure(
    kind: Callable[[int], Subject],
    numbers: Sequence[int],
    rounds: int,
    advance: Callable[[str], None],
) -> Samples:
    subjects = [kind(number) for number in numbers]
    order = random.Random(SEED)
    found: Samples = {}
    async with AsyncExitStack() as stack:
        for subject in subjects:
            await stack.enter_async_context(subject.serving())
            await _undisturbed(subject)
            advance(f"live, setting up {subject.number}")
        for _ in range(rounds):
            for subject in order.sample(subjects, len(subjects)):
                for name, seconds in (await _undisturbed(subject)).items():
                    of_number = found.setdefault(name, {number: [] for number in numbers})
                    of_number[subject.number].append(seconds)
            advance("live")
    return found


async def _undisturbed(subject: Subject) -> dict[str, float]:
    gc.collect()
    gc.disable()
    try:
        async with asyncio.timeout(BATCH_SECONDS):
            return await subject.batch()
    finally:
        gc.enable()


def _growth(samples: Mapping[int, list[float]]) -> dict[str, Any]:
    least = [min(seconds) for seconds in samples.values()]
    ratios = [large / small for small, large in itertools.pairwise(least)]
    return {"us": [seconds * 1e6 for seconds in least], "ratios": ratios, "worst": max(ratios)}


async def _cpu_seconds(operation: Awaitable[Any]) -> float:
    start = process_time()
    await operation
    return process_time() - start


# WebSockets


class Value:
    """What a lifespan dependency gives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.stopped = asyncio.Event()


class Client:
    """A WebSocket that stays open until it is told to close."""

    def __init__(self, value: Value) -> None:
        self.value = value  # that it must be given
        self.text: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self.is_connected = False

    async def open(self, app: Any, state: Mapping[str, Any]) -> None:
        scope = {**WEBSOCKET, "state": dict(state)}
        self.served = asyncio.create_task(app(scope, self.receive, self.send))
        await asyncio.wait([self.served, self.text], return_when=asyncio.FIRST_COMPLETED)
        if self.served.done():
            await self.served  # raises why
            raise WrongAnswer("a WebSocket was closed")
        if self.text.result() != str(self.value.number):
            raise WrongAnswer(f"{self.text.result()!r} instead of {self.value.number}")

    async def close(self) -> None:
        """Leave, and wait until the value that nobody else holds has been stopped."""
        self.leaving.set()
        await self.value.stopped.wait()

    async def receive(self) -> dict[str, Any]:
        if not self.is_connected:
            self.is_connected = True
            return {"type": "websocket.connect"}
        await self.leaving.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(self, message: Any) -> None:
        if "text" in message:
            self.text.set_result(message["text"])


class WebSockets(Subject):
    """Open WebSockets, each of its own generation: their value was refreshed after each came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.clients: list[Client] = []
        self.order = random.Random(SEED + number)

        async def get_value() -> AsyncIterator[Value]:
            value = Value(next(self.made))
            self.alive += 1
            yield value
            self.alive -= 1
            value.stopped.set()

        async def get_other() -> AsyncIterator[int]:
            yield next(self.made)

        @self.app.websocket("/")
        async def hold(
            websocket: WebSocket, value: Annotated[Value, Depends(get_value, scope="lifespan")]
        ) -> None:
            await websocket.accept()
            await websocket.send_text(str(value.number))
            await websocket.receive()  # that the client has left

        @self.app.get("/")
        async def read_other(other: Annotated[int, Depends(get_other, scope="lifespan")]) -> int:
            return other

        self.get_value = get_value
        self.get_other = get_other

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with super().serving():
            for _ in range(self.number):
                await self._open()
                await self.refresh(self.get_value)
            yield
            for client in self.clients:
                client.leaving.set()
            await asyncio.gather(*(client.served for client in self.clients))

    async def batch(self) -> dict[str, float]:
        seconds = dict.fromkeys(("close", "refresh", "uninvolved"), 0.0)
        for _ in range(CYCLES):
            await self._open()
            # To wait for what that has replaced would be to wait for every WebSocket.
            seconds["refresh"] += await _cpu_seconds(self.refresh(self.get_value))
            seconds["uninvolved"] += await _cpu_seconds(self.refresh_and_drain(self.get_other))
            client = self.clients.pop(self.order.randrange(len(self.clients)))
            seconds["close"] += await _cpu_seconds(client.close())
            await client.served
        self.verify_alive(self.number + 1)  # theirs, and the one for the next
        return {name: total / CYCLES for name, total in seconds.items()}

    async def _open(self) -> None:
        client = Client(self.app.lifespan_container[self.get_value])
        await client.open(self.app, self.state)
        self.clients.append(client)


# Values that depend on others

Provider = Callable[..., AsyncIterator[int]]


class Graph(Subject):
    """A value, others that depend on it, and a route for each that no other depends on."""

    name: str
    parent: int  # the index of the provider that the next one depends on

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.first = self._first()
        providers = [self.first]
        parents = set()
        for _ in range(number):
            parent = providers[self.parent]
            parents.add(parent)
            providers.append(self._dependent(parent))
        ends = [provider for provider in providers if provider not in parents]
        for index, provider in enumerate(ends):
            self._add_route(f"/{index or ''}", provider)  # "/" is the first

    async def batch(self) -> dict[str, float]:
        seconds = 0.0
        for _ in range(REFRESHES):
            before = await get(self.app, self.state)
            seconds += await _cpu_seconds(self.refresh_and_drain(self.first))
            after = await get(self.app, self.state)
            if int(after) != int(before) + 1:
                raise WrongAnswer(f"{after} instead of the next after {before}")
            self.verify_alive(self.number + 1)
        return {self.name: seconds / REFRESHES}

    def _first(self) -> Provider:
        async def first() -> AsyncIterator[int]:
            self.alive += 1
            yield next(self.made)
            self.alive -= 1

        return first

    def _dependent(self, on: Provider) -> Provider:
        async def dependent(
            value: Annotated[int, Depends(on, scope="lifespan")],
        ) -> AsyncIterator[int]:
            self.alive += 1
            yield value
            self.alive -= 1

        return dependent

    def _add_route(self, path: str, provider: Provider) -> None:
        @self.app.get(path)
        async def endpoint(value: Annotated[int, Depends(provider, scope="lifespan")]) -> int:
            return value


class Dependents(Graph):
    """All depend on the first."""

    name = "dependents"
    parent = 0


class Chain(Graph):
    """Each depends on the one before."""

    name = "chain"
    parent = -1


SUBJECTS: tuple[Callable[[int], Subject], ...] = (WebSockets, Dependents, Chain)


# Tables


def tables(result: dict[str, Any]) -> list[Table]:
    table = Table(
        title="Live operations: CPU time in ms, and how it grows when n doubles",
        title_justify="left",
        caption="Constant is 1, linear 2, quadratic 4. n WebSockets of as many generations,\n"
        "or n values that depend on the one that is refreshed.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("")
    for heading in _headings(result["numbers"]):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"].values():
        milliseconds = (f"{one / 1000:,.{3 if one < 10_000 else 1}f}" for one in row["us"])
        ratios = (f"{one:.2f}" for one in row["ratios"])
        table.add_row(row["what"], *milliseconds, *ratios)
    return [table]


def _headings(numbers: Sequence[int]) -> Iterator[str]:
    yield from (f"n =\n{number}" for number in numbers)
    yield from (f"{large}\n÷ {small}" for small, large in itertools.pairwise(numbers))
