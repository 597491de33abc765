from collections.abc import AsyncIterator
from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends


def get_settings() -> dict[str, str]:
    return {"database": "postgresql://localhost/shop"}


SettingsDep = Annotated[dict[str, str], Depends(get_settings, scope="lifespan")]


async def get_pool(settings: SettingsDep) -> AsyncIterator[str]:
    await anyio.sleep(0.3)  # stands for ten connections
    yield f"a pool of {settings['database']}"
    await anyio.sleep(0.1)


PoolDep = Annotated[str, Depends(get_pool, scope="lifespan")]
