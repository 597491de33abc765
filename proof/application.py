"""The application that is served. It records what happens to it, and goes wrong as it is told.

$PROOF_DIRECTORY is where its record is, and where files say what it may do; $PROOF_MODEL is what
goes wrong with its model; with $PROOF_LIE it seems to break a promise: the proof must fail.
"""

import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from fastapi import Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    get_container,
)

from .record import Recorder

DIRECTORY = Path(os.environ["PROOF_DIRECTORY"])
MODEL = os.environ.get("PROOF_MODEL", "")
LIE = os.environ.get("PROOF_LIE", "")

record = Recorder(DIRECTORY / "record")
numbers = itertools.count(1)
TICK = 0.02  # seconds between two looks at a file


class LogRecorder(logging.Handler):
    """What the package logs, and its order among the events, whatever a server does with logs."""

    def emit(self, line: logging.LogRecord) -> None:
        record("log", level=line.levelname, text=line.getMessage())


logger = logging.getLogger("fastapi_lifespan_deps")
logger.setLevel(logging.INFO)
logger.addHandler(LogRecorder())


async def wait_for(name: str) -> None:
    """Wait for a file."""
    while not (DIRECTORY / name).exists():  # noqa: ASYNC110 - another process makes it
        await anyio.sleep(TICK)


class Value:
    """A value: it is recorded when it is entered, and when it is left."""

    def __init__(self, name: str, *on: "Value") -> None:
        self.name = f"{name} {next(numbers)}"
        self.on = on
        self.is_alive = True
        record("enter", name=self.name, on=[value.name for value in on])

    def leave(self) -> None:
        self.is_alive = False
        if LIE != "never leaves":
            record("leave", name=self.name)
        if LIE == "leaves twice":
            record("leave", name=self.name)

    def check(self) -> None:
        """Whoever uses it, calls this."""
        for value in (self, *self.on):
            if not value.is_alive or LIE == "dead values":
                record("dead", name=value.name)


def get_engine() -> Iterator[Value]:
    engine = Value("engine")
    yield engine
    engine.leave()


Engine = Annotated[Value, Depends(get_engine, scope="lifespan")]


async def get_model(engine: Engine) -> AsyncIterator[Value]:
    record("starting")
    if MODEL == "start fails" or (DIRECTORY / "broken").exists():
        raise RuntimeError("the model is broken")
    if MODEL == "start hangs":
        await anyio.sleep_forever()
    if MODEL == "start waits":
        await wait_for("go")
    model = Value("model", engine)
    if LIE == "wrong order":
        engine.leave()
    yield model
    model.check()
    model.leave()
    if MODEL == "stop fails":
        raise RuntimeError("the model can't be released")
    if MODEL == "stop hangs":
        await anyio.sleep_forever()


Model = Annotated[
    Value,
    Depends(
        get_model,
        scope="lifespan",
        start_timeout=0.5 if MODEL == "start hangs" else None,
        stop_timeout=0.5 if MODEL == "stop hangs" else None,
    ),
]


class Feed(Value):
    """It has a task, which dies when it is told to."""

    def __init__(self) -> None:
        super().__init__("feed")
        self.dies = anyio.Event()

    async def run(self) -> None:
        await self.dies.wait()
        raise RuntimeError("the feed is broken")


async def get_feed() -> AsyncIterator[Feed]:
    feed = Feed()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.run)
            yield feed
            tasks.cancel_scope.cancel()
    except BaseException:
        record("died", name=feed.name)
        raise
    finally:
        feed.leave()


LiveFeed = Annotated[Feed, Depends(get_feed, scope="lifespan")]


def get_reader(feed: LiveFeed) -> Iterator[Value]:
    reader = Value("reader", feed)
    yield reader
    reader.leave()


Reader = Annotated[Value, Depends(get_reader, scope="lifespan")]

app = LifespanFastAPI(openapi_url=None)


@contextmanager
def handling(id: str, kind: str, engine: Value, model: Value) -> Iterator[Callable[[], None]]:
    """An endpoint, from its first line to its last; what it is given checks its values."""

    def check() -> None:
        model.check()
        engine.check()
        if model.on != (engine,):
            record("torn", id=id)

    record("begin", id=id, kind=kind, model=model.name)
    try:
        check()
        yield check
    except BaseException as error:
        record("end", id=id, how=type(error).__name__)
        raise
    else:
        record("end", id=id, how="complete")
    finally:
        check()


@app.get("/")
async def read(id: str, engine: Engine, model: Model) -> dict[str, Any]:
    with handling(id, "request", engine, model) as check:
        await anyio.lowlevel.checkpoint()
        check()
        if LIE == "loses answers" and next(numbers) % 5 == 0:
            raise RuntimeError("the answer is lost")
    return {"pid": os.getpid(), "model": model.name}


@app.get("/wait")
async def wait(id: str, engine: Engine, model: Model) -> dict[str, Any]:
    """A request that is long, until it is released."""
    with handling(id, "request", engine, model):
        await wait_for("release")
    return {"pid": os.getpid(), "model": model.name}


@app.get("/stream")
async def stream(id: str, engine: Engine, model: Model, lines: int = 0) -> StreamingResponse:
    """So many lines, or lines until it is released."""

    async def body() -> AsyncIterator[str]:
        with handling(id, "stream", engine, model) as check:
            number = 0
            while number < lines if lines else not (DIRECTORY / "release").exists():
                check()
                yield f"{number}\n"
                number += 1
                await anyio.sleep(TICK)
            if LIE != "loses answers" or next(numbers) % 2:
                yield "end\n"

    return StreamingResponse(body(), headers={"x-pid": str(os.getpid())})


@app.websocket("/talk")
async def talk(websocket: WebSocket, id: str, engine: Engine, model: Model) -> None:
    with handling(id, "websocket", engine, model) as check:
        await websocket.accept()
        await websocket.send_text(str(os.getpid()))
        # to the end of what the client says
        async for text in websocket.iter_text():
            check()
            await websocket.send_text(text)


@app.get("/pid")
async def read_pid() -> dict[str, Any]:
    return {"pid": os.getpid()}


@app.get("/model")
async def read_model(model: Model) -> dict[str, Any]:
    model.check()
    return {"pid": os.getpid(), "model": model.name}


@app.get("/reader")
async def read_reader(reader: Reader) -> dict[str, Any]:
    reader.check()
    return {"pid": os.getpid(), "reader": reader.name}


@app.post("/kill")
async def kill(feed: LiveFeed) -> dict[str, Any]:
    """Let the feed die."""
    feed.dies.set()
    return {"pid": os.getpid()}


@app.post("/refresh")
async def refresh(container: Annotated[LifespanContainer, Depends(get_container)]) -> Any:
    error = None
    try:
        await container.refresh(get_engine)
    except RuntimeError as caught:
        error = str(caught)
    return {"pid": os.getpid(), "error": error}


@app.exception_handler(LifespanDependencyError)
async def fail(request: Request, error: Exception) -> JSONResponse:
    """Say which process it was."""
    record("no value", path=request.url.path, error=type(error).__name__)
    return JSONResponse({"pid": os.getpid(), "error": type(error).__name__}, status_code=500)
