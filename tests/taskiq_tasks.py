"""A task for real workers, which start as docs_src/workers/taskiq_app.py does."""

import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from redis.asyncio import Redis
from taskiq import AsyncBroker, BrokerMessage, TaskiqEvents

from docs_src.workers.taskiq_app import container, start, stop
from fastapi_lifespan_deps import Depends


def connect() -> Redis:
    return Redis.from_url(os.environ["REDIS_URL"], socket_timeout=120)


class ListBroker(AsyncBroker):
    """The least that taskiq's workers need."""

    async def kick(self, message: BrokerMessage) -> None:
        async with connect() as redis:
            await redis.lpush("tasks", message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        async with connect() as redis:
            while True:
                if (found := await redis.brpop(["tasks"], timeout=60)) is not None:
                    assert isinstance(found[1], bytes)
                    yield found[1]


broker = ListBroker()
broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, start)
broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, stop)


def tell(what: str) -> None:
    os.write(1, f"{os.getpid()}: {what}\n".encode())


async def get_engine() -> AsyncIterator[int]:
    tell("open")
    yield os.getpid()
    tell("closed")


async def get_session(
    item: str, engine: Annotated[int, Depends(get_engine, scope="lifespan")]
) -> AsyncIterator[str]:
    tell(f"begin {item}")
    yield item
    tell(f"commit {item}")


@broker.task
@container.inject
async def hold(item: str, session: Annotated[str, Depends(get_session)]) -> None:
    """Wait until `item` may go on."""
    async with connect() as redis:
        await redis.rpush("held", session)
        await redis.blpop([f"go on, {item}"], timeout=60)
