from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import LifespanFastAPI

from .app import PoolDep


def repeated(function: Callable[..., Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
    """Stands for a timer that calls the function now and then."""

    @wraps(function)
    async def wrapper() -> None:
        await function()

    return wrapper


@repeated
async def count_users(pool: PoolDep) -> None:
    await pool.fetch_user(1)


app = LifespanFastAPI(on_startup=[count_users])

with TestClient(app):
    pass
