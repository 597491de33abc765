from collections.abc import AsyncIterator
from typing import Annotated

from docs_src.moving.shop import Pool, Session, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def open_pool(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Pool]:
    pool = Pool(settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(open_pool, scope="lifespan")]


def make_session(pool: PoolDep) -> Session:
    return Session(pool)


app = LifespanFastAPI()


@app.get("/database")
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")
async def read_user(user_id: int, session: Annotated[Session, Depends(make_session)]) -> str:
    async with session:
        return await session.fetch_user(user_id)
