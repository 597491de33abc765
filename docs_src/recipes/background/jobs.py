import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio
from anyio.abc import TaskGroup

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .mails import send_mail


class Jobs:
    """Starts functions that run beside the requests, with their dependencies."""

    def __init__(self, app: LifespanFastAPI, tasks: TaskGroup) -> None:
        self._app = app
        self._tasks = tasks
        self._places = anyio.CapacityLimiter(10)

    def start(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._tasks.start_soon(self._run, function, args)

    async def _run(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            async with self._places:
                await self._app.lifespan_container.call(function, *args)
        except Exception:
            logging.exception("%s%r has failed", function.__name__, args)


async def get_jobs(app: LifespanFastAPI) -> AsyncIterator[Jobs]:
    async with anyio.create_task_group() as tasks:
        yield Jobs(app, tasks)


JobsDep = Annotated[Jobs, Depends(get_jobs, scope="lifespan")]

app = LifespanFastAPI(handlers=[send_mail])


@app.post("/invitations", status_code=202)
async def invite(address: str, jobs: JobsDep) -> None:
    jobs.start(send_mail, address)
