import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .mails import send_report

INTERVAL = timedelta(hours=1)


async def report_every_hour(app: LifespanFastAPI) -> AsyncIterator[None]:
    async def report_again_and_again() -> None:
        while True:
            await anyio.sleep(INTERVAL.total_seconds())
            try:
                await app.lifespan_container.call(send_report)
            except Exception:
                logging.exception("there is no report this time")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(report_again_and_again)
        yield
        tasks.cancel_scope.cancel()


app = LifespanFastAPI(
    dependencies=[Depends(report_every_hour, scope="lifespan")], handlers=[send_report]
)
