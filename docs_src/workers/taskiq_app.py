from contextlib import AsyncExitStack
from typing import Annotated

from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState

from docs_src.outside_requests import TransactionDep
from fastapi_lifespan_deps import Depends, LifespanContainer

broker = InMemoryBroker()
container = LifespanContainer()


def get_tenant(context: Context) -> str:
    return str(context.message.labels["tenant"])


@broker.task
@container.inject
async def greet(
    user_id: int,
    transaction: TransactionDep,
    tenant: Annotated[str, Depends(get_tenant)],
    context: Annotated[Context, TaskiqDepends()],
) -> str:
    return f"{await transaction.fetch_user(user_id)}, for {tenant}"


running = AsyncExitStack()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    await running.enter_async_context(container)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def stop(state: TaskiqState) -> None:
    await running.aclose()
