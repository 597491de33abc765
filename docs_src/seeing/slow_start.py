import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_pool() -> AsyncIterator[str]:
    yield "a pool"


async def get_search(pool: Annotated[str, Depends(get_pool, scope="lifespan")]) -> str:
    await asyncio.sleep(0.25)  # stands for a server that takes its time
    return "a client"


app = LifespanFastAPI(slow_after=0.1)  # seconds


@app.get("/search")
async def search(client: Annotated[str, Depends(get_search, scope="lifespan")]) -> str:
    return client


async def main() -> None:
    """Start and stop, as a server does."""
    async with app.router.lifespan_context(app):
        pass


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(message)s")
    asyncio.run(main())
