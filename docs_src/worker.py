from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from anyio.abc import ObjectSendStream

from fastapi_lifespan_deps import Depends, LifespanFastAPI

handled: list[str] = []


async def handle(job: str) -> None:
    handled.append(job)


async def get_queue() -> AsyncIterator[ObjectSendStream[str]]:
    send, receive = anyio.create_memory_object_stream[str](100)

    async def work() -> None:
        async for job in receive:
            await handle(job)

    async with receive, anyio.create_task_group() as tasks, send:
        tasks.start_soon(work)
        yield send


QueueDep = Annotated[ObjectSendStream[str], Depends(get_queue, scope="lifespan")]

app = LifespanFastAPI()


@app.post("/jobs")
async def create_job(name: str, queue: QueueDep) -> str:
    await queue.send(name)
    return "queued"
