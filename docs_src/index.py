from collections.abc import AsyncIterator
from typing import Annotated

import httpx

from fastapi_lifespan_deps import Depends, LifespanFastAPI

app = LifespanFastAPI()


async def get_client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url="https://example.com") as client:
        yield client


ClientDep = Annotated[httpx.AsyncClient, Depends(get_client, scope="lifespan")]


@app.get("/status")
async def read_status(client: ClientDep) -> int:
    response = await client.get("/")
    return response.status_code
