"""docs/recipes/background-tasks.md: APScheduler, whose jobs have dependencies."""

from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import pytest

pytest.importorskip("apscheduler")

from docs_src.recipes.background import mails, scheduler
from fastapi_lifespan_deps import LifespanFastAPI
from tests.clients import PATIENCE, Gate, running, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # APScheduler's


def outbox_of(app: LifespanFastAPI) -> mails.Outbox:
    return app.lifespan_container[mails.get_outbox]


async def test_a_job_is_run_with_its_dependencies() -> None:
    async with running(scheduler.app) as client:
        schedule = (await client.get("/schedule")).json()
        assert "06:00:00" in schedule["report"]
        running_one = scheduler.app.lifespan_container[scheduler.get_scheduler]
        running_one.modify_job("report", next_run_time=datetime.now(UTC))
        with anyio.fail_after(PATIENCE):
            while not outbox_of(scheduler.app).sent:
                await anyio.lowlevel.checkpoint()
    await settle()
    assert not running_one.running


async def test_a_job_of_apscheduler_may_end() -> None:
    """APScheduler itself would cancel it, and not wait for that; the call is waited for."""
    gate, ended = Gate(), []

    async def open_late() -> None:
        await settle()
        gate.open()

    async def send_late(outbox: mails.OutboxDep) -> None:
        await gate.wait()
        await outbox.send("late@example.com")
        ended.append(outbox.is_open)

    app = LifespanFastAPI(lifespan=scheduler.lifespan, handlers=[send_late])
    async with anyio.create_task_group() as tasks:
        async with running(app):
            running_one = app.lifespan_container[scheduler.get_scheduler]
            call = running_one.get_job("report").func
            running_one.modify_job("report", next_run_time=None)
            running_one.add_job(call, args=[send_late])
            with anyio.fail_after(PATIENCE):
                await gate.hold()
            tasks.start_soon(open_late)
        assert ended == [True]


async def test_apscheduler_logs_what_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with running(scheduler.app):
        running_one = scheduler.app.lifespan_container[scheduler.get_scheduler]
        outbox_of(scheduler.app).is_open = False
        running_one.modify_job("report", next_run_time=datetime.now(UTC))
        with anyio.fail_after(PATIENCE):
            while "the outbox is closed" not in caplog.text:
                await anyio.lowlevel.checkpoint()
        assert running_one.get_job("report").next_run_time is not None
