import time
from typing import Annotated

from fastapi_lifespan_deps import Depends

from .db import PoolDep


def get_model(pool: PoolDep) -> str:
    time.sleep(0.8)  # stands for reading a file
    return f"a model from {pool}"


ModelDep = Annotated[str, Depends(get_model, scope="lifespan", refresh_every=3600)]


async def get_index(model: ModelDep, pool: PoolDep) -> list[str]:
    return [model, pool]


IndexDep = Annotated[list[str], Depends(get_index, scope="lifespan", start_timeout=30)]
