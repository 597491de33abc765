"""The client: it sends to one server at a time, over connections that stay open."""

import asyncio
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from .contestants import HOST

# At most:
START_SECONDS = 300
ASK_SECONDS = 120
BURST_SECONDS = 120
STOP_SECONDS = 10


class WrongAnswer(Exception):
    """A contestant doesn't do what is measured."""


class Answer(NamedTuple):
    status: int
    body: bytes
    seconds: float

    def check(self) -> None:
        if self.status != 200:
            raise WrongAnswer(f"{self.status}, {self.body[:500].decode()}")

    def json(self) -> Any:
        self.check()
        return json.loads(self.body)


class Burst(NamedTuple):
    requests_per_second: float
    p50: float
    p99: float
    client_busy: float


def request(method: str, path: str, body: Any = None, token: str = "") -> bytes:
    """A request, ready to be sent."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Connection:
    """Does no more than these servers make necessary, so that they are what is busy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> Answer:
        start = perf_counter()
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        body = await self._reader.readexactly(int(length[1]))
        return Answer(int(head[9:12]), body, perf_counter() - start)


class Client:
    """Whatever answers on a port of this machine, as its client knows it."""

    def __init__(self, port: int = 0) -> None:
        self.port = port

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    async def ask(self, data: bytes) -> Answer:
        async with asyncio.timeout(ASK_SECONDS), self.connected() as connection:
            return await connection.send(data)

    async def burst(self, requests: Sequence[bytes], clients: int) -> Burst:
        """Have each client send the next request when its last one is answered."""
        left, seconds = iter(requests), list[float]()
        start, busy = perf_counter(), process_time()
        async with asyncio.timeout(BURST_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(self._send_all(left, seconds))
        elapsed, busy = perf_counter() - start, process_time() - busy
        return Burst(len(seconds) / elapsed, *p50_and_p99(seconds), busy / elapsed)

    async def _send_all(self, requests: Iterator[bytes], seconds: list[float]) -> None:
        async with self.connected() as connection:
            for data in requests:
                answer = await connection.send(data)
                answer.check()
                seconds.append(answer.seconds)


class Server(Client):
    """A contestant, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__()
        self._process = process
        self._asks = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        """Wait until it serves."""
        self.port = int(await asyncio.to_thread(self._line))  # the first

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a server has ended: what it said is above")
        return line

    async def memory(self) -> dict[str, int]:
        """In bytes."""

        def of_gpu() -> Any:
            assert self._process.stdin is not None
            print(file=self._process.stdin, flush=True)
            return json.loads(self._line())

        metrics = await self.ask(request("GET", "/metrics"))
        resident = re.search(rb"^process_resident_memory_bytes (\S+)", metrics.body, re.MULTILINE)
        assert resident, metrics
        async with self._asks:
            return {"resident": int(float(resident[1])), **await asyncio.to_thread(of_gpu)}


def p50_and_p99(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1]


@asynccontextmanager
async def running(
    names: Iterable[str], environment: Mapping[str, str]
) -> AsyncIterator[dict[str, Server]]:
    """Start all of them, and wait until they serve."""
    with ExitStack() as stack:
        servers = {name: Server(stack.enter_context(_process(name, environment))) for name in names}
        async with asyncio.timeout(START_SECONDS):
            for server in servers.values():
                await server.start()
        yield servers


@contextmanager
def _process(name: str, environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.contestants", name],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()  # which ends it
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
