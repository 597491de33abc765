from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import BaseModel

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .database import Pool, connect


class Settings(BaseModel):
    database_url: str = "postgresql://localhost/shop"


def get_settings() -> Settings:
    print("settings read")
    return Settings()


SettingsDep = Annotated[Settings, Depends(get_settings, scope="lifespan")]


async def get_pool(settings: SettingsDep) -> AsyncIterator[Pool]:
    pool = await connect(settings.database_url)
    print("pool opened")
    yield pool
    await pool.close()
    print("pool closed")


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]


async def get_cache(pool: PoolDep) -> AsyncIterator[dict[int, str]]:
    print("cache filled")
    yield {1: await pool.fetch_user(1)}
    print("cache saved")


CacheDep = Annotated[dict[int, str], Depends(get_cache, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, cache: CacheDep, pool: PoolDep) -> str:
    if user_id not in cache:
        cache[user_id] = await pool.fetch_user(user_id)
    return cache[user_id]
