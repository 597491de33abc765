from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .app import Pool


async def get_pool(tenant: str) -> Pool:
    return Pool()


app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(
    user_id: int, pool: Annotated[Pool, Depends(get_pool, scope="lifespan")]
) -> str:
    return await pool.fetch_user(user_id)
