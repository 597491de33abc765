from collections.abc import AsyncIterator
from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Feed:
    def __init__(self) -> None:
        self.is_cut = anyio.Event()

    async def read(self) -> None:
        await self.is_cut.wait()
        raise ConnectionError("the feed was cut")


async def get_feed() -> AsyncIterator[Feed]:
    async with anyio.create_task_group() as tasks:
        feed = Feed()
        tasks.start_soon(feed.read)
        yield feed


FeedDep = Annotated[Feed, Depends(get_feed, scope="lifespan")]

app = LifespanFastAPI()


@app.post("/cut")
async def cut(feed: FeedDep) -> None:
    feed.is_cut.set()


@app.get("/feed")
async def read_feed(feed: FeedDep) -> str:
    return "alive"
