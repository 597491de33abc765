import logging
from collections.abc import AsyncIterator
from typing import Annotated

import anyio

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    View,
)


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
        tasks.cancel_scope.cancel()


FeedDep = Annotated[Feed, Depends(get_feed, scope="lifespan")]


async def look_after_feed(container: View) -> None:
    try:
        container[get_feed]
    except UninitializedLifespanDependency:
        await container.refresh(get_feed)


async def keep_feed_alive(app: LifespanFastAPI) -> AsyncIterator[None]:
    async def look_every_five_seconds() -> None:
        while True:
            await anyio.sleep(5)
            try:
                await look_after_feed(app.lifespan_container)
            except Exception:
                logging.exception("the feed is not back")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_every_five_seconds)
        yield
        tasks.cancel_scope.cancel()


app = LifespanFastAPI(dependencies=[Depends(keep_feed_alive, scope="lifespan")])


@app.get("/feed")
async def read_feed(feed: FeedDep) -> str:
    return "alive"
