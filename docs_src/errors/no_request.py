import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from .app import PoolDep


async def run_job(job: Callable[..., Awaitable[Any]]) -> None:
    """Stands for a library that calls what `Depends` declares, and has no request."""
    parameters = inspect.signature(job).parameters.values()
    values = {one.name: await one.annotation.__metadata__[0].dependency() for one in parameters}
    await job(**values)


async def count_users(pool: PoolDep) -> None:
    await pool.fetch_user(1)


anyio.run(run_job, count_users)
