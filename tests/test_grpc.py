"""docs_src/grpc on a real server: what is shared, what is fresh for a call, and how calls end."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("grpc")

# isort: split
# After the line that skips this file.
import grpc

from docs_src.grpc import service
from docs_src.grpc.batching import Batcher, Model, get_batcher, load_model
from docs_src.grpc.service import Classifier, Ledger, Usage, container, get_usage, handler_of
from fastapi_lifespan_deps import LifespanContainer
from tests.processes import ServerProcess, writing_to

pytestmark = pytest.mark.anyio

PATIENCE = 30.0  # seconds for each thing that is waited for

ACME = (("tenant", "acme"),)
BULK = (("tenant", "bulk"),)


class Gated(Model):
    """Notes its batches, and waits in each until the gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = threading.Event()
        self.gate = threading.Event()

    def classify(self, texts: list[str]) -> list[str]:
        self.batches.append(texts)
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        if "broken" in texts:
            raise ValueError("the model failed")
        return super().classify(texts)


class Client:
    def __init__(self, channel: Any) -> None:
        self.classify = channel.unary_unary("/Classifier/Classify", None, bytes.decode)
        self.classify_lines = channel.unary_stream("/Classifier/ClassifyLines", None, bytes.decode)


@asynccontextmanager
async def serving(
    handler: Any, container: LifespanContainer, grace: float = PATIENCE
) -> AsyncIterator[Any]:
    """Serve in this event loop; give a channel."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    async with container, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await server.start()
        try:
            yield channel
        finally:
            await server.stop(grace)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def model() -> Iterator[Gated]:
    model = Gated()
    model.gate.set()
    container.dependency_overrides[load_model] = lambda: model
    yield model
    container.dependency_overrides.clear()


# What is shared, and what is fresh


async def test_calls_that_come_meanwhile_are_one_batch(model: Gated) -> None:
    """All share the model, the batcher and the ledger; each has its own tenant and usage."""
    arrived = asyncio.Semaphore(0)

    async def get_text(request: str) -> str:
        arrived.release()
        return request

    model.gate.clear()
    container.dependency_overrides[service.get_text] = get_text
    async with serving(handler_of(Classifier()), container) as channel:
        client = Client(channel)
        first = client.classify(b"Dear Ada", metadata=ACME)
        assert await asyncio.to_thread(model.begun.wait, PATIENCE)
        others = [
            client.classify(b"total: %d" % number, metadata=ACME if number < 3 else BULK)
            for number in range(8)
        ]
        with anyio.fail_after(PATIENCE):
            for _ in range(9):
                await arrived.acquire()
            await anyio.wait_all_tasks_blocked()
            model.gate.set()
            assert await first == "letter"
            assert [await call for call in others] == ["invoice"] * 8
        assert container[Ledger].texts == {"acme": 4, "bulk": 5}
    assert model.batches[0] == ["Dear Ada"]
    assert sorted(model.batches[1]) == [f"total: {number}" for number in range(8)]
    assert len(model.batches) == 2


async def test_a_stream_of_answers(model: Gated) -> None:
    async with serving(handler_of(Classifier()), container) as channel:
        call = Client(channel).classify_lines(b"total: 1\nDear Ada\n", metadata=ACME)
        assert [label async for label in call] == ["invoice", "letter"]
        assert container[Ledger].texts == {"acme": 2}


# How calls fail


async def test_a_dependency_aborts_the_call(model: Gated) -> None:
    async with serving(handler_of(Classifier()), container) as channel:
        client = Client(channel)
        for call in (client.classify, client.classify_lines):
            for text, metadata, code in (
                (b"Dear Ada", (), grpc.StatusCode.UNAUTHENTICATED),
                (b"Dear Ada" * 10_000, ACME, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await answers(call(text, metadata=metadata))
                assert caught.value.code() == code
                assert "Send " in str(caught.value.details())
        assert container[Ledger].texts == {}
    assert model.batches == []


async def answers(call: Any) -> list[str]:
    if hasattr(call, "__aiter__"):
        return [answer async for answer in call]
    return [await call]


async def test_a_call_that_fails_is_not_charged(model: Gated) -> None:
    async with serving(handler_of(Classifier()), container) as channel:
        client = Client(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="the model failed"):
            await client.classify(b"broken", metadata=ACME)
        stream = client.classify_lines(b"Dear Ada\nbroken", metadata=ACME)
        assert await stream.read() == "letter"
        with pytest.raises(grpc.aio.AioRpcError, match="the model failed"):
            await stream.read()
        assert container[Ledger].texts == {}
        assert await client.classify(b"total: 1", metadata=ACME) == "invoice"


async def test_a_call_whose_commit_fails_has_failed(model: Gated) -> None:
    """Of a stream all items have been sent by then."""

    async def get_failing_usage() -> AsyncIterator[Usage]:
        yield Usage()
        raise ConnectionError("the ledger is away")

    container.dependency_overrides[get_usage] = get_failing_usage
    async with serving(handler_of(Classifier()), container) as channel:
        client = Client(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="the ledger is away"):
            await client.classify(b"Dear Ada", metadata=ACME)
        stream = client.classify_lines(b"Dear Ada", metadata=ACME)
        assert await stream.read() == "letter"
        with pytest.raises(grpc.aio.AioRpcError, match="the ledger is away"):
            await stream.read()


# How calls end before they are through


class Told:
    """In the place of `get_usage`: notes how it was left."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.left = anyio.Event()

    async def get_usage(self) -> AsyncIterator[Usage]:
        try:
            yield Usage()
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            self.log.append("left")
            self.left.set()


@pytest.fixture
def told(model: Gated) -> Told:
    told = Told()
    container.dependency_overrides[get_usage] = told.get_usage
    return told


@pytest.mark.parametrize("method", ["classify", "classify_lines"])
async def test_a_client_breaks_off_while_it_waits(model: Gated, told: Told, method: str) -> None:
    model.gate.clear()
    async with serving(handler_of(Classifier()), container) as channel:
        call = getattr(Client(channel), method)(b"Dear Ada", metadata=ACME)
        assert await asyncio.to_thread(model.begun.wait, PATIENCE)
        call.cancel()
        with anyio.fail_after(PATIENCE):
            await told.left.wait()
        assert told.log == ["CancelledError", "left"]
        model.gate.set()


async def test_a_client_breaks_off_while_an_answer_is_sent(told: Told) -> None:
    """It takes no more than fits into the buffers: the generator ends at its `yield`."""
    made = anyio.Event()

    class Wordy(Batcher):
        async def classify(self, text: str) -> str:
            made.set()
            return "x" * 2**26

    container.dependency_overrides[get_batcher] = lambda: Wordy(Model())
    async with serving(handler_of(Classifier()), container) as channel:
        call = Client(channel).classify_lines(b"Dear Ada\nDear Grace", metadata=ACME)
        with anyio.fail_after(PATIENCE):
            await made.wait()
            await anyio.wait_all_tasks_blocked()
            assert told.log == []
            call.cancel()
            await told.left.wait()
    assert told.log == ["left"]


# How the server ends


async def test_what_is_not_through_when_the_grace_is_over_is_cancelled(
    model: Gated, told: Told
) -> None:
    """It is left before the model, on which a batch may still work."""

    def load_gated() -> Iterator[Model]:
        yield model
        told.log.append("model released")

    async def open_gate() -> None:
        await told.left.wait()
        model.gate.set()

    model.gate.clear()
    container.dependency_overrides[load_model] = load_gated
    calls = []
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_gate)
            async with serving(handler_of(Classifier()), container, grace=0.01) as channel:
                calls.append(Client(channel).classify(b"Dear Ada", metadata=ACME))
                assert await asyncio.to_thread(model.begun.wait, PATIENCE)
    assert grpc.StatusCode.OK not in [await call.code() for call in calls]
    assert told.log == ["CancelledError", "left", "model released"]


@pytest.mark.server
def test_a_server_that_stops_answers_what_has_begun(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ServerProcess(
        ["-W", "error", "-m", "tests.served_grpc"], ADDRESS="127.0.0.1:0", PIPE=str(pipe)
    ) as server:
        port = server.read_until(r"serving on port (\d+)")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel)
            call = client.classify.future(b"Dear Ada", metadata=ACME)
            server.read_until("(classifying)")
            server.process.send_signal(signal.SIGTERM)
            server.read_until("(stopping)")
            with writing_to(pipe) as writing:
                writing.write("invoice")
            assert call.result(PATIENCE) == "invoice"
            assert server.wait() == 0


@pytest.mark.server
def test_a_server_from_start_to_stop() -> None:
    command = ["-W", "error", "-m", "docs_src.grpc.server"]
    with ServerProcess(command, ADDRESS="127.0.0.1:0") as server:
        port = server.read_until(r"serving on port (\d+)")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel)
            assert client.classify(b"Dear Ada", metadata=ACME, timeout=PATIENCE) == "letter"
            labels = client.classify_lines(b"Dear Ada\ntotal: 1", metadata=ACME, timeout=PATIENCE)
            assert list(labels) == ["letter", "invoice"]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.output.splitlines() == [
        *("model loaded", f"serving on port {port}", "stopping", "model released"),
    ]
