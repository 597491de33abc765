"""docs/recipes/background-tasks.md: what runs as long as the application, and how it ends."""

import importlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskGroup
from trio.testing import MockClock

from docs_src.recipes.background import every, jobs, mails
from fastapi_lifespan_deps import Depends, LifespanFastAPI, UninitializedLifespanDependency
from tests.clients import PATIENCE, Gate, running, settle

pytestmark = pytest.mark.anyio


def outbox_of(app: LifespanFastAPI) -> mails.Outbox:
    return app.lifespan_container[mails.get_outbox]


async def test_a_job_runs_beside_the_request(anyio_backend: str) -> None:
    async with running(jobs.app) as client:
        answer = await client.post("/invitations", params={"address": "ada@example.com"})
        assert answer.status_code == 202
        await settle()
        assert outbox_of(jobs.app).sent == ["ada@example.com"]


async def test_a_job_that_fails_is_logged_and_no_other_notices(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(jobs.app) as client:
        await client.post("/invitations", params={"address": "nowhere"})
        await client.post("/invitations", params={"address": "ada@example.com"})
        await settle()
        assert outbox_of(jobs.app).sent == ["ada@example.com"]
    assert "send_mail('nowhere',) has failed" in caplog.text
    assert "ValueError: nowhere is no address" in caplog.text


async def test_jobs_have_their_dependencies_to_the_end(anyio_backend: str) -> None:
    """The stop waits for what has begun."""
    gate, sent = Gate(), []

    async def send_late(outbox: mails.OutboxDep) -> None:
        await gate.wait()
        await outbox.send("late@example.com")
        sent.append(outbox.sent[-1])

    app = LifespanFastAPI(handlers=[send_late])

    @app.post("/")
    async def start(starter: jobs.JobsDep) -> None:
        starter.start(send_late)

    async with anyio.create_task_group() as tasks:
        async with running(app) as client:
            await client.post("/")
            await gate.hold()
            tasks.start_soon(open_when_blocked, gate)
        assert sent == ["late@example.com"]


async def open_when_blocked(gate: Gate) -> None:
    await settle()
    gate.open()


async def test_a_task_that_raises_takes_its_group_along(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is without the `try` of the example."""

    async def get_tasks() -> AsyncIterator[TaskGroup]:
        async with anyio.create_task_group() as tasks:
            yield tasks

    app = LifespanFastAPI()

    async def fail() -> None:
        raise ConnectionError("gone")

    @app.post("/")
    async def start(tasks: Annotated[TaskGroup, Depends(get_tasks, scope="lifespan")]) -> None:
        tasks.start_soon(fail)

    @app.get("/other")
    async def read_other() -> str:
        return "fine"

    with pytest.RaisesGroup(ConnectionError):
        async with running(app) as client:
            await client.post("/")
            with anyio.fail_after(PATIENCE):
                while "get_tasks" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
            with pytest.raises(UninitializedLifespanDependency, match="get_tasks"):
                await client.post("/")
            assert (await client.get("/other")).json() == "fine"


def test_every_hour() -> None:
    async def main() -> None:
        async with running(every.app):
            await trio.sleep(3 * 3600 + 1)
            assert outbox_of(every.app).sent == ["boss@example.com"] * 3

    trio.run(main, clock=MockClock(autojump_threshold=0))


# APScheduler


@pytest.fixture
def scheduler() -> Any:
    pytest.importorskip("apscheduler")
    return importlib.import_module("docs_src.recipes.background.scheduler")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_apscheduler(scheduler: Any, anyio_backend: str) -> None:
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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_job_of_apscheduler_may_end(scheduler: Any, anyio_backend: str) -> None:
    """APScheduler itself would cancel it, and not wait for that; the call is waited for."""
    gate, ended = Gate(), []

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
            tasks.start_soon(open_when_blocked, gate)
        assert ended == [True]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_apscheduler_logs_what_fails(
    scheduler: Any, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(scheduler.app):
        running_one = scheduler.app.lifespan_container[scheduler.get_scheduler]
        outbox_of(scheduler.app).is_open = False
        running_one.modify_job("report", next_run_time=datetime.now(UTC))
        with anyio.fail_after(PATIENCE):
            while "the outbox is closed" not in caplog.text:
                await anyio.lowlevel.checkpoint()
        assert running_one.get_job("report").next_run_time is not None
