from collections.abc import AsyncIterator
from typing import Annotated, Any

import asyncpg
from pydantic_settings import BaseSettings

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Settings(BaseSettings):
    database_url: str  # postgresql://user:password@host/database


async def get_pool(settings: Annotated[Settings, Depends(scope="lifespan")]) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(
        settings.database_url, min_size=2, max_size=10, timeout=5, command_timeout=30
    ) as pool:
        yield pool


Pool = Annotated[
    asyncpg.Pool, Depends(get_pool, scope="lifespan", start_timeout=10, stop_timeout=10)
]


async def get_connection(pool: Pool) -> AsyncIterator[Any]:
    async with pool.acquire(timeout=5) as connection, connection.transaction():
        yield connection


Connection = Annotated[asyncpg.Connection, Depends(get_connection, scope="function")]

app = LifespanFastAPI()


@app.get("/sum")
async def read_sum(a: int, b: int, connection: Connection) -> int:
    total: int = await connection.fetchval("SELECT $1::int + $2::int", a, b)
    return total
