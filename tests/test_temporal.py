"""docs_src/workers/temporal_*.py on a real Temporal, and how activities end there."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest

pytest.importorskip("temporalio")

# isort: split
# After the line that skips this file.
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import CancelledError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from docs_src.workers.temporal_workflow import ClassifyProject
from fastapi_lifespan_deps import Depends, LifespanContainer
from tests.processes import ROOT, ServerProcess, writing_to
from tests.services import temporal_server

pytestmark = [pytest.mark.server, pytest.mark.slow]

PATIENCE = 60.0  # seconds for each thing that is waited for


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with temporal_server(tmp_path_factory.mktemp("temporal")) as address:
        yield address


# The program that the page shows


class Office:
    """An archive with documents, a database for their labels, and workers."""

    def __init__(self, address: str, root: Path) -> None:
        self._address = address
        self._database = root / "labels.db"
        self.archive = root / "archive"
        self.archive.mkdir()

    def start(self, database: Path | None = None) -> ServerProcess:
        return ServerProcess(
            ["-W", "error", "-m", "docs_src.workers.temporal_worker"],
            TEMPORAL_ADDRESS=self._address,
            ARCHIVE=str(self.archive),
            DATABASE=str(database or self._database),
        )

    def worker(self) -> ServerProcess:
        process = self.start()
        process.read_until("(working)")
        return process

    def add(self, name: str, text: str | None) -> Path:
        """Put a document into the archive; without a text, who reads it waits for who writes it."""
        path = self.archive / name
        path.parent.mkdir(exist_ok=True)
        if text is None:
            os.mkfifo(path)
        else:
            path.write_text(text)
        return path

    def classify(self, project: str, meanwhile: Callable[[], Any] = lambda: None) -> list[str]:
        """Let the workers classify a project; `meanwhile` is called in a thread."""

        async def main() -> list[str]:
            client = await Client.connect(self._address)
            handle = await client.start_workflow(
                ClassifyProject.run, project, id=uuid.uuid4().hex, task_queue="documents"
            )
            await asyncio.to_thread(meanwhile)
            return await asyncio.wait_for(handle.result(), PATIENCE)

        return asyncio.run(main())

    def database(self) -> sqlite3.Connection:
        return sqlite3.connect(self._database, check_same_thread=False)

    def labels(self) -> list[tuple[str, str, int]]:
        with closing(self.database()) as database:
            return list(database.execute("SELECT * FROM labels ORDER BY name"))


@pytest.fixture
def office(address: str, tmp_path: Path) -> Office:
    return Office(address, tmp_path)


def test_a_project_is_classified(office: Office) -> None:
    """Threads share the model; each document has a session, which SQLite ties to its thread."""
    for number in range(8):
        office.add(f"letters/{number}", "Dear Ada")
    office.add("letters/9", "total: 12")
    with office.worker() as worker:
        assert office.classify("letters") == ["letter"] * 8 + ["invoice"]
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert [(name, label) for name, label, _ in office.labels()] == [
        *((f"letters/{number}", "letter") for number in range(8)),
        ("letters/9", "invoice"),
    ]
    assert worker.output.split("\n") == [
        *("model loaded", "working", "stopping", "model released"),
        "",
    ]


def test_an_activity_whose_commit_fails_is_tried_again(office: Office) -> None:
    office.add("bills/1", "total: 12")
    with office.worker() as worker, closing(office.database()) as reader:
        # Whoever reads keeps others from committing, and not from writing.
        reader.execute("BEGIN").execute("SELECT * FROM labels").fetchall()

        def stop_reading() -> None:
            worker.read_until("(database is locked)")
            reader.rollback()

        assert office.classify("bills", stop_reading) == ["invoice"]
        assert "session.commit()" in worker.output
    [(name, label, attempt)] = office.labels()
    assert (name, label) == ("bills/1", "invoice")
    assert attempt > 1


def test_a_worker_that_stops_finishes_its_activities(office: Office) -> None:
    document = office.add("late/1", None)
    with ExitStack() as workers:
        first = workers.enter_context(office.worker())

        def stop_and_begin_again() -> None:
            with writing_to(document) as writing:
                first.process.send_signal(signal.SIGTERM)
                first.read_until("(stopping)")
                writing.write("Dear Grace")
            assert first.wait() == 0
            assert first.output.endswith("stopping\nmodel released\n")
            assert office.labels() == [("late/1", "letter", 1)]
            workers.enter_context(office.worker())

        assert office.classify("late", stop_and_begin_again) == ["letter"]
    assert office.labels() == [("late/1", "letter", 1)]


def test_a_worker_that_cannot_start_asks_for_no_work(office: Office, tmp_path: Path) -> None:
    with office.start(tmp_path / "nowhere" / "labels.db") as worker:
        assert worker.wait() == 1
    assert worker.output.startswith("model loaded\nmodel released\n")
    assert "OperationalError: unable to open database file\n" in worker.output
    assert "working" not in worker.output


def test_tests_of_activities() -> None:
    """The tests that the page shows pass."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "docs_src/workers/test_temporal.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


# Activities that are ended

log: list[str] = []
begun = threading.Event()


@contextmanager
def told(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        log.append(f"{name}: {type(error).__name__}")
        raise
    finally:
        log.append(f"{name} left")


def load_model() -> Iterator[str]:
    with told("model"):
        yield "model"


ModelDep = Annotated[str, Depends(load_model, scope="lifespan")]


async def get_session(model: ModelDep) -> AsyncIterator[str]:
    with told("session"):
        yield "session"


def get_cursor(session: Annotated[str, Depends(get_session)]) -> Iterator[str]:
    with told(f"cursor of {activity.info().activity_type}"):
        yield "cursor"


CursorDep = Annotated[str, Depends(get_cursor)]

container = LifespanContainer()


@activity.defn
@container.inject
def threaded(cursor: CursorDep) -> None:
    begun.set()
    while True:
        activity.heartbeat()
        activity.wait_for_cancelled_sync(0.01)


@activity.defn
@container.inject
async def asynchronous(cursor: CursorDep) -> None:
    begun.set()
    while True:
        activity.heartbeat()
        with anyio.move_on_after(0.01):
            await activity.wait_for_cancelled()


@workflow.defn
class Endless:
    @workflow.run
    async def run(self, name: str) -> None:
        await workflow.execute_activity(
            name,
            start_to_close_timeout=timedelta(seconds=PATIENCE),
            heartbeat_timeout=timedelta(seconds=1),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@pytest.mark.parametrize("name", ["threaded", "asynchronous"])
@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "out of grace"])
def test_an_activity_that_is_ended_leaves_its_dependencies(
    address: str, name: str, is_cancelled: bool
) -> None:
    """By its workflow, or because its worker stops and the grace is over; before the model."""
    log.clear()
    begun.clear()
    left = [f"cursor of {name}: CancelledError", f"cursor of {name} left"]
    left += ["session: CancelledError", "session left"]

    async def main() -> None:
        client = await Client.connect(address)
        with ThreadPoolExecutor(1) as threads:
            worker = Worker(
                client,
                task_queue="endless",
                workflows=[Endless],
                activities=[threaded, asynchronous],
                activity_executor=threads,
                max_concurrent_activities=1,
                graceful_shutdown_timeout=timedelta(milliseconds=10),
                workflow_runner=UnsandboxedWorkflowRunner(),
            )
            async with container, worker:
                handle = await client.start_workflow(
                    Endless.run, name, id=uuid.uuid4().hex, task_queue="endless"
                )
                assert await asyncio.to_thread(begun.wait, PATIENCE)
                if is_cancelled:
                    await handle.cancel()
                    with pytest.raises(WorkflowFailureError) as caught:
                        await asyncio.wait_for(handle.result(), PATIENCE)
                    assert isinstance(caught.value.cause, CancelledError)
                    assert log == left
                assert "model left" not in log
            if not is_cancelled:  # it will be tried again
                description = await handle.describe()
                [pending] = description.raw_description.pending_activities
                assert pending.attempt == 2
                await handle.terminate()

    asyncio.run(main())
    assert log == [*left, "model left"]
