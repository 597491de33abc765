from typing import Annotated

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanContainer, get_container

from .app import app, get_pool

kept: list[LifespanContainer] = []


@app.get("/keep")
async def keep(container: Annotated[LifespanContainer, Depends(get_container)]) -> None:
    kept.append(container)


with TestClient(app) as client:
    client.get("/keep")

kept[0][get_pool]
