from collections.abc import AsyncIterator
from typing import Annotated

from docs_src.moving.shop import Pool, Session, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_pool() -> AsyncIterator[Pool]:
    pool = Pool(Settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


async def open_session(pool: PoolDep) -> AsyncIterator[Session]:
    async with Session(pool) as session:
        yield session


app = LifespanFastAPI()


@app.get("/database")
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")
async def read_user(user_id: int, session: Annotated[Session, Depends(open_session)]) -> str:
    return await session.fetch_user(user_id)
