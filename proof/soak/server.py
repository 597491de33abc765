"""The process that serves: one run after the other, in one event loop, as it is told.

    python -m proof.soak.server uvicorn LISTENING_FD CONTROL_FD

It does what comes on the control connection, a JSON object a line, all of it at once, and ends when
that is closed: so nothing is left if whoever drives it is killed.
"""

import asyncio
import json
import logging
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.abc
import hypercorn.config
import hypercorn.trio
import uvicorn
from anyio.streams.buffered import BufferedByteReceiveStream

from fastapi_lifespan_deps import enable_lifespan_scope

from .actions import ACTIONS
from .application import app
from .control import LONG
from .kept import kept
from .measure import measured, types_of_objects
from .values import record

BACKENDS = {"uvicorn": "asyncio", "hypercorn": "trio"}
OF_A_RUN = ("values", "instances", "pins", "runs")
SETTLING = 10.0  # seconds, after which what is left of a run stays
KEEP_ALIVE = 1  # seconds, for which a server may hold the last request of a connection, too


class LogRecorder(logging.Handler):
    def emit(self, line: logging.LogRecord) -> None:
        error = line.exc_info[1] if line.exc_info else None
        record("log", level=line.levelname, text=line.getMessage(), error=repr(error))
        if line.exc_info:
            traceback.print_exception(*line.exc_info)


def listen_to_logs() -> None:
    logging.captureWarnings(True)
    logger = logging.getLogger()
    logger.setLevel(logging.WARNING)
    logger.addHandler(LogRecorder())
    threading.excepthook = lambda args: record(
        "log", level="ERROR", text="thread", error=repr(args)
    )
    sys.unraisablehook = lambda args: record(
        "log", level="ERROR", text=f"unraisable {args.object!r}", error=repr(args.exc_value)
    )


async def serve_by_uvicorn(listener: socket.socket, stop: anyio.Event) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await stop.wait()
        server.should_exit = True


async def serve_by_hypercorn(listener: socket.socket, stop: anyio.Event) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 3  # which it waits for WebSockets
    config.keep_alive_timeout = KEEP_ALIVE
    config.errorlog = logging.getLogger("hypercorn.error")
    await hypercorn.trio.serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]


SERVE = {"uvicorn": serve_by_uvicorn, "hypercorn": serve_by_hypercorn}


async def forget_timers() -> None:
    """Let asyncio forget timers that were cancelled.

    It keeps them until they are due, that of a `sleep_forever()` for ever, and with each the
    context, in which there may be a pin: unless most of more than a hundred are cancelled.
    """
    loop = asyncio.get_running_loop()
    for _ in range(1000):
        loop.call_later(1, print).cancel()
    await asyncio.sleep(0)


class Process:
    def __init__(self, name: str, listener: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        self.name = name
        self.listener = listener
        self.tasks = tasks
        self.stop = anyio.Event()
        self.stopped = anyio.Event()

    def start(self) -> None:
        self.stop, self.stopped = anyio.Event(), anyio.Event()
        self.tasks.start_soon(self._run, self.stop, self.stopped)

    async def _run(self, stop: anyio.Event, stopped: anyio.Event) -> None:
        try:
            # clients may go on to connect while nobody serves: the original listens
            await SERVE[self.name](self.listener.dup(), stop)
        finally:
            stopped.set()

    async def end(self) -> None:
        self.stop.set()
        await self.stopped.wait()

    async def restart(self, looks: bool = False) -> dict[str, int]:
        """Leave the run, and begin another; perhaps look at what is left between them."""
        await self.end()
        left: dict[str, int] = {}
        if looks:
            left = await self._left()
        self.start()
        return left

    async def _left(self) -> dict[str, int]:
        """What is left of a run; a worker thread forgets a moment later what it has done last."""
        left = await self.measure()
        with anyio.move_on_after(SETTLING):
            while any(left[name] for name in OF_A_RUN):
                await anyio.sleep(0.1)
                left = await self.measure()
        return {name: left[name] for name in OF_A_RUN}

    async def measure(self) -> dict[str, int]:
        if BACKENDS[self.name] == "asyncio":
            await forget_timers()
        return measured()

    async def kept(self) -> list[str]:
        return kept()

    async def types(self) -> dict[str, int]:
        return dict(types_of_objects())

    def knows(self, what: str) -> Callable[..., Awaitable[Any]]:
        commands = (self.restart, self.measure, self.kept, self.types, self.end)
        own = {one.__name__: one for one in commands}
        found: Callable[..., Awaitable[Any]] = own[what] if what in own else ACTIONS[what]
        return found


async def obey(process: Process, connection: anyio.abc.SocketStream) -> None:
    """Do everything that comes, each in a task of its own."""
    sending = anyio.Lock()

    async def do(id: int, what: str, facts: dict[str, Any]) -> None:
        try:
            answer = {"id": id, "answer": await process.knows(what)(**facts)}
        except Exception as error:
            traceback.print_exc()
            answer = {"id": id, "error": repr(error)}
        async with sending:
            await connection.send(json.dumps(answer).encode() + b"\n")

    lines = BufferedByteReceiveStream(connection)
    while True:
        try:
            line = await lines.receive_until(b"\n", LONG)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            return
        process.tasks.start_soon(do, *json.loads(line))


async def main(name: str, listening: int, control: int) -> None:
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.socket(fileno=listening))
        connection = await stack.enter_async_context(
            await anyio.abc.UNIXSocketStream.from_socket(socket.socket(fileno=control))
        )
        async with anyio.create_task_group() as tasks:
            process = Process(name, listener, tasks)
            process.start()
            await obey(process, connection)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    listen_to_logs()
    name, listening, control = sys.argv[1:]
    if name == "hypercorn":
        enable_lifespan_scope(app, lifespan_start="concurrent")
    anyio.run(main, name, int(listening), int(control), backend=BACKENDS[name])
