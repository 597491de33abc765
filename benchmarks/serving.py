"""What lifespan dependencies cost end to end: uvicorn with uvloop and httptools, on loopback.

Each application has a server process of its own; all are up at the same time. This process sends
bursts of requests over a few connections, to one server at a time: all applications in each round,
in random order, with a burst to the one that reads globals before and after each. Where a process
happens to have its memory makes it faster or slower by some percent as long as it lives, so the
servers are started anew several times. Requests per second are of wall-clock time, so a busy
machine shows in them. The CPU time of a request is what its server's process has used.

One server by hand, from the repository: `python -m benchmarks.serving ours 20`
"""

import asyncio
import itertools
import operator
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import perf_counter, process_time
from typing import Any, NamedTuple

import uvloop
from rich.table import Table

from .competitors import depends, lifespan_deps, plain
from .competitors.case import Case, endpoint
from .connection import Connection
from .server import Server, running, serve

COUNTS = (5, 20)
STARTS = 5
ROUNDS = 3  # with the same servers
CONNECTIONS = 16
REQUESTS = 1_500  # in a burst
BURST_SECONDS = 30  # at most
SEED = 4

GLOBALS = "globals"
APPLICATIONS: dict[str, Callable[[Case], Any]] = {
    GLOBALS: plain.in_endpoint,
    "app.state": depends.app_state,
    "ours": lifespan_deps.taking(endpoint),
}
OTHERS = [name for name in APPLICATIONS if name != GLOBALS]
NAMES = {
    GLOBALS: "module globals",
    "app.state": "Depends on app.state",
    "ours": "fastapi-lifespan-deps",
}


class Burst(NamedTuple):
    """What a burst took; seconds of the clock, and of CPU time."""

    seconds: float
    server: float
    client: float


# By the number of services and the application: each burst, and the mean of those beside it.
Found = dict[tuple[int, str], list[tuple[Burst, Burst]]]


def steps(effort: float) -> int:
    return _starts(effort) * ROUNDS


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """Requests per second and CPU time per request of each application, and the ratios."""
    order = random.Random(SEED)
    found: Found = {(count, name): [] for count in COUNTS for name in APPLICATIONS}
    for _ in range(_starts(effort)):
        uvloop.run(_measure(found, order, advance))
    rows: list[dict[str, Any]] = [
        {"count": count, "application": name, **_medians(bursts)}
        for (count, name), bursts in found.items()
    ]
    return {"rows": rows, "client_busy": statistics.median(row["client_busy"] for row in rows)}


def tables(result: dict[str, Any]) -> list[Table]:
    table = Table(
        title="End to end: one uvicorn process on loopback",
        caption=f"{CONNECTIONS} connections; ratios to bursts to module globals before and after; "
        f"the client's process was busy {result['client_busy']:.0%} of the time",
    )
    for column in (
        "N",
        "",
        "requests\nper second",
        "ratio",
        "server CPU\nµs/request",
        "ratio",
        "quartiles",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for row in result["rows"]:
        table.add_row(
            str(row["count"]),
            NAMES[row["application"]],
            f"{row['requests_per_second']:,.0f}",
            f"{row['rate_ratio']:.3f}",
            f"{row['cpu_us']:.1f}",
            f"{row['cpu_ratio']:.3f}",
            "{:.3f} - {:.3f}".format(*row["quartiles"]),
        )
    return [table]


def _starts(effort: float) -> int:
    return max(1, round(STARTS * effort))


async def _measure(found: Found, order: random.Random, advance: Callable[[str], None]) -> None:
    with ExitStack() as stack:
        servers = {
            (count, name): stack.enter_context(running(__name__, name, str(count)))
            for count, name in found
        }

        async def burst(count: int, name: str) -> Burst:
            return await _burst(servers[count, name], count)

        for count, name in found:
            await burst(count, name)  # to warm up
        for _ in range(ROUNDS):
            for count in order.sample(COUNTS, len(COUNTS)):
                before = await burst(count, GLOBALS)
                for name in order.sample(OTHERS, len(OTHERS)):
                    own = await burst(count, name)
                    after = await burst(count, GLOBALS)
                    beside = Burst(*map(statistics.mean, zip(before, after, strict=True)))
                    found[count, name].append((own, beside))
                    found[count, GLOBALS].append((after, after))
                    before = after
            advance("serving")


def _medians(bursts: list[tuple[Burst, Burst]]) -> dict[str, Any]:
    ratios = [own.server / beside.server for own, beside in bursts]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "bursts": len(bursts),
        "requests_per_second": statistics.median(REQUESTS / own.seconds for own, _ in bursts),
        "rate_ratio": statistics.median(beside.seconds / own.seconds for own, beside in bursts),
        "cpu_us": statistics.median(own.server / REQUESTS * 1e6 for own, _ in bursts),
        "cpu_ratio": ratio,
        "quartiles": [low, high],
        "server_busy": statistics.median(own.server / own.seconds for own, _ in bursts),
        "client_busy": statistics.median(own.client / own.seconds for own, _ in bursts),
    }


# The client


class Client(Connection):
    """Expects the same answer each time."""

    def __init__(self, requests: Iterator[int], expected: bytes) -> None:
        super().__init__(requests)
        self.expected = expected

    def is_right(self, body: bytes) -> bool:
        return body == self.expected


async def _burst(server: Server, count: int) -> Burst:
    requests = iter(range(REQUESTS))
    expected = str(count).encode()
    async with asyncio.timeout(BURST_SECONDS):
        clients = await server.connect(lambda: Client(requests, expected), CONNECTIONS)
        used, client, start = server.cpu_time(), process_time(), perf_counter()
        for one in clients:
            one.send()
        await asyncio.gather(*(one.done for one in clients))
    seconds, client = perf_counter() - start, process_time() - client
    return Burst(seconds, server.cpu_time() - used, client)


# A server, in a process of its own


def _application(name: str, count: int) -> Any:
    case = Case(count)

    def count_right(services: tuple[object, ...]) -> int:
        """In each request: how many are the one object that was made."""
        return sum(map(operator.is_, services, itertools.chain.from_iterable(case.made)))

    case.namespace["count"] = count_right
    return APPLICATIONS[name](case)


if __name__ == "__main__":
    serve(_application(sys.argv[1], int(sys.argv[2])))
