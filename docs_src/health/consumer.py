from collections.abc import AsyncIterator

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI, add_health_routes

orders, feed = anyio.create_memory_object_stream[str](10)
taken: list[str] = []


async def consume() -> None:
    async for order in feed:
        if not order:
            raise ValueError("an empty order")
        taken.append(order)


async def get_consumer() -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        yield
        tasks.cancel_scope.cancel()


app = LifespanFastAPI(dependencies=[Depends(get_consumer, scope="lifespan")])
add_health_routes(app, restart_if_dead=[get_consumer])


@app.post("/orders")
async def order(item: str) -> None:
    await orders.send(item)
