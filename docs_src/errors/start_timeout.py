from typing import Annotated

import anyio
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .app import Pool


async def get_pool() -> Pool:
    await anyio.sleep_forever()  # the database doesn't answer
    return Pool()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan", start_timeout=0.1)]


async def get_session(pool: PoolDep) -> Pool:
    return pool


SessionDep = Annotated[Pool, Depends(get_session, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, session: SessionDep) -> str:
    return await session.fetch_user(user_id)


with TestClient(app):
    pass
