from collections.abc import AsyncIterator
from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def load_model() -> AsyncIterator[str]:
    await anyio.sleep(4)  # stands for what takes four seconds
    print("model loaded")
    yield "a model"
    print("model freed")


async def get_pool() -> AsyncIterator[str]:
    await anyio.sleep(1)
    print("pool opened")
    yield "a pool"
    print("pool closed")


PoolDep = Annotated[str, Depends(get_pool, scope="lifespan")]


async def get_cache(pool: PoolDep) -> AsyncIterator[str]:
    await anyio.sleep(2)
    print("cache filled")
    yield f"a cache of {pool}"
    print("cache saved")


app = LifespanFastAPI(lifespan_start="concurrent")


@app.get("/")
async def read_root(
    model: Annotated[str, Depends(load_model, scope="lifespan")],
    cache: Annotated[str, Depends(get_cache, scope="lifespan")],
) -> str:
    return f"{model} and {cache}"
