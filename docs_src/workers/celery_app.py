# --8<-- [start:tasks]
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from typing import Annotated, Any

from celery import Celery, Task, signals
from celery.concurrency.thread import TaskPool as ThreadPool

from fastapi_lifespan_deps import Depends, LifespanContainer

logger = logging.getLogger(__name__)

app = Celery("shop", broker="redis://localhost", backend="redis://localhost")
container = LifespanContainer()


class Engine:
    """Stands for the engine of your database."""

    def __init__(self, path: str) -> None:
        self.path = path
        with closing(self.connect()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS orders (item, price)")
            connection.execute("CREATE TABLE IF NOT EXISTS shipments (item, attempt)")

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)


async def get_engine() -> AsyncIterator[Engine]:
    engine = Engine(os.environ.get("DATABASE", "shop.db"))
    logger.info("The engine is open")
    yield engine
    logger.info("The engine is closed")


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]


def get_session(engine: EngineDep) -> Iterator[sqlite3.Connection]:
    with closing(engine.connect()) as session, session:
        yield session  # then commits; or rolls back, if the task raises


async def get_price(item: str) -> int:
    return len(item)  # stands for what another service answers


def get_attempt(self: Task) -> int:
    return 1 + int(self.request.retries)


SessionDep = Annotated[sqlite3.Connection, Depends(get_session)]
PriceDep = Annotated[int, Depends(get_price)]
AttemptDep = Annotated[int, Depends(get_attempt)]


@app.task
@container.inject
def place_order(item: str, *, session: SessionDep, price: PriceDep) -> int:
    session.execute("INSERT INTO orders VALUES (?, ?)", (item, price))
    return price


@app.task(bind=True, autoretry_for=[ConnectionError], retry_kwargs={"countdown": 0})
@container.inject
def ship_order(self: Task, item: str, *, session: SessionDep, attempt: AttemptDep) -> int:
    session.execute("INSERT INTO shipments VALUES (?, ?)", (item, attempt))
    if attempt < 3:
        raise ConnectionError("the warehouse doesn't answer")
    return attempt


# --8<-- [end:tasks]

# --8<-- [start:signals]
app.conf.worker_proc_alive_timeout = 60  # seconds, in which `start` has to be done
running = ExitStack()


def start(**_: Any) -> None:
    try:
        running.enter_context(container.sync())
    except Exception as error:
        logger.exception("The container doesn't start")
        raise SystemExit(1) from error


def stop(**_: Any) -> None:
    running.close()


@signals.celeryd_after_setup.connect
def start_for_threads(instance: Any, **_: Any) -> None:
    if issubclass(instance.pool_cls, ThreadPool):
        start()


signals.worker_process_init.connect(start)
signals.worker_process_shutdown.connect(stop)
signals.worker_shutdown.connect(stop)
# --8<-- [end:signals]
