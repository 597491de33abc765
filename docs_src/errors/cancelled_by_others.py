import asyncio
from collections.abc import AsyncIterator

import anyio

from fastapi_lifespan_deps import LifespanContainer, run_worker

answers: dict[str, asyncio.Future[str]] = {}


async def messages() -> AsyncIterator[str]:
    yield "tea"


async def handle(message: str) -> None:
    answers[message] = asyncio.get_running_loop().create_future()
    answers[message].cancel()  # stands for a client that gives up its connection
    await answers[message]


async def main() -> None:
    async with LifespanContainer() as container:
        await run_worker(handle, messages, container=container)


anyio.run(main)
