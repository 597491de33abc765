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
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import httptools
import uvicorn
import uvloop
from rich.table import Table

from .competitors import depends, lifespan_deps, plain
from .competitors.case import Case, endpoint
from .requests import WrongAnswer

HOST = "127.0.0.1"
COUNTS = (5, 20)
STARTS = 5
ROUNDS = 3  # with the same servers
CONNECTIONS = 16
REQUESTS = 1_500  # in a burst
BURST_SECONDS = 30  # at most
STOP_SECONDS = 10  # at most
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
            (count, name): stack.enter_context(_running(name, count)) for count, name in found
        }
        for server in servers.values():
            await server.burst()  # to warm up
        for _ in range(ROUNDS):
            for count in order.sample(COUNTS, len(COUNTS)):
                before = await servers[count, GLOBALS].burst()
                for name in order.sample(OTHERS, len(OTHERS)):
                    own = await servers[count, name].burst()
                    after = await servers[count, GLOBALS].burst()
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


class Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered, until nobody has one left to send.

    It does no more than that, so that the server is what is busy, and not the client.
    """

    transport: asyncio.Transport

    def __init__(self, requests: Iterator[int], expected: bytes) -> None:
        self.requests = requests  # of all connections
        self.expected = expected
        self.done = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self.transport = transport

    def send(self) -> None:
        if next(self.requests, None) is None:
            self.done.set_result(None)
            self.transport.close()
        else:
            self.body = b""
            self.transport.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if (status, self.body) == (200, self.expected):
            self.send()
        else:
            self.done.set_exception(WrongAnswer(f"{status}, {self.body!r}, not {self.expected!r}"))
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed a connection"))


class Server:
    """A server, as its client knows it. It tells its CPU time through a pipe when asked."""

    def __init__(self, process: "subprocess.Popen[str]", expected: bytes) -> None:
        self.process = process
        self.expected = expected

    @cached_property
    def port(self) -> int:
        return int(self.line())  # the first

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a server has ended")
        return line

    def cpu_time(self) -> float:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return float(self.line())

    async def burst(self) -> Burst:
        loop = asyncio.get_running_loop()
        requests = iter(range(REQUESTS))
        async with asyncio.timeout(BURST_SECONDS):
            opened = [
                await loop.create_connection(
                    lambda: Connection(requests, self.expected), HOST, self.port
                )
                for _ in range(CONNECTIONS)
            ]
            server, client, start = self.cpu_time(), process_time(), perf_counter()
            for _, connection in opened:
                connection.send()
            await asyncio.gather(*(connection.done for _, connection in opened))
        seconds, client = perf_counter() - start, process_time() - client
        return Burst(seconds, self.cpu_time() - server, client)


@contextmanager
def _running(name: str, count: int) -> Iterator[Server]:
    command = [sys.executable, "-m", __name__, name, str(count)]
    repository = Path(__file__).parent.parent
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=repository, stdin=pipe, stdout=pipe, text=True)
    with process:
        assert process.stdin is not None
        try:
            yield Server(process, str(count).encode())
        finally:
            process.stdin.close()  # which ends it
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


# A server, in a process of its own


def _serve(name: str, count: int) -> None:
    case = Case(count)

    def count_right(services: tuple[object, ...]) -> int:
        """In each request: how many are the one object that was made."""
        return sum(map(operator.is_, services, itertools.chain.from_iterable(case.made)))

    case.namespace["count"] = count_right
    config = uvicorn.Config(
        APPLICATIONS[name](case),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
    )
    server = uvicorn.Server(config)
    with socket.create_server((HOST, 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        threading.Thread(target=_tell_cpu_time, args=[server], daemon=True).start()
        server.run(sockets=[listening])


def _tell_cpu_time(server: uvicorn.Server) -> None:
    for _ in sys.stdin:
        print(process_time(), flush=True)
    server.should_exit = True  # the client has gone


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
