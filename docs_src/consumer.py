from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from fastapi_lifespan_deps import LifespanFastAPI

from .outside_requests import PoolDep, TransactionDep

handled: list[str] = []


async def receive() -> AsyncIterator[int]:
    """Stands for the client of your message broker."""
    for user_id in (1, 2):
        yield user_id
    await anyio.sleep_forever()


async def handle(user_id: int, transaction: TransactionDep) -> None:
    handled.append(await transaction.fetch_user(user_id))


@asynccontextmanager
async def lifespan(app: LifespanFastAPI) -> AsyncIterator[None]:
    async def consume() -> None:
        async for user_id in receive():
            await app.lifespan_container.call(handle, user_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        yield
        tasks.cancel_scope.cancel()


app = LifespanFastAPI(lifespan=lifespan, handlers=[handle])


@app.get("/database")
async def read_database(pool: PoolDep) -> str:
    return pool.url
