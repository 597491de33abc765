import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanContainer

from .database import Pool
from .first_steps import get_pool

PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]

log: list[str] = []


@dataclass
class Message:
    user_id: int
    tenant: str


async def get_transaction(pool: PoolDep) -> AsyncIterator[Pool]:
    log.append("begin")
    try:
        yield pool
    except Exception:
        log.append("roll back")
        raise
    log.append("commit")


def get_tenant(message: Message) -> str:
    return message.tenant


TransactionDep = Annotated[Pool, Depends(get_transaction)]
TenantDep = Annotated[str, Depends(get_tenant)]

container = LifespanContainer()


@container.inject
async def handle(message: Message, transaction: TransactionDep, tenant: TenantDep) -> str:
    user = await transaction.fetch_user(message.user_id)
    return f"{user}, for {tenant}"


async def main(messages: Iterable[Message]) -> list[str]:
    async with container:
        return [await handle(message) for message in messages]


if __name__ == "__main__":
    print(*asyncio.run(main([Message(1, "acme")])), sep="\n")
