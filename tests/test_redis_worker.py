"""docs_src/workers/redis_stream.py: real workers on a real Redis, that are killed and stopped."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")
from redis import Redis

from docs_src.workers import test_redis_stream as shown_tests
from docs_src.workers.redis_stream import DEAD_LETTERS, GROUP, STREAM
from tests.processes import ROOT, ServerProcess
from tests.services import program, redis_server

yaml: Any = pytest.importorskip("yaml")

pytestmark = [pytest.mark.server, pytest.mark.slow]

SECONDS = 60  # What anything may take, on a busy machine.
WORKERS = ROOT / "docs_src/workers"
SUMMARY = (WORKERS / "summary.txt").read_text().rstrip("\n")

POD = yaml.safe_load((WORKERS / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]

# The example with orders that hold: its own program, and the command of the container.
PROGRAM = ("-m", "tests.redis_orders")
COMMAND = tuple(
    argument.replace("redis_stream:handle", "tests.redis_orders:handle").replace(
        "=redis_stream:", "=docs_src.workers.redis_stream:"
    )
    for argument in ("-m", "fastapi_lifespan_deps", *CONTAINER["command"][1:], *CONTAINER["args"])
)


class Shop:
    """A stream of orders for workers, and what becomes of each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = Redis.from_url(url, decode_responses=True, socket_timeout=2 * SECONDS)
        self.committed: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.buried: list[str] = []

    def worker(
        self, command: tuple[str, ...] = PROGRAM, *, idle: float = 60, max_deliveries: int = 99
    ) -> ServerProcess:
        return ServerProcess(
            ["-W", "error", *command],
            REDIS_URL=self.url,
            IDLE=str(idle),
            MAX_DELIVERIES=str(max_deliveries),
        )

    def send(self, item: str, count: int = 1, *, quantity: object = 1) -> list[str]:
        with self.redis.pipeline() as pipeline:
            for _ in range(count):
                pipeline.xadd(STREAM, {"item": item, "quantity": str(quantity)})
            sent: list[str] = pipeline.execute()
        return sent

    def wait_for_held(self, *orders: str) -> None:
        for order in orders:
            assert self.redis.blpop([f"held {order}"], timeout=SECONDS)

    def release(self, *orders: str) -> None:
        for order in orders:
            self.redis.rpush(f"go on {order}", "now")

    def let_time_pass(self) -> None:
        """An hour, for what is delivered and not acknowledged."""
        for pending in self.everything_pending():
            who, order = pending["consumer"], pending["message_id"]
            self.redis.xclaim(STREAM, GROUP, who, 0, [order], idle=3_600_000, justid=True)

    @property
    def begun(self) -> Counter[str]:
        return Counter(self.redis.lrange("begun", 0, -1))

    def everything_pending(self) -> list[dict[str, Any]]:
        pending: list[dict[str, Any]] = self.redis.xpending_range(STREAM, GROUP, "-", "+", 100)
        return pending

    @contextmanager
    def watching(self) -> Iterator[Iterator[str]]:
        """What Redis does, in its order: the orders that are acknowledged, or buried.

        None is acknowledged that isn't committed by then.
        """
        with self.redis.monitor() as monitor:
            yield self._ends(monitor)

    def _ends(self, monitor: Any) -> Iterator[str]:
        for command in monitor.listen():
            match command["command"].split():
                case ["HSET", "accepted", id, *_]:  # when the transaction is executed
                    self.committed[id] += 1
                case ["XADD", str(stream), *_, "id", id] if stream == DEAD_LETTERS:
                    self.buried.append(id)
                    yield id
                case ["XACK", str(stream), str(group), id] if id not in self.buried:
                    assert (stream, group) == (STREAM, GROUP)
                    assert self.committed[id]
                    self.acknowledged.add(id)
                    yield id

    def read_until(self, ends: Iterator[str], *, acknowledged: int = 0, buried: int = 0) -> None:
        while len(self.acknowledged) < acknowledged or len(self.buried) < buried:
            next(ends)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    shop = Shop(redis_url)
    with shop.redis:
        shop.redis.flushall()
        yield shop


def stop(worker: ServerProcess) -> str:
    """End it by SIGTERM; its summary."""
    worker.process.terminate()
    return summary_of(worker)


def summary_of(worker: ServerProcess) -> str:
    assert worker.wait() == 0
    return worker.output.splitlines()[-1]


def test_orders_outlive_their_workers(shop: Shop, is_thorough: bool) -> None:
    """Each is begun at least once, and none is acknowledged that isn't committed."""
    count, kills = (2000, 9) if is_thorough else (200, 2)
    part = count // (kills + 1)
    sent: list[str] = []
    with shop.watching() as ends:
        for kill in range(kills):
            before, [held] = shop.send("tea", part // 2), shop.send("held")
            sent += [*before, held, *shop.send("tea", part // 2 - 1)]
            with shop.worker(COMMAND) as worker:
                shop.read_until(ends, acknowledged=kill * part + part // 2)
                shop.wait_for_held(held)
                worker.process.kill()
                assert worker.wait() == -signal.SIGKILL
            shop.let_time_pass()
            shop.release(held)
        sent += shop.send("tea", count - len(sent))
        with shop.worker(COMMAND) as worker:
            shop.read_until(ends, acknowledged=count)
            assert stop(worker).endswith("0 failed, 0 cancelled: stopped by SIGTERM")
    assert shop.acknowledged == set(sent)
    assert not shop.everything_pending()
    assert {*shop.begun} == {*shop.redis.hkeys("accepted")} == {*sent}
    assert shop.begun.total() > count  # some were interrupted, and begun again


@pytest.mark.parametrize("command", [PROGRAM, COMMAND], ids=["program", "command line"])
def test_sigterm_lets_what_runs_end(shop: Shop, command: tuple[str, ...]) -> None:
    """With all places taken: what runs is done, and no other is begun."""
    first = shop.send("tea", 50) + (held := shop.send("held", 10))
    rest = shop.send("tea", 100)
    with shop.worker(command) as worker:
        shop.wait_for_held(*held)
        worker.process.terminate()
        worker.read_until("(SIGTERM: the worker takes no more messages)")
        shop.release(*held)
        assert summary_of(worker) == SUMMARY
    assert shop.begun == Counter(first)
    with shop.watching() as ends, shop.worker(command) as worker:
        shop.read_until(ends, acknowledged=100)
        assert stop(worker) == SUMMARY.replace("60", "100")
    assert shop.begun == Counter(first + rest)
    assert not shop.everything_pending()
    assert shop.redis.xinfo_consumers(STREAM, GROUP) == []


def test_sigterm_under_load(shop: Shop, is_thorough: bool) -> None:
    """Whatever it is doing just then: no order is begun twice, and none is lost."""
    count, stops = (2000, 9) if is_thorough else (400, 2)
    sent = shop.send("tea", count)
    summaries = []
    with shop.watching() as ends:
        for number in range(1, stops + 1):
            with shop.worker() as worker:
                shop.read_until(ends, acknowledged=count // (stops + 1) * number)
                summaries.append(stop(worker))
            shop.let_time_pass()
        with shop.worker() as worker:
            shop.read_until(ends, acknowledged=count)
            summaries.append(stop(worker))
    assert shop.begun == Counter(sent)
    assert not shop.everything_pending()
    taken = [summary.split()[0] for summary in summaries]
    assert summaries == [SUMMARY.replace("60", number) for number in taken]
    assert sum(map(int, taken)) == count


def test_a_failed_order_is_delivered_again_and_then_buried(shop: Shop) -> None:
    [failing] = shop.send("tea", quantity="many")
    with shop.watching() as ends, shop.worker(idle=0.5, max_deliveries=2) as worker:
        shop.read_until(ends, buried=1)
        [sound] = shop.send("tea")
        shop.read_until(ends, acknowledged=1)
        assert stop(worker) == "3 taken, 1 done, 2 failed, 0 cancelled: stopped by SIGTERM"
    assert worker.output.count("ValueError: invalid literal") == 2
    assert shop.begun == {failing: 2, sound: 1}
    assert shop.buried == [failing]
    [(_, letter)] = shop.redis.xrange(DEAD_LETTERS)
    assert letter == {"item": "tea", "quantity": "many", "id": failing}
    assert not shop.everything_pending()


def test_an_order_that_kills_its_workers_is_buried(shop: Shop) -> None:
    """The broker counts. What was handled at the same time has been delivered as often."""
    [innocent] = shop.send("held")
    with shop.watching() as ends:
        with shop.worker(max_deliveries=2) as worker:
            shop.wait_for_held(innocent)
            [bomb] = shop.send("bomb")
            assert worker.wait() == -signal.SIGKILL
        shop.let_time_pass()
        with shop.worker(max_deliveries=2) as worker:
            assert worker.wait() == -signal.SIGKILL
        shop.let_time_pass()
        with shop.worker(max_deliveries=2) as worker:
            shop.read_until(ends, buried=2)
            assert stop(worker) == "0 taken, 0 done, 0 failed, 0 cancelled: stopped by SIGTERM"
    assert shop.begun[bomb] == 2
    assert shop.buried == [innocent, bomb]


def test_what_is_left_behind_is_found_among_what_others_work_on(shop: Shop) -> None:
    shop.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    *_, last = shop.send("tea", 50)
    shop.redis.xreadgroup(GROUP, "other", {STREAM: ">"})
    shop.redis.xclaim(STREAM, GROUP, "other", 0, [last], idle=3_600_000, justid=True)
    with shop.watching() as ends, shop.worker() as worker:
        shop.read_until(ends, acknowledged=1)
        assert stop(worker) == SUMMARY.replace("60", "1")
    assert shop.acknowledged == {last}


def test_what_is_cut_off_is_neither_committed_nor_acknowledged(shop: Shop) -> None:
    [held] = shop.send("held")
    with shop.worker() as worker:
        shop.wait_for_held(held)
        worker.process.terminate()
        worker.read_until("(SIGTERM: the worker takes no more messages)")
        assert stop(worker) == "1 taken, 0 done, 0 failed, 1 cancelled: stopped by SIGTERM"
    assert f"A message was neither done nor failed: Order(id='{held}'" in worker.output
    assert not shop.redis.exists("accepted")
    assert [pending["message_id"] for pending in shop.everything_pending()] == [held]


def test_without_redis_it_ends(shop: Shop) -> None:
    shop.url = "redis://127.0.0.1:1"
    with shop.worker() as worker:
        assert worker.wait() == 1
    assert "redis.exceptions.ConnectionError" in worker.output


def test_as_process_1(shop: Shop) -> None:
    """As in a container, where SIGTERM has no default action."""
    unshare = [program("unshare"), "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a PID namespace")
    command = [*unshare, sys.executable, "-W", "error", *COMMAND]
    with (
        shop.watching() as ends,
        shop.worker(("-c", f"import os; os.execv({unshare[0]!r}, {command!r})")) as worker,
    ):
        shop.send("tea")
        shop.read_until(ends, acknowledged=1)
        parent = worker.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert summary_of(worker) == SUMMARY.replace("60", "1")


def test_the_container_has_time_to_stop() -> None:
    assert CONTAINER["command"][0] == "fastapi-lifespan-deps"
    (grace_period,) = re.findall(r"--grace-period=(\d+)", " ".join(CONTAINER["args"]))
    assert POD["terminationGracePeriodSeconds"] > 2 * int(grace_period)
    (call_timeout,) = re.findall(r"--call-timeout=(\d+)", " ".join(CONTAINER["args"]))
    (idle,) = [one["value"] for one in CONTAINER["env"] if one["name"] == "IDLE"]
    assert int(call_timeout) == int(idle) / 2


# Without a worker


accepted = shown_tests.accepted


def test_shown_tests(accepted: shown_tests.Accepted) -> None:
    shown_tests.test_orders(accepted)
