from collections.abc import AsyncIterator
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI

log: list[str] = []


async def get_pool() -> AsyncIterator[str]:
    yield "a pool"
    log.append("pool closed")


async def get_model(pool: Annotated[str, Depends(get_pool, scope="lifespan")]) -> str:
    raise FileNotFoundError("model.safetensors")


app = LifespanFastAPI()


@app.get("/")
async def read_root(model: Annotated[str, Depends(get_model, scope="lifespan")]) -> str:
    return model
