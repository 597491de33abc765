"""The application that is soaked: lifespan dependencies of many kinds, and what takes them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from fastapi import APIRouter, BackgroundTasks, FastAPI, WebSocket
from fastapi import Depends as FastAPIDepends
from fastapi.responses import StreamingResponse

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    View,
    get_container,
    inject,
)

from .values import LIE, Feed, Planned, Thing, Value, _lies, record

EVERY = 0.4  # seconds between two refreshes of the clock


class Settings(Thing):
    def __init__(self) -> None:
        super().__init__("settings")


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]


def get_engine(settings: SettingsDep) -> Iterator[Value]:
    engine = Value("engine", settings)
    yield engine
    engine.leave()


Engine = Annotated[Value, Depends(get_engine, scope="lifespan")]


async def get_model(engine: Engine) -> AsyncIterator[Value]:
    await anyio.lowlevel.checkpoint()  # where a start may be given up
    model = Value("model", engine)
    yield model
    model.check()
    await anyio.lowlevel.checkpoint()
    model.leave()


Model = Annotated[Value, Depends(get_model, scope="lifespan")]


async def fake_model(engine: Engine) -> AsyncIterator[Value]:
    with (model := Value("fake", engine)).living():
        yield model


def other_model() -> Iterator[Value]:
    with (model := Value("other")).living():
        yield model


@asynccontextmanager
async def get_service(model: Model) -> AsyncIterator[Value]:
    with (service := Value("service", model)).living():
        yield service


Service = Annotated[Value, Depends(get_service, scope="lifespan")]


async def get_own(engine: Engine) -> AsyncIterator[Value]:
    with (own := Value("own", engine)).living():
        yield own


Own = Annotated[Value, Depends(get_own, scope="lifespan", use_cache=False)]


async def get_feed() -> AsyncIterator[Feed]:
    """It has a task group, and dies with it."""
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
        feed.died.set()


async def is_well(value: Value) -> bool:
    value.check()
    return value.is_alive


LiveFeed = Annotated[Feed, Depends(get_feed, scope="lifespan", health=is_well)]


def get_reader(feed: LiveFeed) -> Iterator[Value]:
    reader = Value("reader", feed)
    yield reader
    reader.leave()


Reader = Annotated[Value, Depends(get_reader, scope="lifespan")]


async def get_scarce(settings: SettingsDep) -> AsyncIterator[Value]:
    """There is no room for two: it is refreshed with `policy="resource_preserving"`."""
    with (scarce := Value("scarce", settings)).living():
        yield scarce


Scarce = Annotated[Value, Depends(get_scarce, scope="lifespan")]


async def get_clock() -> AsyncIterator[Value]:
    with (clock := Value("clock")).living():
        yield clock


Clock = Annotated[
    Value, Depends(get_clock, scope="lifespan", refresh_every=EVERY, health=Value.check)
]


@contextmanager
def get_ledger(clock: Clock) -> Iterator[Value]:
    with (ledger := Value("ledger", clock)).living():
        yield ledger


Ledger = Annotated[Value, Depends(get_ledger, scope="lifespan")]


def get_archive(settings: SettingsDep) -> Iterator[Value]:
    """It and the journal fail to start at a refresh, now and then: the old ones serve on."""
    with (archive := Value("archive", settings)).living():
        yield archive


Archive = Annotated[Value, Depends(get_archive, scope="lifespan")]


async def get_journal(archive: Archive) -> AsyncIterator[Value]:
    with (journal := Value("journal", archive)).living():
        yield journal


Journal = Annotated[Value, Depends(get_journal, scope="lifespan")]


async def get_gauge() -> Thing:
    """Not left: only freed. Its fake fails to start."""
    return Thing("gauge")


async def broken_gauge(engine: Engine) -> Thing:
    raise Planned("the gauge is broken")


Gauge = Annotated[Thing, Depends(get_gauge, scope="lifespan")]


async def get_session(model: Model) -> AsyncIterator[Value]:
    """Of a request, or a call."""
    model.check()
    yield model
    model.check()


Session = Annotated[Value, FastAPIDepends(get_session)]


@asynccontextmanager
async def lifespan(app: FastAPI, ledger: Ledger) -> AsyncIterator[dict[str, Any]]:
    """It holds the first ledger, and the first clock, to the end of the run."""
    yield {"ledger": ledger}
    ledger.check()


# What is called outside of requests


async def handle(message: str, engine: Engine, session: Session) -> str:
    with using(engine, session):
        await anyio.lowlevel.checkpoint()
        if message == "fails":
            raise Planned("the call fails")
        if message == "hangs":
            await anyio.sleep_forever()
    return message


@inject
def work(
    message: str,
    service: Service,
    session: Session,
    view: Annotated[View, FastAPIDepends(get_container)],
) -> str:
    """In a worker thread."""
    with using(service, session):
        if view[get_service] is not service:
            record("torn", id=f"work {message}")
        if message == "fails":
            raise Planned("the call fails")
    return message


def plain(message: str, engine: Engine, session: Session) -> str:
    with using(engine, session):
        if message == "fails":
            raise Planned("the call fails")
    return message


@contextmanager
def using(*values: Thing) -> Iterator[None]:
    for value in values:
        value.check()
    try:
        yield
    finally:
        for value in values:
            value.check()


@contextmanager
def answering(id: str, kind: str, *values: Thing) -> Iterator[None]:
    """An endpoint, from its first line to its last."""
    record("begin", id=id, kind=kind)
    how = "complete"
    try:
        with using(*values):
            yield
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        record("end", id=id, how=how)


# The routes

app = LifespanFastAPI(openapi_url=None, lifespan=lifespan, handlers=[handle, work, plain])


@app.get("/")
async def read(id: str, engine: Engine, model: Model, service: Service) -> str:
    with answering(id, "request", engine, model, service):
        if service.on != (model,):
            record("torn", id=id)
        await anyio.lowlevel.checkpoint()
        if LIE == "loses answers" and _lies():
            raise RuntimeError("the answer is lost")
    return "done"


@app.get("/ready")
async def ready() -> str:
    return "yes"


@app.get("/thread")
def read_in_thread(id: str, service: Service, ledger: Ledger) -> str:
    with answering(id, "request", service, ledger):
        return "done"


@app.get("/session")
async def read_session(id: str, session: Session, own: Own) -> str:
    with answering(id, "request", session, own):
        await anyio.sleep(0.005)
    return "done"


@app.get("/background")
async def read_later(id: str, tasks: BackgroundTasks, model: Model, clock: Clock) -> str:
    async def later() -> None:
        with using(model, clock):
            await anyio.sleep(0.005)

    with answering(id, "request", model, clock):
        tasks.add_task(later)
    return "done"


@app.get("/container")
async def read_container(
    id: str, view: Annotated[LifespanContainer, FastAPIDepends(get_container)], model: Model
) -> str:
    with answering(id, "request", model):
        await view.call(handle, "inside")
        if view[get_model] is not model:
            record("torn", id=id)
    return "done"


@app.get("/refresh")
async def refresh(
    id: str, view: Annotated[LifespanContainer, FastAPIDepends(get_container)]
) -> str:
    """A request that asks for a refresh itself."""
    with answering(id, "request"):
        await view.refresh(get_own)
    return "done"


@app.get("/reader")
async def read_reader(id: str, reader: Reader) -> str:
    with answering(id, "request", reader):
        return "done"


@app.get("/scarce")
async def read_scarce(id: str, scarce: Scarce) -> str:
    with answering(id, "request", scarce):
        await anyio.lowlevel.checkpoint()
    return "done"


@app.get("/journal")
async def read_journal(id: str, journal: Journal) -> str:
    with answering(id, "request", journal):
        await anyio.lowlevel.checkpoint()
    return "done"


@app.get("/gauge")
async def read_gauge(id: str, gauge: Gauge) -> str:
    with answering(id, "request", gauge):
        return "done"


@app.get("/stream")
async def stream(id: str, lines: int, model: Model, clock: Clock) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        with answering(id, "stream", model, clock):
            for number in range(lines):
                yield f"{number}\n"
                model.check()
                clock.check()
                await anyio.sleep(0.01)
            if LIE != "loses answers" or not _lies():
                yield "end\n"

    return StreamingResponse(body())


@app.websocket("/talk")
async def talk(websocket: WebSocket, id: str, service: Service, own: Own) -> None:
    with answering(id, "websocket", service, own):
        await websocket.accept()
        async for text in websocket.iter_text():
            service.check()
            own.check()
            await websocket.send_text(text)


router = APIRouter(prefix="/included", dependencies=[Depends(get_own, scope="lifespan")])


@router.get("/{number}")
async def read_included(id: str, number: int, own: Own) -> str:
    with answering(id, "request", own):
        return "done"


app.include_router(router)
mounted = FastAPI(openapi_url=None)


@mounted.get("/own")
async def read_mounted(id: str, model: Model, own: Own) -> str:
    with answering(id, "request", model, own):
        return "done"


app.mount("/mounted", mounted)
