from typing import Annotated

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .app import Pool, get_pool

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(
    user_id: int,
    pool: Annotated[Pool, Depends(get_pool, scope="lifespan", refresh_every=3600)],
) -> str:
    return await pool.fetch_user(user_id)


@app.get("/orders")
async def read_orders(
    pool: Annotated[Pool, Depends(get_pool, scope="lifespan", refresh_every=60)],
) -> str:
    return await pool.fetch_user(1)


with TestClient(app):
    pass
