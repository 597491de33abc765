from collections.abc import AsyncIterator, Iterable
from typing import Annotated

from fastapi import Depends
from fastapi_injectable import (
    cleanup_all_exit_stacks,
    clear_dependency_cache,
    get_injected_obj,
    injectable,
    injectable_scope,
    run_coroutine_sync,
)

from docs_src.database import Pool, connect

log: list[str] = []


async def get_pool() -> AsyncIterator[Pool]:
    pool = await connect("postgresql://localhost/shop")
    log.append("open the pool")
    try:
        yield pool
    finally:
        await pool.close()
        log.append("close the pool")


PoolDep = Annotated[Pool, Depends(get_pool)]


async def get_transaction(pool: PoolDep) -> AsyncIterator[Pool]:
    log.append("begin")
    try:
        yield pool
    except Exception:
        log.append("roll back")
        raise
    log.append("commit")


TransactionDep = Annotated[Pool, Depends(get_transaction)]


@injectable
async def handle(user_id: int, transaction: TransactionDep) -> str:
    return await transaction.fetch_user(user_id)


async def work(user_ids: Iterable[int]) -> list[str]:
    users = []
    for user_id in user_ids:
        async with injectable_scope():
            users.append(await handle(user_id))
    return users


def show_url() -> None:  # a command
    try:
        print(get_injected_obj(get_transaction).url)
    finally:
        run_coroutine_sync(cleanup_all_exit_stacks(raise_exception=True))
        run_coroutine_sync(clear_dependency_cache())
