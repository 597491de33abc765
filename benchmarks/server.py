"""A server in a process of its own: uvicorn with uvloop and httptools, on loopback."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any, TypeVar

import uvicorn

HOST = "127.0.0.1"
STOP_SECONDS = 10  # at most

Protocol = TypeVar("Protocol", bound=asyncio.Protocol)


class Server:
    """A server, as its client knows it. It tells its CPU time through a pipe when asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

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

    async def connect(self, make: Callable[[], Protocol], times: int) -> list[Protocol]:
        loop = asyncio.get_running_loop()
        opened = [await loop.create_connection(make, HOST, self.port) for _ in range(times)]
        return [connection for _, connection in opened]


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Server]:
    """The server that this module is when it is run with these arguments."""
    command = [sys.executable, "-m", module, *arguments]
    repository = Path(__file__).parent.parent
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=repository, stdin=pipe, stdout=pipe, text=True)
    with process:
        assert process.stdin is not None
        try:
            yield Server(process)
        finally:
            process.stdin.close()  # which ends it
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


# In that process


def serve(app: Any) -> None:
    """Serve until the client has gone."""
    config = uvicorn.Config(
        app,
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
