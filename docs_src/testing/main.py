from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from ..database import Pool, connect


class Settings:
    url = "postgresql://localhost/shop"


def get_settings() -> Settings:
    return Settings()


async def get_pool(
    settings: Annotated[Settings, Depends(get_settings, scope="lifespan")],
) -> AsyncIterator[Pool]:
    pool = await connect(settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


def get_user_id(user_id: Annotated[int, Header()]) -> int:
    return user_id


app = LifespanFastAPI()


@app.get("/me")
async def read_me(user_id: Annotated[int, Depends(get_user_id)], pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)
