from collections.abc import AsyncIterator, Iterable
from typing import Annotated

from docs_src.database import Pool, connect
from fastapi_lifespan_deps import Depends, LifespanContainer

log: list[str] = []


async def get_pool() -> AsyncIterator[Pool]:
    pool = await connect("postgresql://localhost/shop")
    log.append("open the pool")
    yield pool
    await pool.close()
    log.append("close the pool")


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


async def get_transaction(pool: PoolDep) -> AsyncIterator[Pool]:
    log.append("begin")
    try:
        yield pool
    except Exception:
        log.append("roll back")
        raise
    log.append("commit")


TransactionDep = Annotated[Pool, Depends(get_transaction)]

container = LifespanContainer()


@container.inject
async def handle(user_id: int, transaction: TransactionDep) -> str:
    return await transaction.fetch_user(user_id)


async def work(user_ids: Iterable[int]) -> list[str]:
    async with container:
        return [await handle(user_id) for user_id in user_ids]


@container.command
def show_url(transaction: TransactionDep) -> None:
    print(transaction.url)
