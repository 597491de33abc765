"""docs_src/workers/taskiq_app.py, in this process and in real workers."""

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("redis")
pytest.importorskip("taskiq")
from redis import Redis
from taskiq import AsyncTaskiqDecoratedTask, TaskiqResult

from docs_src import outside_requests
from docs_src.first_steps import get_pool
from docs_src.outside_requests import PoolDep, TransactionDep
from docs_src.workers.taskiq_app import broker, container, greet
from fastapi_lifespan_deps import LifespanDependencyError, LifespanNotRunning
from tests import taskiq_tasks
from tests.processes import ServerProcess
from tests.services import redis_server

SECONDS = 60  # What anything may take, on a busy machine.


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# In this process


@broker.task
@container.inject
async def look(pool: PoolDep, transaction: TransactionDep) -> int:
    assert transaction is pool
    assert pool.is_open
    return id(pool)


@broker.task
@container.inject
def look_in_a_thread(transaction: TransactionDep) -> int:
    assert transaction.is_open
    return threading.get_ident()


@broker.task
@container.inject
async def fail(transaction: TransactionDep) -> None:
    raise ValueError("it fails")


async def result_of(task: AsyncTaskiqDecoratedTask[..., Any], *args: Any) -> TaskiqResult[Any]:
    sent = await task.kicker().with_labels(tenant="acme").kiq(*args)
    return await sent.wait_result(check_interval=0.01, timeout=SECONDS)


@pytest.mark.anyio
async def test_tasks() -> None:
    """One pool from the startup of the broker to its end, and a transaction for each task."""
    log = outside_requests.log
    log.clear()
    await broker.startup()
    pool = container[get_pool]
    assert (await result_of(look)).return_value == (await result_of(look)).return_value == id(pool)
    assert log == ["begin", "commit"] * 2

    log.clear()
    greeting = await result_of(greet, 1)
    assert greeting.return_value == "user 1 of postgresql://localhost/shop, for acme"
    assert (await result_of(look_in_a_thread)).return_value != threading.get_ident()
    assert log == ["begin", "commit"] * 2

    log.clear()
    failed = await result_of(fail)
    assert repr(failed.error) == "ValueError('it fails')"
    assert log == ["begin", "roll back"]

    await broker.shutdown()
    assert not pool.is_open
    with pytest.raises(LifespanNotRunning, match="it was not entered, or was left"):
        (await result_of(look)).raise_for_error()


def test_order_of_decorators() -> None:
    with pytest.raises(LifespanDependencyError, match=r"and below it `@container\.inject`"):
        container.inject(look)


# In workers


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with (
        redis_server(tmp_path) as url,
        pytest.MonkeyPatch.context() as patch,
        Redis.from_url(url, socket_timeout=2 * SECONDS) as redis,
    ):
        patch.setenv("REDIS_URL", url)
        yield redis


@pytest.mark.server
@pytest.mark.slow
def test_workers(redis: Redis) -> None:
    """Each process has an engine of its own; what runs at SIGTERM is done before it is closed."""
    options = ("--workers", "2", "--max-async-tasks", "10")
    command = ["-W", "error", "-m", "taskiq", "worker", *options, "tests.taskiq_tasks:broker"]
    with ServerProcess(command) as worker:
        worker.read_until("(?s)(Listening started.*Listening started)")
        for item in ("a", "b", "c"):
            anyio.run(taskiq_tasks.hold.kiq, item)
        for _ in ("a", "b", "c"):
            assert redis.blpop(["held"], timeout=SECONDS)
        worker.process.terminate()
        worker.read_until("(Waiting for . running tasks)")
        for item in ("a", "b", "c"):
            redis.rpush(f"go on, {item}", "now")
        assert worker.wait() == 0
    done: dict[str, list[str]] = defaultdict(list)
    for process, what in re.findall(r"^(\d+): (.*)$", worker.output, re.MULTILINE):
        done[process].append(what)
    assert len(done) == 2
    for steps in done.values():
        assert (steps[0], steps[-1]) == ("open", "closed")
        assert steps.count("open") == steps.count("closed") == 1
    assert {"commit a", "commit b", "commit c"} <= set(chain(*done.values()))
