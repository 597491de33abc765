"""docs_src/workers/redis_stream.py with orders that hold, or end the process."""

import logging
import os
import signal

import anyio

from docs_src.workers import redis_stream
from docs_src.workers.redis_stream import Order, RedisDep, TransactionDep, container

accept = redis_stream.handle


@container.inject
async def handle(order: Order, transaction: TransactionDep, redis: RedisDep) -> None:
    """Begin; wait until a held one may go on; then do what the example does."""
    await redis.rpush("begun", order.id)
    if order.fields["item"] == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)
    if order.fields["item"] == "held":
        await redis.rpush(f"held {order.id}", "now")
        key = f"go on {order.id}"
        while not await redis.blmove(key, key, timeout=1):
            pass
    await accept(order, transaction=transaction)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    redis_stream.handle = handle
    anyio.run(redis_stream.main)
