from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .mails import send_report


async def get_scheduler(app: LifespanFastAPI) -> AsyncIterator[Any]:
    async def call(function: Any) -> None:
        await app.lifespan_container.call(function)

    scheduler = AsyncIOScheduler(timezone="UTC")
    scheduler.add_job(
        call,
        "cron",
        args=[send_report],
        id="report",
        hour=6,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=3600,
    )
    scheduler.start(paused=True)
    yield scheduler
    scheduler.shutdown()


SchedulerDep = Annotated[AsyncIOScheduler, Depends(get_scheduler, scope="lifespan")]


@asynccontextmanager
async def lifespan(app: LifespanFastAPI, scheduler: SchedulerDep) -> AsyncIterator[None]:
    scheduler.resume()  # all that jobs need is up
    yield
    scheduler.pause()


app = LifespanFastAPI(lifespan=lifespan, handlers=[send_report])


@app.get("/schedule")
async def read_schedule(scheduler: SchedulerDep) -> dict[str, str]:
    return {job.id: str(job.next_run_time) for job in scheduler.get_jobs()}
