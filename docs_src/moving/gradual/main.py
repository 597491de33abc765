from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Request

from docs_src.moving.shop import Pool, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_pool() -> AsyncIterator[Pool]:
    pool = Pool(Settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


async def keep_in_state(app: FastAPI, pool: PoolDep) -> AsyncIterator[None]:
    former = getattr(app.state, "pool", None)
    app.state.pool = pool
    yield
    if app.state.pool is pool:
        app.state.pool = former


app = LifespanFastAPI(dependencies=[Depends(keep_in_state, scope="lifespan")])


@app.get("/users/{user_id}")  # this one has moved
async def read_user(user_id: int, pool: PoolDep) -> str:
    return f"user {user_id} of {pool.url}"


@app.get("/database")  # this one hasn't
async def read_database(request: Request) -> str:
    url: str = request.app.state.pool.url
    return url
