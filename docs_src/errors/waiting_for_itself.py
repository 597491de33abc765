from typing import Annotated

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanContainer, get_container

from .app import PoolDep, app, get_pool


@app.post("/refresh")
async def refresh(
    pool: PoolDep, container: Annotated[LifespanContainer, Depends(get_container)]
) -> None:
    draining = await container.refresh(get_pool)
    await draining.wait()


with TestClient(app) as client:
    client.post("/refresh")
