from fastapi_lifespan_deps import LifespanContainer

from .first_steps import app
from .outside_requests import PoolDep, TransactionDep

container = LifespanContainer.for_app(app)


@container.command
async def show_user(user_id: int, transaction: TransactionDep) -> None:
    print(await transaction.fetch_user(user_id))


async def print_user(user_id: int, transaction: TransactionDep) -> None:
    print(await transaction.fetch_user(user_id))


def print_url(pool: PoolDep) -> None:
    print(pool.url)


def print_users(user_ids: list[int]) -> None:
    with container.sync() as running:
        running.call(print_url)
        for user_id in user_ids:
            running.call(print_user, user_id)


if __name__ == "__main__":
    container.run(print_user, 1)
