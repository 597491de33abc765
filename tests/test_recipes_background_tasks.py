"""docs/recipes/background-tasks.md: what runs as long as the application, and how it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskGroup
from fastapi import FastAPI
from trio.testing import MockClock

from docs_src.recipes.background import every, jobs, mails
from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    UninitializedLifespanDependency,
)
from tests.clients import PATIENCE, Gate, running, settle
from tests.test_events import Listener

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


@pytest.mark.parametrize(("is_listed", "status"), [(True, 500), (False, 200)])
async def test_who_needs_what_has_died(is_listed: bool, status: int, anyio_backend: str) -> None:
    """All routes, if the application lists it; none, if only its lifespan function takes it."""
    ending, listener = anyio.Event(), Listener()

    async def fail() -> None:
        await ending.wait()
        raise ConnectionError("gone")

    async def run() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            yield

    running_task = Depends(run, scope="lifespan")

    @asynccontextmanager
    async def lifespan(app: FastAPI, task: Annotated[None, running_task]) -> AsyncIterator[None]:
        yield

    app = LifespanFastAPI(
        dependencies=[running_task] if is_listed else [],
        lifespan=None if is_listed else lifespan,
        on_lifespan_event=listener,
    )
    app.get("/")(lambda: "fine")
    with pytest.RaisesGroup(ConnectionError):
        async with running(app, raises=False) as client:
            assert (await client.get("/")).status_code == 200
            ending.set()
            await listener.until("died")
            assert (await client.get("/")).status_code == status


def test_every_hour() -> None:
    async def main() -> None:
        async with running(every.app):
            await trio.sleep(3 * 3600 + 1)
            assert outbox_of(every.app).sent == ["boss@example.com"] * 3

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_the_loop_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    overrides = every.app.dependency_overrides
    monkeypatch.setitem(overrides, every.report_every_hour, lambda: "left out")
    async with running(every.app):
        assert every.app.lifespan_container[every.report_every_hour] == "left out"
