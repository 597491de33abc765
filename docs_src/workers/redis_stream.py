# --8<-- [start:connection]
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from fastapi_lifespan_deps import Depends, LifespanContainer, run_worker

logger = logging.getLogger(__name__)
container = LifespanContainer()

STREAM, GROUP, DEAD_LETTERS = "orders", "shop", "orders:dead"
IDLE = float(os.environ.get("IDLE", "60"))  # seconds; longer than a message may take
MAX_DELIVERIES = int(os.environ.get("MAX_DELIVERIES", "5"))


class Order(NamedTuple):
    id: str
    fields: dict[Any, Any]


async def get_redis() -> AsyncIterator[Redis]:
    url = os.environ.get("REDIS_URL", "redis://localhost")
    async with Redis.from_url(url, decode_responses=True) as redis:
        yield redis


RedisDep = Annotated[Redis, Depends(get_redis, scope="lifespan")]


async def get_consumer(redis: RedisDep) -> AsyncIterator[str]:
    """The name of this process in the group."""
    try:
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):  # it is there
            raise
    consumer = f"{socket.gethostname()}-{os.getpid()}"
    yield consumer
    if not await redis.xpending_range(STREAM, GROUP, "-", "+", 1, consumer):
        await redis.xgroup_delconsumer(STREAM, GROUP, consumer)


ConsumerDep = Annotated[str, Depends(get_consumer, scope="lifespan")]
# --8<-- [end:connection]


# --8<-- [start:messages]
@container.inject
async def messages(redis: RedisDep, consumer: ConsumerDep) -> AsyncIterator[Order]:
    cursor, look_again = "0-0", 0.0
    while True:
        if cursor != "0-0" or anyio.current_time() >= look_again:
            cursor, order = await take_over(redis, consumer, cursor)
            look_again = anyio.current_time() + IDLE / 2
        else:
            order = await read(redis, consumer)
        if order is not None:
            yield order


async def read(redis: Redis, consumer: str) -> Order | None:
    """The next one that nobody has; None if there is none for a second."""
    streams: Any = await redis.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=1, block=1000)
    for _, entries in streams:
        return Order(*entries[0])
    return None


async def take_over(redis: Redis, consumer: str, cursor: str) -> tuple[str, Order | None]:
    """One that was delivered, and not acknowledged for so long; and where to look on."""
    idle = int(IDLE * 1000)
    cursor, taken, _ = await redis.xautoclaim(STREAM, GROUP, consumer, idle, cursor, count=1)
    for id, fields in taken:
        pending: Any = await redis.xpending_range(STREAM, GROUP, id, id, 1, consumer)
        if pending and pending[0]["times_delivered"] <= MAX_DELIVERIES:
            return cursor, Order(id, fields)
        if pending:
            await bury(redis, Order(id, fields))
    return cursor, None


async def bury(redis: Redis, order: Order) -> None:
    async with redis.pipeline(transaction=True) as transaction:
        transaction.xadd(DEAD_LETTERS, {**order.fields, "id": order.id})
        transaction.xack(STREAM, GROUP, order.id)
        await transaction.execute()
    logger.error("Order %s was delivered %s times, and never done", order.id, MAX_DELIVERIES)


# --8<-- [end:messages]


# --8<-- [start:handle]
async def get_transaction(redis: RedisDep) -> AsyncIterator[Pipeline]:
    async with redis.pipeline(transaction=True) as transaction:
        yield transaction
        await transaction.execute()  # commits; it isn't reached if the handler raises


TransactionDep = Annotated[Pipeline, Depends(get_transaction)]


@container.inject
async def handle(order: Order, transaction: TransactionDep) -> None:
    quantity = int(order.fields["quantity"])
    transaction.hset("accepted", order.id, f"{quantity} x {order.fields['item']}")


@container.inject
async def acknowledge(order: Order, result: None, redis: RedisDep) -> None:
    await redis.xack(STREAM, GROUP, order.id)


def leave(order: Order, error: Exception) -> None:
    """Leave it unacknowledged: it is delivered again."""
    logger.warning("Order %s failed", order.id, exc_info=error)


# --8<-- [end:handle]


# --8<-- [start:main]
async def main() -> None:
    async with container:
        summary = await run_worker(
            handle,
            messages,
            container=container,
            concurrency=10,
            on_done=acknowledge,
            on_error=leave,
            call_timeout=IDLE / 2,
            grace_period=20,
        )
    print(summary)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    anyio.run(main)
# --8<-- [end:main]
