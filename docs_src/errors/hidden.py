from collections.abc import Awaitable, Callable
from typing import Any

from fastapi_lifespan_deps import Depends

from .app import Pool, PoolDep


def logged(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        print(function.__name__)
        return await function(*args, **kwargs)

    return wrapper


@logged
async def get_users(pool: PoolDep) -> dict[int, Pool]:
    return {1: pool}


UsersDep = Depends(get_users, scope="lifespan")
