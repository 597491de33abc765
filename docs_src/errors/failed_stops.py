from collections.abc import AsyncIterator

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_cache() -> AsyncIterator[str]:
    yield "a cache"
    raise OSError("the cache was not saved")


async def get_queue() -> AsyncIterator[str]:
    yield "a queue"
    raise ConnectionError("the queue was not drained")


app = LifespanFastAPI(
    dependencies=[Depends(get_cache, scope="lifespan"), Depends(get_queue, scope="lifespan")]
)


@app.get("/")
async def read_root() -> str:
    return "Hello"


with TestClient(app):
    pass
