from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
from fastapi import Request
from fastapi.dependencies.utils import get_dependant, solve_dependencies

from .app import PoolDep


async def run_job(job: Callable[..., Awaitable[Any]]) -> None:
    """Stands for a library that solves dependencies on a request of its own."""
    async with AsyncExitStack() as stack:
        scope: dict[str, Any] = {"type": "http", "headers": [], "query_string": b""}
        scope |= {"fastapi_inner_astack": stack, "fastapi_function_astack": stack}
        solved = await solve_dependencies(
            request=Request(scope),
            dependant=get_dependant(path="/", call=job),
            async_exit_stack=stack,
            embed_body_fields=False,
        )
        await job(**solved.values)


async def count_users(pool: PoolDep) -> None:
    await pool.fetch_user(1)


anyio.run(run_job, count_users)
