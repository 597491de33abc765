"""What a refresh does to the requests that are served meanwhile: uvicorn on loopback.

A value takes half a second to start: it waits, as for a connection, or it computes in a worker
thread, where it keeps the lock of the interpreter as pure Python does, or lets go of it as most
libraries do. Requests read the value all the time, over a few connections; one more asks for a
fresh one. What is answered until that is there is compared with what was answered just before.
Beside it, an application that assigns the fresh value to `app.state` by hand.

All servers are up at the same time, and take turns in random order; they are started anew several
times. Times are of the clock, so a busy machine shows in them. Each answer is verified: the old
value before the refresh, one of the two meanwhile, and the new one afterwards.

One server by hand, from the repository: `python -m benchmarks.refreshes ours waits 0.5`
"""

import asyncio
import hashlib
import inspect
import itertools
import random
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from time import perf_counter, thread_time
from typing import Annotated, Any, NamedTuple

import anyio
import uvloop
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container

from .connection import Connection
from .requests import WrongAnswer
from .server import Server, running, serve

SECONDS = 0.5
STARTS = 3
ROUNDS = 4  # with the same servers
CONNECTIONS = 16
BURST_SECONDS = 60  # at most
SEED = 4
DATA = bytes(1_000_000)

NAMES = {"ours": "fastapi-lifespan-deps", "by hand": "assigned by hand"}
KINDS = {
    "waits": "waits",
    "computes": "thread, pure Python",
    "releases": "thread, without the lock",
}


class Answer(NamedTuple):
    """What a request was answered, and when."""

    sent: float
    received: float
    version: int

    @property
    def seconds(self) -> float:
        return self.received - self.sent


class Window(NamedTuple):
    """A time, and the requests that were answered or under way in it."""

    rate: float
    median: float
    worst: float


# By the application and what its value does: the window before a refresh, and during it.
Found = dict[tuple[str, str], list[tuple[Window, Window]]]


def steps(effort: float) -> int:
    return _starts(effort) * ROUNDS


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """Requests per second and latency before and during a refresh, and their ratios."""
    order = random.Random(SEED)
    found: Found = {(name, kind): [] for kind in KINDS for name in NAMES}
    for _ in range(_starts(effort)):
        uvloop.run(_measure(found, SECONDS, ROUNDS, order, lambda: advance("refreshes")))
    rows = [
        {"application": name, "kind": kind, **_medians(windows)}
        for (name, kind), windows in found.items()
    ]
    return {"seconds": SECONDS, "rows": rows}


def _starts(effort: float) -> int:
    return max(1, round(STARTS * effort))


async def _measure(
    found: Found,
    seconds: float,
    rounds: int,
    order: random.Random,
    advance: Callable[[], None],
) -> None:
    with ExitStack() as stack:
        servers = {
            (name, kind): stack.enter_context(running(__name__, name, kind, str(seconds)))
            for name, kind in found
        }
        for server in servers.values():
            await _refresh(server, seconds)  # to warm up
        for _ in range(rounds):
            for key in order.sample(list(servers), len(servers)):
                found[key].append(await _refresh(servers[key], seconds))
            advance()


def _medians(windows: list[tuple[Window, Window]]) -> dict[str, Any]:
    ratios = [during.rate / before.rate for before, during in windows]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    sides = {"before": [one for one, _ in windows], "during": [other for _, other in windows]}
    figures = {
        f"{name}_{side}": statistics.median(getattr(one, name) for one in side_windows)
        for side, side_windows in sides.items()
        for name in Window._fields
    }
    return {"visits": len(windows), "ratio": ratio, "quartiles": [low, high], **figures}


# The client


class Reader(Connection):
    """Notes what it is answered, and when."""

    def __init__(self, requests: Iterator[Any], answers: list[Answer]) -> None:
        super().__init__(requests)
        self.answers = answers

    def send(self) -> None:
        self.sent = perf_counter()
        super().send()

    def is_right(self, body: bytes) -> bool:
        self.answers.append(Answer(self.sent, perf_counter(), int(body)))
        return True


class Refresher(Reader):
    """Asks for a fresh value."""

    request = b"POST /refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


async def _refresh(server: Server, seconds: float) -> tuple[Window, Window]:
    """Load a server, refresh meanwhile, and give the times before and during that."""
    answers: list[Answer] = []
    refreshed: list[Answer] = []
    has_ended = False
    requests = iter(lambda: has_ended, True)
    async with asyncio.timeout(BURST_SECONDS):
        readers = await server.connect(lambda: Reader(requests, answers), CONNECTIONS)
        [refresher] = await server.connect(lambda: Refresher(iter([1]), refreshed), 1)
        for reader in readers:
            reader.send()
        await asyncio.sleep(seconds / 4)  # to warm up
        start = perf_counter()
        await asyncio.sleep(seconds)
        refresher.send()
        await refresher.done
        await asyncio.sleep(seconds / 4)
        has_ended = True
        await asyncio.gather(*(reader.done for reader in readers))
    [refresh] = refreshed
    _verify(answers, refresh)
    before = _window(answers, start, refresh.sent)
    return before, _window(answers, refresh.sent, refresh.received)


def _window(answers: list[Answer], start: float, end: float) -> Window:
    under_way = [one.seconds for one in answers if one.sent < end and one.received > start]
    answered = sum(start < one.received <= end for one in answers)
    return Window(answered / (end - start), statistics.median(under_way), max(under_way))


def _verify(answers: list[Answer], refresh: Answer) -> None:
    versions = [refresh.version - 1, refresh.version]
    for answer in answers:
        may_be = versions
        if answer.received < refresh.sent:
            may_be = versions[:1]
        elif answer.sent > refresh.received:
            may_be = versions[1:]
        if answer.version not in may_be:
            raise WrongAnswer(f"{answer.version} instead of one of {may_be}")


# A server, in a process of its own

Provider = Callable[[], Any]


def _provider(kind: str, seconds: float) -> Provider:
    """What starts a value, each of which has the next number."""
    numbers = itertools.count()

    async def wait() -> int:
        await anyio.sleep(seconds)
        return next(numbers)

    def compute() -> int:
        end = thread_time() + seconds
        while thread_time() < end:
            sum(range(1000))
        return next(numbers)

    def hash_data() -> int:
        end = thread_time() + seconds
        while thread_time() < end:
            hashlib.sha256(DATA)  # without the lock, as this is long
        return next(numbers)

    return {"waits": wait, "computes": compute, "releases": hash_data}[kind]


def ours(start_value: Provider) -> FastAPI:
    app = LifespanFastAPI(openapi_url=None)

    @app.get("/")
    async def read(version: Annotated[int, Depends(start_value, scope="lifespan")]) -> int:
        return version

    @app.post("/refresh")
    async def refresh(container: Annotated[LifespanContainer, Depends(get_container)]) -> int:
        await container.refresh(start_value)
        return container[start_value]  # type: ignore[no-any-return]

    return app


def by_hand(start_value: Provider) -> FastAPI:
    async def started() -> int:
        if inspect.iscoroutinefunction(start_value):
            return await start_value()  # type: ignore[no-any-return]
        return await run_sync(start_value)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.version = await started()
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan)

    @app.get("/")
    async def read(request: Request) -> int:
        return request.app.state.version  # type: ignore[no-any-return]

    @app.post("/refresh")
    async def refresh(request: Request) -> int:
        request.app.state.version = await started()
        return request.app.state.version  # type: ignore[no-any-return]

    return app


APPLICATIONS = {"ours": ours, "by hand": by_hand}


# Tables


def tables(result: dict[str, Any]) -> list[Table]:
    table = Table(
        title="A refresh under load: requests per second during it ÷ before",
        title_justify="left",
        caption=f"The value takes {result['seconds']} s to start. {CONNECTIONS} connections; "
        "the longest request\nof each refresh, and of those the median.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("")
    for heading in (
        "before",
        "during",
        "ratio",
        "longest, ms\nbefore",
        "\nduring",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            f"{KINDS[row['kind']]}: {NAMES[row['application']]}",
            f"{row['rate_before']:,.0f}",
            f"{row['rate_during']:,.0f}",
            f"{row['ratio']:.3f}",
            f"{row['worst_before'] * 1000:.1f}",
            f"{row['worst_during'] * 1000:.1f}",
        )
    return [table]


if __name__ == "__main__":
    serve(APPLICATIONS[sys.argv[1]](_provider(sys.argv[2], float(sys.argv[3]))))
