from collections.abc import AsyncIterator

import anyio

from fastapi_lifespan_deps import LifespanContainer, run_worker


async def messages() -> AsyncIterator[str]:
    yield "tea"


async def handle(message: str) -> None:
    await anyio.sleep_forever()  # the warehouse doesn't answer


async def main() -> None:
    async with LifespanContainer() as container:
        await run_worker(handle, messages, container=container, call_timeout=0.1)


anyio.run(main)
