from collections.abc import AsyncIterator
from typing import Annotated

from docs_src.moving.shop import Pool, Session, Settings, Users
from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_pool(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Pool]:
    pool = Pool(settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


async def get_session(pool: PoolDep) -> AsyncIterator[Session]:
    async with Session(pool) as session:
        yield session


def get_users(session: Annotated[Session, Depends(get_session, scope="function")]) -> Users:
    return Users(session)


app = LifespanFastAPI()


@app.get("/database")
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")
async def read_user(user_id: int, users: Annotated[Users, Depends(get_users)]) -> str:
    return await users.find(user_id)
