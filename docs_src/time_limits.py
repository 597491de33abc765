from collections.abc import AsyncIterator
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .database import Pool, connect


async def get_pool() -> AsyncIterator[Pool]:
    pool = await connect("postgresql://localhost/shop")
    yield pool
    await pool.close()


PoolDep = Annotated[
    Pool, Depends(get_pool, scope="lifespan", start_timeout=30.0, stop_timeout=10.0)
]

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)
