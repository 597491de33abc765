from collections.abc import AsyncIterator
from typing import Annotated

import svcs
from fastapi import FastAPI

from docs_src.moving.shop import Pool, Session, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI, lifespan_container


async def get_pool() -> AsyncIterator[Pool]:
    pool = Pool(Settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


@svcs.fastapi.lifespan
async def lifespan(app: FastAPI, registry: svcs.Registry) -> AsyncIterator[dict[str, object]]:
    registry.register_value(Pool, lifespan_container(app)[get_pool])

    async def open_session(container: svcs.Container) -> AsyncIterator[Session]:
        async with Session(container.get(Pool)) as session:
            yield session

    registry.register_factory(Session, open_session, suppress_context_exit=False)
    yield {}


app = LifespanFastAPI(lifespan=lifespan)


@app.get("/database")  # this one has moved
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")  # this one hasn't
async def read_user(user_id: int, services: svcs.fastapi.DepContainer) -> str:
    session = await services.aget(Session)
    return await session.fetch_user(user_id)
