from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .db import PoolDep


async def get_search(pool: PoolDep) -> str:
    await anyio.sleep_forever()  # stands for a server that doesn't answer
    return "a client"


app = LifespanFastAPI()


@app.get("/search")
async def search(client: Annotated[str, Depends(get_search, scope="lifespan")]) -> str:
    return client
