"""docs_src/workers/celery_app.py in real workers, with tasks that come through a real Redis."""

import os
import re
import signal
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")
pytest.importorskip("redis")
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError
from redis import Redis

from docs_src.workers import celery_app
from docs_src.workers import test_celery as shown_tests
from docs_src.workers.celery_app import app, container
from fastapi_lifespan_deps import LifespanDependencyError
from tests import celery_tasks
from tests.processes import ServerProcess
from tests.services import redis_server

pytestmark = [pytest.mark.server, pytest.mark.slow]

# Tasks, which for pyright are still functions.
hold: Any = celery_tasks.hold
place_order: Any = celery_app.place_order
ship_order: Any = celery_app.ship_order

SECONDS = 60  # What anything may take, on a busy machine.
WARNINGS = (
    "error",
    "ignore:You're running the worker with superuser privileges",
    "ignore:Call to deprecated setex:DeprecationWarning",  # redis 8 says so of Celery 5.7
)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("redis")
    with redis_server(directory) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", url)
        patch.setenv("CELERY_RESULT_BACKEND", url)
        yield url
        app.close()


class Shop:
    """A queue for workers, what is in the database, and the tasks that `hold`."""

    def __init__(self, url: str, directory: Path) -> None:
        self.redis = Redis.from_url(url, socket_timeout=2 * SECONDS)
        self.database = directory / "shop.db"

    def worker(self, pool: str, *options: str, before_fork: bool = False) -> ServerProcess:
        warnings = [f"-W{action}" for action in WARNINGS]
        command = ("-m", "celery", "-A", "tests.celery_tasks", "worker", "--loglevel", "INFO")
        options = ("--pool", pool, "--concurrency", "2", "--without-mingle", *options)
        return ServerProcess(
            [*warnings, *command, *options],
            DATABASE=str(self.database),
            START_BEFORE_THE_FORK="yes" if before_fork else "",
        )

    def begin(self, item: str, *, writes: bool = True, **options: Any) -> Any:
        """Let a task hold; its result, as soon as it does."""
        result = hold.apply_async([item, writes], **options)
        assert self.redis.blpop(["held"], timeout=SECONDS) == (b"held", item.encode())
        return result

    def go_on(self, item: str) -> None:
        self.redis.rpush(f"go on, {item}", "now")

    def run_two_at_once(self, *items: str) -> list[dict[str, Any]]:
        results = [self.begin(item, writes=False) for item in items]
        for item in items:
            self.go_on(item)
        return [result.get(timeout=SECONDS) for result in results]

    def rows(self, table: str) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()


@pytest.fixture
def shop(redis_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(redis_url, tmp_path)
    with shop.redis:
        shop.redis.flushall()
        yield shop


def engines(output: str) -> dict[str, list[str]]:
    """What each process has done with its engine."""
    done = defaultdict(list)
    for process, what in re.findall(r"/([\w-]+)\] The engine is (\w+)", output):
        done[process].append(what)
    return done


def check_tasks(shop: Shop) -> None:
    """A session for each task, that commits or rolls back; what is asynchronous; retries."""
    assert place_order.delay("tea").get(timeout=SECONDS) == 3
    assert ship_order.delay("tea").get(timeout=SECONDS) == 3
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        place_order.delay(3).get(timeout=SECONDS)
    assert ("tea", 3) in shop.rows("orders")
    assert shop.rows("shipments") == [("tea", 3)]  # two attempts were rolled back


def stop_while_a_task_runs(shop: Shop, worker: ServerProcess) -> None:
    """The task that runs is done, and committed, before the worker ends."""
    last = shop.begin("last")
    worker.process.terminate()
    worker.read_until("(Warm shutdown)")
    shop.go_on("last")
    assert worker.wait() == 0
    assert last.get(timeout=SECONDS)["is seen"]
    assert shop.rows("orders")[-1] == ("last", 0)


def test_prefork(shop: Shop) -> None:
    """Each process has one engine, whatever happens to its tasks."""
    with shop.worker("prefork") as worker:
        worker.read_until(r"(ready\.)")
        facts = [*shop.run_two_at_once("a", "b"), *shop.run_two_at_once("c", "d")]
        assert len({fact["process"] for fact in facts}) == 2
        assert len({(fact["process"], fact["engine"]) for fact in facts}) == 2
        assert all(fact["is seen"] for fact in facts)
        assert all(fact["loop"] != fact["thread"] for fact in facts)
        check_tasks(shop)

        with pytest.raises(SoftTimeLimitExceeded):
            shop.begin("milk", soft_time_limit=1).get(timeout=SECONDS)
        revoked = shop.begin("bread")
        revoked.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            revoked.get(timeout=SECONDS)
        worker.read_until(r"(ForkPoolWorker-3\] The engine is open)")
        stop_while_a_task_runs(shop, worker)
    assert not {("milk", 0), ("bread", 0)} & {*shop.rows("orders")}
    assert set(map(tuple, engines(worker.output).values())) == {("open", "closed")}
    assert len(engines(worker.output)) == 3


def test_threads(shop: Shop) -> None:
    """The worker has one engine, and each task runs in a thread of the pool."""
    with shop.worker("threads") as worker:
        worker.read_until(r"(ready\.)")
        facts = shop.run_two_at_once("a", "b")
        assert len({(fact["process"], fact["engine"]) for fact in facts}) == 1
        assert len({fact["thread"] for fact in facts}) == 2
        assert all(fact["is seen"] for fact in facts)
        assert not {fact["loop"] for fact in facts} & {fact["thread"] for fact in facts}
        check_tasks(shop)
        stop_while_a_task_runs(shop, worker)
    assert engines(worker.output) == {"MainProcess": ["open", "closed"]}


def test_started_before_the_fork(shop: Shop) -> None:
    with shop.worker("prefork", before_fork=True) as worker:
        worker.read_until(r"(ready\.)")
        with pytest.raises(Exception, match="another process than that which started it"):
            place_order.delay("tea").get(timeout=SECONDS)
        worker.process.terminate()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_start_that_fails(shop: Shop, pool: str) -> None:
    """Without other processes, the worker ends."""
    shop.database = Path("/nowhere/shop.db")
    with shop.worker(pool) as worker:
        assert worker.wait() == 1
    assert "The container doesn't start" in worker.output


# What takes longer


@pytest.fixture
def takes_its_time(is_thorough: bool) -> None:
    if not is_thorough:
        pytest.skip("takes ten seconds: --thorough")


@pytest.mark.usefixtures("takes_its_time")
def test_start_that_fails_for_a_time(shop: Shop) -> None:
    """A process is started again and again in the place of one that was killed."""
    directory = shop.database.parent
    with shop.worker("prefork") as worker:
        worker.read_until(r"(ready\.)")
        killed, other = shop.run_two_at_once("a", "b")
        away = directory.rename(directory.with_name("away"))
        os.kill(killed["process"], signal.SIGKILL)
        worker.read_until(r"(?s)(doesn't start.*exitcode 1.*doesn't start)")
        away.rename(directory)
        worker.read_until(r"(?s)doesn't start.*(The engine is open)")
        facts = shop.run_two_at_once("c", "d")
        assert killed["process"] not in {fact["process"] for fact in facts}
        assert other["process"] in {fact["process"] for fact in facts}
        worker.process.terminate()
        assert worker.wait() == 0


@pytest.mark.usefixtures("takes_its_time")
def test_processes_for_one_task_each(shop: Shop) -> None:
    with shop.worker("prefork", "--max-tasks-per-child", "1") as worker:
        worker.read_until(r"(ready\.)")
        for item in ("tea", "milk", "bread"):
            assert place_order.delay(item).get(timeout=SECONDS) == len(item)
        worker.process.terminate()
        assert worker.wait() == 0
    assert set(map(tuple, engines(worker.output).values())) == {("open", "closed")}
    assert len(engines(worker.output)) >= 3


@pytest.mark.usefixtures("takes_its_time")
def test_cold_shutdown(shop: Shop) -> None:
    """What runs is interrupted, and rolled back."""
    with shop.worker("prefork") as worker:
        worker.read_until(r"(ready\.)")
        shop.begin("milk")
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait()
    assert shop.rows("orders") == []
    assert set(map(tuple, engines(worker.output).values())) == {("open", "closed")}
    assert len(engines(worker.output)) == 2


# Without a worker


def test_shown_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown_tests.test_tasks(tmp_path, monkeypatch)


def test_what_a_task_takes() -> None:
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        place_order.delay("tea", 3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'item'"):
        ship_order.delay()


def test_order_of_decorators() -> None:
    with pytest.raises(LifespanDependencyError, match=r"and below it `@container\.inject`"):
        container.inject(place_order)
