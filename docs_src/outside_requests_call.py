from fastapi_lifespan_deps import LifespanContainer

from .outside_requests import PoolDep, TransactionDep, get_transaction


async def greet(user_id: int, transaction: TransactionDep) -> str:
    return await transaction.fetch_user(user_id)


def describe(pool: PoolDep) -> str:
    return pool.url


container = LifespanContainer(handlers=[greet, describe])


async def main() -> list[str]:
    async with container:
        greeting = await container.call(greet, 1)
        url = await container.call(describe)
        async with container.enter(get_transaction) as transaction:
            user = await transaction.fetch_user(2)
    return [greeting, url, user]
