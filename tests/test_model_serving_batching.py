"""The batcher of docs_src/model_serving: what queues meanwhile goes through the model together."""

import itertools
import json
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import ROOT, CountWords, Held, ServerProcess, torch

# isort: split
from docs_src.model_serving.batching import (
    Batcher,
    BatcherStopped,
    BatchFailed,
    Embedded,
    QueueFull,
    WaitedTooLong,
)
from docs_src.model_serving.embedding import Encoder, Input, get_encoder, get_model
from docs_src.model_serving.files import ModelChoice, ModelFiles
from docs_src.model_serving.main import app
from docs_src.model_serving.metrics import Metrics
from docs_src.model_serving.recipe import Recipe
from docs_src.model_serving.settings import Settings

PATIENCE = 30.0  # seconds for each thing that is waited for
FILES = ModelFiles("stand-in", "0", ROOT, ModelChoice.of_settings(Settings()), Recipe())


class StandIn(Encoder):
    """Embeds "3" as [3.0] in three word pieces. Each batch waits until the gate is open."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.max_tokens = 100
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def tokenize(self, inputs: Sequence[Input]) -> list[list[int]]:
        self.threads.append(threading.get_ident())
        if "untokenizable" in inputs:
            raise ValueError("no word pieces")
        return [[int(text)] * int(text) for text in map(str, inputs)]

    def encode(self, token_ids: Sequence[list[int]]) -> Any:
        self.threads.append(threading.get_ident())
        self.batches.append([len(ids) for ids in token_ids])
        self.begun.release()
        assert self.gate.wait(PATIENCE)
        if [13] * 13 in token_ids:
            raise RuntimeError("the model does not like 13")
        return torch.tensor([[float(len(ids))] for ids in token_ids])

    async def work_begins(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.acquire, True, PATIENCE)


class Running:
    """A batcher that runs, and the requests that were sent to it."""

    tasks: anyio.abc.TaskGroup

    def __init__(self, encoder: StandIn, **limits: Any) -> None:
        self.encoder = encoder
        self.metrics = Metrics()
        self.answers: dict[str, Embedded | Exception] = {}
        options: dict[str, Any] = {
            "dimensions": 1,
            "max_batch_size": 4,
            "max_batch_tokens": 1_000,
            "batch_wait_timeout_s": 0,
            "max_queue_size": 20,
        }
        self.batcher = Batcher(encoder, FILES, self.metrics, **(options | limits))

    async def embed(self, *texts: object) -> None:
        """Ask for texts in a task of its own; return when they wait."""
        before = self.queue_size
        self.tasks.start_soon(self._embed, [str(text) for text in texts])
        while self.queue_size == before:
            await anyio.lowlevel.checkpoint()

    async def _embed(self, texts: list[str]) -> None:
        name = " ".join(texts)
        try:
            self.answers[name] = await self.batcher.embed(texts)
        except Exception as error:
            self.answers[name] = error

    @property
    def queue_size(self) -> float:
        return self.metrics.registry.get_sample_value("model_serving_queue_size") or 0

    async def answered(self, count: int) -> None:
        with anyio.fail_after(PATIENCE):
            while len(self.answers) < count:
                await anyio.lowlevel.checkpoint()

    def rows(self, name: str) -> list[float]:
        answer = self.answers[name]
        assert isinstance(answer, Embedded), answer
        return [value for [value] in answer.rows.tolist()]


@asynccontextmanager
async def running(encoder: StandIn | None = None, **limits: Any) -> AsyncIterator[Running]:
    running = Running(encoder or StandIn(), **limits)
    async with anyio.create_task_group() as running.tasks:
        running.tasks.start_soon(running.batcher.run)
        yield running
        running.encoder.gate.set()
        running.batcher.close()


@asynccontextmanager
async def busy(**limits: Any) -> AsyncIterator[Running]:
    """A batcher that is at work on a first text, "1", until the gate is opened."""
    async with running(**limits) as it:
        it.encoder.gate.clear()
        await it.embed(1)
        await it.encoder.work_begins()
        yield it


# Batches


@pytest.mark.anyio
async def test_a_lone_text_does_not_wait() -> None:
    async with running() as it:
        await it.embed(5)
        await it.answered(1)
    assert it.encoder.batches == [[5]]
    assert it.rows("5") == [5.0]


@pytest.mark.anyio
async def test_what_queues_while_a_batch_runs_is_the_next_batch() -> None:
    async with busy() as it:
        await it.embed(2)
        await it.embed(4, 3)
        it.encoder.gate.set()
        await it.answered(3)
    assert it.encoder.batches == [[1], [2, 3, 4]]
    assert it.rows("2") == [2.0]
    assert it.rows("4 3") == [4.0, 3.0]
    assert [it.answers[name].batch_size for name in ("1", "2", "4 3")] == [1, 3, 3]  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_request_larger_than_a_batch_is_cut() -> None:
    async with busy() as it:
        await it.embed(9, 8, 7, 6, 5, 4)
        it.encoder.gate.set()
        await it.answered(2)
    assert it.encoder.batches == [[1], [8, 9], [4, 5, 6, 7]]
    assert it.rows("9 8 7 6 5 4") == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    assert it.answers["9 8 7 6 5 4"].batch_size == 4  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_texts_of_similar_length_go_together_and_padding_counts() -> None:
    """The oldest, 50, with those next to it: together they have 150 word pieces, with padding."""
    async with busy(max_batch_tokens=150) as it:
        for length in (50, 2, 49, 3, 48, 4):
            await it.embed(length)
        it.encoder.gate.set()
        await it.answered(7)
    assert it.encoder.batches == [[1], [48, 49, 50], [2, 3, 4]]


@pytest.mark.anyio
async def test_a_text_longer_than_a_batch_may_be_goes_alone() -> None:
    async with busy(max_batch_tokens=10) as it:
        await it.embed(30, 2, 3)
        it.encoder.gate.set()
        await it.answered(2)
    assert it.encoder.batches == [[1], [30], [2, 3]]


@pytest.mark.anyio
async def test_nobody_starves() -> None:
    """Short texts arrive for ever; the long one isn't put off until there are none."""
    async with busy(max_batch_tokens=40, max_queue_size=100) as it:
        await it.embed(40)
        for _ in range(3):
            await it.embed(2, 2, 2, 2)
        it.encoder.gate.set()
        await it.answered(2 + 1)
    assert it.encoder.batches[1] == [40]


@pytest.mark.anyio
async def test_a_text_waits_for_others_at_most_as_long_as_it_may() -> None:
    async with running(batch_wait_timeout_s=60, max_batch_size=3) as it:
        await it.embed(2)
        await it.embed(3)
        assert it.encoder.batches == []
        await it.embed(4)  # Now the batch is full.
        await it.answered(3)
        await it.embed(5)
        it.batcher.close()  # Nothing more can come.
        await it.answered(4)
    assert it.encoder.batches == [[2, 3, 4], [5]]

    async with running(batch_wait_timeout_s=0.01, max_batch_size=3) as it:
        await it.embed(2)
        await it.answered(1)
    assert it.encoder.batches == [[2]]


@pytest.mark.anyio
async def test_one_thread_at_a_time_and_never_that_of_the_event_loop() -> None:
    in_use = threading.Lock()

    class Alone(StandIn):
        def encode(self, token_ids: Sequence[list[int]]) -> Any:
            assert in_use.acquire(blocking=False)
            try:
                return super().encode(token_ids)
            finally:
                in_use.release()

    async with running(Alone(), max_queue_size=1_000) as it:
        for index in range(50):
            await it.embed(index % 7 + 1, index + 20)
        await it.answered(50)
    assert threading.get_ident() not in it.encoder.threads
    assert all(it.rows(f"{i % 7 + 1} {i + 20}") == [i % 7 + 1, i + 20] for i in range(50))


# The limit of the queue


@pytest.mark.anyio
async def test_what_would_be_more_than_may_wait_is_refused_whole() -> None:
    async with busy(max_queue_size=5) as it:
        await it.embed(2, 3, 4)
        with pytest.raises(QueueFull) as caught:
            await it.batcher.embed(["5", "6", "7"])
        assert caught.value.status_code == 503
        assert caught.value.detail == (
            "3 texts are waiting, and at most 5 may. Send this again later."
        )
        assert caught.value.headers == {"Retry-After": "1"}
        await it.embed(5, 6)  # There is room for these.
        it.encoder.gate.set()
        await it.answered(3)
    assert sorted(itertools.chain(*it.encoder.batches)) == [1, 2, 3, 4, 5, 6]


# Clients that go away


@pytest.mark.anyio
async def test_a_cancelled_request_leaves_the_queue_and_hurts_nobody() -> None:
    async with busy(max_queue_size=4) as it:
        await it.embed(2)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.batcher.embed, ["7", "8", "9"])
                while it.queue_size < 4:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert it.queue_size == 1
        await it.embed(3, 4, 5)  # There is room again.
        it.encoder.gate.set()
        await it.answered(3)
    assert it.encoder.batches == [[1], [2, 3, 4, 5]]


@pytest.mark.anyio
async def test_a_request_that_is_cancelled_while_its_batch_runs_hurts_nobody() -> None:
    async with running() as it:
        it.encoder.gate.clear()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.batcher.embed, ["7"])
                await it.encoder.work_begins()
                await it.embed(2)
                scope.cancel()
        it.encoder.gate.set()
        await it.answered(1)
    assert it.encoder.batches == [[7], [2]]
    assert it.rows("2") == [2.0]


# Time limits


@pytest.mark.anyio
async def test_a_request_whose_time_is_up_leaves_the_queue() -> None:
    async with busy(max_queue_size=4) as it:
        await it.embed(2)
        with pytest.raises(WaitedTooLong) as caught:
            await it.batcher.embed(["7", "8", "9"], anyio.current_time())
        assert (caught.value.status_code, caught.value.headers) == (503, {"Retry-After": "1"})
        assert it.queue_size == 1
        await it.embed(3, 4, 5)  # There is room again.
        it.encoder.gate.set()
        await it.answered(3)
    assert it.encoder.batches == [[1], [2, 3, 4, 5]]


@pytest.mark.anyio
async def test_a_request_of_which_a_part_is_done_when_its_time_is_up() -> None:
    """What still waits of it leaves the queue."""
    async with running(max_batch_size=2) as it:
        it.encoder.gate.clear()
        with pytest.raises(WaitedTooLong):
            await it.batcher.embed(["2", "3", "4"], anyio.current_time() + 0.05)
        assert it.queue_size == 0
        it.encoder.gate.set()


# Errors


@pytest.mark.anyio
async def test_an_error_reaches_the_requests_of_its_batch_and_no_others() -> None:
    async with busy(max_batch_size=2) as it:
        await it.embed(12)
        await it.embed(13)
        await it.embed(14)
        it.encoder.gate.set()
        await it.answered(4)
        await it.embed(2)
        await it.answered(5)
    assert it.encoder.batches == [[1], [12, 13], [14], [2]]
    for name in ("12", "13"):
        error = it.answers[name]
        assert isinstance(error, BatchFailed)
        assert str(error.__cause__) == str(error) == "the model does not like 13"
    assert it.rows("14") == [14.0]
    assert it.rows("2") == [2.0]


@pytest.mark.anyio
async def test_what_is_left_of_a_failed_request_leaves_the_queue() -> None:
    async with busy(max_batch_size=2) as it:
        await it.embed(12, 13, 14, 15, 16)
        it.encoder.gate.set()
        await it.answered(2)
        assert it.queue_size == 0
    assert it.encoder.batches == [[1], [12, 13]]
    assert isinstance(it.answers["12 13 14 15 16"], BatchFailed)


@pytest.mark.anyio
async def test_a_text_that_cannot_be_tokenized() -> None:
    """Those that came at the same time don't suffer."""
    async with busy() as it:
        await it.embed(2)
        await it.embed("untokenizable", 3)
        await it.embed(4, 5)
        it.encoder.gate.set()
        await it.answered(4)
    assert isinstance(it.answers["untokenizable 3"], BatchFailed)
    assert it.rows("2") == [2.0]
    assert it.rows("4 5") == [4.0, 5.0]


# The end


@pytest.mark.anyio
async def test_a_batcher_that_is_closed_finishes_what_waits_and_takes_nothing_more() -> None:
    async with busy(max_batch_size=2) as it:
        await it.embed(2, 3, 4)
        it.batcher.close()
        with pytest.raises(BatcherStopped) as caught:
            await it.batcher.embed(["5"])
        assert caught.value.status_code == 503
        it.encoder.gate.set()
        await it.answered(2)
    assert it.rows("2 3 4") == [2.0, 3.0, 4.0]


@pytest.mark.anyio
async def test_a_batcher_that_is_cancelled_leaves_nobody_waiting() -> None:
    it = Running(StandIn())
    async with anyio.create_task_group() as it.tasks:
        it.encoder.gate.clear()
        async with anyio.create_task_group() as runner:
            runner.start_soon(it.batcher.run)
            await it.embed(1)
            await it.encoder.work_begins()
            await it.embed(2)
            runner.cancel_scope.cancel()
            it.encoder.gate.set()
        await it.answered(2)
    assert it.rows("1") == [1.0]  # Its batch had begun, and a thread isn't cut off.
    assert isinstance(it.answers["2"], BatcherStopped)


# In the application


def test_the_same_as_unbatched_within_a_hundred_thousandth(is_thorough: bool) -> None:
    """The real model; texts of all lengths at the same time, with other texts in their batches."""
    words = [
        "rain",
        "falls",
        "on",
        "the",
        "mountains",
        "and",
        "nobody",
        "is",
        "there",
        "to",
        "see",
        "it",
    ]
    count = 200 if is_thorough else 50
    texts = [" ".join(words[: i % 12 + 1] * (i % 9 + 1)) for i in range(count)]

    def post(text: str) -> Any:
        return client.post("/embeddings", json={"texts": [text]}).json()

    with TestClient(app) as client, ThreadPoolExecutor(32) as threads:
        assert client.portal
        encoder = client.portal.call(lambda: app.lifespan_container[get_encoder])
        alone = [encoder.encode(encoder.tokenize([text])) for text in texts]
        batched = list(threads.map(post, texts))
    for answer, expected in zip(batched, alone, strict=True):
        assert answer["embeddings"][0] == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert max(answer["batch_size"] for answer in batched) > 1


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    held = Held()
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: held)
    return held


def test_a_full_queue_is_answered_503_with_retry_after(
    monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MAX_TEXTS", "2")
    monkeypatch.setenv("MODEL_SERVING_MAX_QUEUE_SIZE", "3")
    body = {"texts": ["one", "two"]}
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        try:
            running = threads.submit(client.post, "/embeddings", json=body)
            assert held.begun.acquire(timeout=PATIENCE)
            waiting = [threads.submit(client.post, "/embeddings", json=body) for _ in range(2)]
            refused = next(as_completed(waiting, timeout=PATIENCE)).result()
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["detail"].startswith("2 texts are waiting, and at most 3 may.")
        finally:
            held.gate.set()
        answers = [future.result(timeout=PATIENCE) for future in (running, *waiting)]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]


def test_settings_of_a_queue_without_room_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_MAX_QUEUE_SIZE", "256")
    with pytest.raises(ValueError) as caught, TestClient(app):
        pass
    assert (
        "max_queue_size=256 has no room for the largest request: max_texts=256 and a query."
        " Set MODEL_SERVING_MAX_QUEUE_SIZE to 257 or more, or MODEL_SERVING_MAX_TEXTS to 255 or"
        " less." in str(caught.value)
    )


def test_settings_that_let_a_text_wait_longer_than_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_SERVING_BATCH_WAIT_TIMEOUT_S", "5")
    monkeypatch.setenv("MODEL_SERVING_REQUEST_TIMEOUT", "5")
    with pytest.raises(ValueError, match="Set MODEL_SERVING_BATCH_WAIT_TIMEOUT_S to less, or"):
        Settings()


def test_a_model_that_fails_is_a_500_for_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fussy(CountWords):
        def forward(self, **inputs: Any) -> SimpleNamespace:
            if inputs["input_ids"].shape == (2, 3):
                raise RuntimeError("two of three word pieces")
            return super().forward(**inputs)

    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: Fussy())
    with TestClient(app, raise_server_exceptions=False) as client:
        answers = [
            client.post("/embeddings", json={"texts": texts})
            for texts in (["water"], ["water", "beer"], ["water"])
        ]
        counted = client.get("/metrics").text
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json() == {"detail": "Internal Server Error"}
    assert 'method="POST",path="/embeddings",status="500"} 1.0' in counted


def test_a_model_that_fails_at_its_largest_batch_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []

    class TooLarge(CountWords):
        def forward(self, **inputs: Any) -> SimpleNamespace:
            shapes.append(tuple(inputs["input_ids"].shape))
            raise RuntimeError("out of memory")

    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: TooLarge())
    with pytest.raises(RuntimeError, match="out of memory"), TestClient(app):
        pass
    assert shapes == [(2, 256)]


@pytest.mark.server
def test_a_client_that_hangs_up_leaves_the_queue() -> None:
    long = json.dumps({"texts": ["many words " * 200] * 100}).encode()
    with ServerProcess() as server:
        host, _, port = server.read_until(r"http://(127\.0\.0\.1:\d+)/similarity").partition(":")

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=PATIENCE) as answer:
                return str(answer.read().decode())

        def wait_for(line: str) -> None:
            deadline = time.monotonic() + 2 * PATIENCE
            while not re.search(f"^{line}$", get("/metrics"), re.MULTILINE):
                assert time.monotonic() < deadline, get("/metrics")

        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            head = f"POST /embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(long)}\r\n"
            client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + long)
            wait_for(r"model_serving_batch_size_count [1-9].*")
        wait_for(r'model_serving_requests_total\{.*path="/embeddings",status="499"\} 1.0')
        assert "model_serving_queue_size 0.0" in get("/metrics")
        batches = re.search(r"^model_serving_batch_size_count (.*)$", get("/metrics"), re.MULTILINE)
        assert batches
        assert float(batches[1]) < 50
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
    assert "Traceback" not in server.output
