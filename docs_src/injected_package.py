from fastapi_lifespan_deps import LifespanContainer, current_container, inject

from .first_steps import get_pool
from .outside_requests import TransactionDep


@inject
async def greet(user_id: int, transaction: TransactionDep) -> str:
    return await transaction.fetch_user(user_id)


def database_url() -> str:
    return current_container()[get_pool].url


async def job() -> list[str]:
    return [await greet(1), database_url()]


async def main() -> list[str]:
    async with LifespanContainer(handlers=[greet, job]) as container:
        greeting: list[str] = await container.call(job)
    return greeting
