from typing import Annotated

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends

from .app import Pool, app, get_pool

OwnPool = Annotated[Pool, Depends(get_pool, scope="lifespan", use_cache=False)]

with TestClient(app) as client:

    @app.get("/late")
    async def read_late(pool: OwnPool) -> str:
        return await pool.fetch_user(1)

    client.get("/late")
