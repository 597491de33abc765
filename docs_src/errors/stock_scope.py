from fastapi import Depends
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import LifespanFastAPI

from .app import Pool, get_pool

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(
    user_id: int,
    pool: Pool = Depends(get_pool, scope="lifspan"),  # type: ignore[arg-type]
) -> str:
    return await pool.fetch_user(user_id)


with TestClient(app):
    pass
