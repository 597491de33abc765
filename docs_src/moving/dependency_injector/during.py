from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from dependency_injector.wiring import Provide, inject
from fastapi import FastAPI

from docs_src.moving.shop import Pool, Session
from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .before import Container


async def get_pool() -> Pool:
    return await container.pool()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await container.init_resources()
    yield
    await container.shutdown_resources()


app = LifespanFastAPI(lifespan=lifespan)


@app.get("/database")  # this one has moved
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")  # this one hasn't
@inject
async def read_user(
    user_id: int, session: Annotated[Session, Depends(Provide[Container.session])]
) -> str:
    async with session:
        return await session.fetch_user(user_id)


container = Container()
container.wire(modules=[__name__])
