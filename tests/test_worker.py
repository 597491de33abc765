"""`run_worker`: a loop over messages, its errors, its signals and its summary."""

import asyncio
import logging
import math
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import Depends as FastAPIDepends

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    LifespanTimeout,
    RefreshError,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    WorkerSummary,
    run_worker,
)
from tests.processes import ServerProcess

pytestmark = pytest.mark.anyio

done = partial(WorkerSummary, failed=0, cancelled=0, stopped_by=None)


async def numbers(count: int = 3) -> AsyncIterator[int]:
    for number in range(count):
        yield number


class Engine:
    def __init__(self) -> None:
        self.is_open = True


async def get_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    engine.is_open = False


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]


class Log(list[str]):
    """What happens, in order."""


@pytest.fixture
def log() -> Log:
    return Log()


class Handling:
    """A handler whose calls wait until they are let go; and what it has seen."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.goes = anyio.Event()
        self.began = anyio.Event()
        self.began_count = 0
        self.expected = 1

    async def session(self, message: int) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            self.log.append(f"rolled back {message}: {type(error).__name__}")
            raise
        else:
            self.log.append(f"committed {message}")

    async def __call__(self, message: int) -> int:
        self.log.append(f"began {message}")
        self.began_count += 1
        if self.began_count == self.expected:
            self.began.set()
        await self.goes.wait()
        return message * 10

    def container(self) -> tuple[LifespanContainer, Callable[..., Awaitable[int]]]:
        async def handle(
            message: int, engine: EngineDep, session: Annotated[None, FastAPIDepends(self.session)]
        ) -> int:
            assert engine.is_open
            return await self(message)

        container = LifespanContainer()
        return container, container.inject(handle)


@contextmanager
def raising(sent: signal.Signals, handler: Any = signal.SIG_IGN) -> Iterator[Callable[[], None]]:
    """What sends a signal to this process. Without a worker, nothing comes of it."""
    before = signal.signal(sent, handler)
    try:
        yield lambda: signal.pthread_kill(_main_thread(), sent)
        assert signal.getsignal(sent) is handler
    finally:
        signal.signal(sent, before)


def _main_thread() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


# Messages


async def test_each_message_is_a_call_of_its_own(log: Log) -> None:
    handling = Handling(log)
    handling.goes.set()
    container, handle = handling.container()
    results: list[tuple[int, int]] = []
    async with container:
        summary = await run_worker(
            handle,
            numbers(2),
            container=container,
            on_done=lambda message, result: results.append((message, result)),
        )
        assert results == [(0, 0), (1, 10)]
        assert str(summary) == "2 taken, 2 done, 0 failed, 0 cancelled: no more messages"
    assert log == ["began 0", "committed 0", "began 1", "committed 1"]
    assert summary == done(taken=2, done=2)


async def test_a_plain_function_runs_in_a_thread_for_each_place() -> None:
    together = threading.Barrier(50, timeout=20)  # more than anyio has threads by default
    container = LifespanContainer()

    @container.inject
    def handle(message: int, engine: EngineDep) -> None:
        assert engine.is_open
        together.wait()

    async with container:
        summary = await run_worker(handle, numbers(50), container=container, concurrency=50)
        assert summary == done(taken=50, done=50)


async def test_nothing_is_asked_for_without_a_place(log: Log) -> None:
    handling = Handling(log)
    handling.expected = 2

    async def messages() -> AsyncIterator[int]:
        for number in range(4):
            log.append(f"asked for {number}")
            yield number

    container, handle = handling.container()

    async def check() -> None:
        await handling.began.wait()
        await anyio.wait_all_tasks_blocked()
        assert sorted(log) == ["asked for 0", "asked for 1", "began 0", "began 1"]
        handling.goes.set()

    async with container, anyio.create_task_group() as tasks:
        tasks.start_soon(check)
        await run_worker(handle, messages(), container=container, concurrency=2)
    assert len([one for one in log if one.startswith("committed")]) == 4


async def test_done_comes_after_the_clean_up(log: Log) -> None:
    handling = Handling(log)
    handling.goes.set()
    container, handle = handling.container()

    async def acknowledge(message: int, result: int) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(f"acknowledged {message}")

    async with container:
        await run_worker(handle, numbers(1), container=container, on_done=acknowledge)
    assert log == ["began 0", "committed 0", "acknowledged 0"]


async def test_an_application_handles_messages_too() -> None:
    seen: list[int] = []

    async def handle(message: int, engine: EngineDep) -> None:
        assert engine.is_open
        seen.append(message)

    app = LifespanFastAPI(handlers=[handle])
    async with app.router.lifespan_context(app):
        await run_worker(handle, numbers(), container=app.lifespan_container, signals=())
    assert seen == [0, 1, 2]


# The source


async def test_the_source_is_closed_by_the_task_that_opened_it(log: Log) -> None:
    async def messages() -> AsyncIterator[int]:
        async with anyio.create_task_group():
            try:
                yield 1
                await anyio.sleep_forever()
            finally:
                log.append("closed")

    handling = Handling(log)
    container, handle = handling.container()
    async with container, anyio.create_task_group() as tasks:
        with raising(signal.SIGTERM) as terminate:

            async def stop() -> None:
                await handling.began.wait()
                await anyio.wait_all_tasks_blocked()
                terminate()
                await anyio.wait_all_tasks_blocked()
                handling.goes.set()

            tasks.start_soon(stop)
            await run_worker(handle, messages(), container=container, concurrency=2)
    # what was taken may need what the source holds
    assert log == ["began 1", "committed 1", "closed"]


async def test_a_message_that_comes_after_the_signal_is_not_taken(log: Log) -> None:
    comes = anyio.Event()

    async def messages() -> AsyncIterator[int]:
        yield 1
        await comes.wait()
        yield 2

    handling = Handling(log)
    container, handle = handling.container()
    async with container, anyio.create_task_group() as tasks:
        with raising(signal.SIGTERM) as terminate:

            async def stop() -> None:
                await handling.began.wait()
                await anyio.wait_all_tasks_blocked()
                terminate()
                await anyio.wait_all_tasks_blocked()
                comes.set()
                await anyio.wait_all_tasks_blocked()
                handling.goes.set()

            tasks.start_soon(stop)
            summary = await run_worker(handle, messages(), container=container, concurrency=2)
            assert summary == done(taken=1, done=1, stopped_by=signal.SIGTERM)


async def test_a_source_may_be_injected_and_holds_its_values_to_the_end(log: Log) -> None:
    container = LifespanContainer()
    refused: list[RefreshError] = []

    @container.inject
    async def messages(engine: EngineDep) -> AsyncIterator[int]:
        yield 1
        assert engine.is_open
        log.append("closed")

    async def handle(message: int) -> None:
        draining = await container.refresh(get_engine)  # which the source holds
        with pytest.raises(RefreshError) as caught:
            await draining.wait()
        refused.append(caught.value)

    async with container:
        await run_worker(handle, messages, container=container)
    assert log == ["closed"]
    assert "messages` uses it until the application stops" in str(refused[0])


async def test_a_source_may_be_what_a_function_returns() -> None:
    async def messages() -> AsyncIterator[int]:
        return numbers(2)

    def more() -> AsyncIterator[int]:
        return numbers(3)

    async def handle(message: int) -> None: ...

    async with LifespanContainer() as container:
        for source, count in ((messages, 2), (more, 3)):
            summary = await run_worker(handle, source, container=container)
            assert summary.done == count


class Queue:
    """An iterable that cannot be closed."""

    def __init__(self) -> None:
        self.left = [1, 2]

    def __aiter__(self) -> "Queue":
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


async def test_a_source_needs_no_more_than_its_items() -> None:
    async def handle(message: int) -> None: ...

    async with LifespanContainer() as container:
        summary = await run_worker(handle, Queue(), container=container)
        assert summary == done(taken=2, done=2)


@pytest.mark.parametrize("is_injected", [False, True])
async def test_a_source_that_raises_stops_the_worker(log: Log, is_injected: bool) -> None:
    failure = OSError("the broker has gone")

    async def messages() -> AsyncIterator[int]:
        yield 1
        raise failure

    handling = Handling(log)
    container, handle = handling.container()
    async with container, anyio.create_task_group() as tasks:

        async def go_on() -> None:
            await handling.began.wait()
            await anyio.wait_all_tasks_blocked()
            handling.goes.set()

        tasks.start_soon(go_on)
        source = messages if is_injected else messages()
        with pytest.raises(OSError) as caught:
            await run_worker(handle, source, container=container, concurrency=2)
        assert caught.value is failure
    assert log == ["began 1", "committed 1"]


async def test_a_source_that_is_cancelled_by_others_is_not_taken_for_its_end() -> None:
    cancelled = anyio.get_cancelled_exc_class()

    async def messages() -> AsyncIterator[int]:
        yield 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.lowlevel.checkpoint()
            except cancelled as error:
                seen.append(error)
                raise
        raise seen[0]

    seen: list[BaseException] = []

    async def handle(message: int) -> None: ...

    async with LifespanContainer() as container:
        with pytest.raises(RuntimeError, match="the source of messages was cancelled, and not by"):
            await run_worker(handle, messages(), container=container)


# Errors


async def test_the_first_error_stops_the_worker_and_is_raised_plainly(log: Log) -> None:
    failure = ValueError("no")
    container = LifespanContainer()
    other_began = anyio.Event()

    async def get_session(message: int) -> AsyncIterator[None]:
        yield
        log.append(f"committed {message}")

    @container.inject
    async def handle(message: int, session: Annotated[None, FastAPIDepends(get_session)]) -> None:
        if message == 0:
            await other_began.wait()
            raise failure
        other_began.set()
        await anyio.wait_all_tasks_blocked()

    async with container:
        with pytest.raises(ValueError, match="no") as caught:
            await run_worker(handle, numbers(9), container=container, concurrency=2)
    assert caught.value is failure
    assert log == ["committed 1"]  # the running one has ended, and no other was taken


async def test_on_error_may_go_on(log: Log) -> None:
    async def handle(message: int) -> None:
        if message == 1:
            raise ValueError(message)

    async def on_error(message: int, error: Exception) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(f"{message}: {error!r}")

    async with LifespanContainer() as container:
        summary = await run_worker(handle, numbers(), container=container, on_error=on_error)
        assert summary == done(taken=3, done=2)._replace(failed=1)
    assert log == ["1: ValueError(1)"]


async def test_on_error_may_stop() -> None:
    async def handle(message: int) -> None:
        raise ValueError(message)

    def on_error(message: int, error: Exception) -> None:
        raise KeyError(message) from error

    async with LifespanContainer() as container:
        with pytest.raises(KeyError, match="0"):
            await run_worker(handle, numbers(), container=container, on_error=on_error)


async def test_failed_clean_up_is_a_failed_message(log: Log) -> None:
    async def get_session() -> AsyncIterator[None]:
        yield
        raise OSError("the commit failed")

    container = LifespanContainer()

    @container.inject
    async def handle(message: int, session: Annotated[None, FastAPIDepends(get_session)]) -> None:
        log.append("handled")

    async with container:
        with pytest.raises(OSError, match="the commit failed"):
            await run_worker(
                handle,
                numbers(1),
                container=container,
                on_done=lambda message, result: log.append("acknowledged"),
            )
    assert log == ["handled"]


async def test_on_done_that_raises_stops_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(message: int) -> None: ...

    def acknowledge(message: int, result: None) -> None:
        raise OSError("not acknowledged")

    async with LifespanContainer() as container:
        with pytest.raises(OSError, match="not acknowledged"):
            await run_worker(handle, numbers(), container=container, on_done=acknowledge)
    assert "A message was neither done nor failed: 0" in caplog.messages


async def test_other_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    together = anyio.Event()

    async def handle(message: int) -> None:
        if message == 1:
            together.set()
        await together.wait()
        raise ValueError(message)

    async with LifespanContainer() as container:
        with pytest.raises(ValueError, match=r"^[01]$") as caught:
            await run_worker(handle, numbers(2), container=container, concurrency=2)
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert {str(record.exc_info[1]), str(caught.value)} == {"0", "1"}


async def test_an_exit_stops_the_worker_whatever_on_error_says() -> None:
    async def handle(message: int) -> None:
        raise SystemExit(3)

    async with LifespanContainer() as container:
        with pytest.raises(SystemExit):
            await run_worker(
                handle, numbers(), container=container, on_error=lambda message, error: None
            )


async def test_a_handler_that_is_cancelled_by_others_has_failed(
    anyio_backend_name: str, log: Log
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("in trio, only who owns a scope can cancel")

    async def handle(message: int) -> None:
        raise asyncio.CancelledError

    def on_error(message: int, error: Exception) -> None:
        log.append(str(error))

    async with LifespanContainer() as container:
        summary = await run_worker(handle, numbers(1), container=container, on_error=on_error)
        assert summary.failed == 1
    assert len(log) == 1
    assert "handle` was cancelled, and not by the worker" in log[0]


async def test_a_call_that_takes_too_long_has_failed(log: Log) -> None:
    handling = Handling(log)
    container, handle = handling.container()
    errors: list[Exception] = []
    async with container:
        summary = await run_worker(
            handle,
            numbers(1),
            container=container,
            call_timeout=0.001,
            on_error=lambda message, error: errors.append(error),
        )
        assert summary.failed == 1
    assert log == ["began 0", f"rolled back 0: {anyio.get_cancelled_exc_class().__name__}"]
    [error] = errors
    assert isinstance(error, LifespanTimeout)
    assert "handle` did not end within 0.001 seconds (call_timeout=0.001)" in str(error)


# Stop


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_lets_running_calls_end(log: Log, sent: signal.Signals) -> None:
    handling = Handling(log)
    handling.expected = 2
    container, handle = handling.container()
    with raising(sent) as send:
        async with container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await handling.began.wait()
                send()
                await anyio.wait_all_tasks_blocked()
                handling.goes.set()

            tasks.start_soon(stop)
            summary = await run_worker(handle, numbers(9), container=container, concurrency=2)
            assert str(summary).endswith(f": stopped by {sent.name}")
            assert summary == done(taken=2, done=2, stopped_by=sent)
    assert sorted(log[2:]) == ["committed 0", "committed 1"]


async def test_the_second_signal_cancels(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    handling = Handling(log)
    container, handle = handling.container()
    errors: list[Exception] = []
    with raising(signal.SIGTERM) as terminate:
        async with container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await handling.began.wait()
                terminate()
                await anyio.wait_all_tasks_blocked()
                assert log == ["began 0"]
                terminate()

            tasks.start_soon(stop)
            summary = await run_worker(
                handle,
                numbers(9),
                container=container,
                on_error=lambda message, error: errors.append(error),
            )
            assert summary == WorkerSummary(1, 0, 0, 1, signal.SIGTERM)
    assert log == ["began 0", f"rolled back 0: {anyio.get_cancelled_exc_class().__name__}"]
    assert not errors
    assert "A message was neither done nor failed: 0" in caplog.messages


async def test_calls_are_cancelled_when_the_grace_period_is_over(log: Log) -> None:
    handling = Handling(log)
    container, handle = handling.container()
    with raising(signal.SIGTERM) as terminate:
        async with container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await handling.began.wait()
                terminate()

            tasks.start_soon(stop)
            summary = await run_worker(handle, numbers(9), container=container, grace_period=0)
            assert summary == WorkerSummary(1, 0, 0, 1, signal.SIGTERM)


async def test_threads_are_waited_for_and_named(caplog: pytest.LogCaptureFixture) -> None:
    began, goes = threading.Event(), threading.Event()

    def handle(message: str) -> None:
        began.set()
        assert goes.wait(20)

    async def messages() -> AsyncIterator[str]:
        yield "pictures/" * 100

    with raising(signal.SIGTERM) as terminate:
        async with LifespanContainer() as container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await anyio.to_thread.run_sync(began.wait)
                terminate()
                await anyio.wait_all_tasks_blocked()
                terminate()
                await anyio.wait_all_tasks_blocked()
                goes.set()

            tasks.start_soon(stop)
            summary = await run_worker(handle, messages(), container=container)
            assert summary.done + summary.cancelled == 1
    [text] = [one for one in caplog.messages if "in threads, which cannot be cancelled" in one]
    assert "handle` in threads" in text
    assert len(text) < 400  # the message is cut short


THIRD = """
import logging, sys, threading
from collections.abc import AsyncIterator
import anyio
from fastapi_lifespan_deps import LifespanContainer, run_worker

logging.basicConfig(level="INFO", stream=sys.stdout)

async def messages() -> AsyncIterator[int]:
    yield 1

def handle(message: int) -> None:
    print("began", flush=True)
    threading.Event().wait()

async def main() -> None:
    async with LifespanContainer() as container:
        await run_worker(handle, messages(), container=container)

anyio.run(main, backend={backend!r})
"""


def test_the_third_signal_takes_its_default_action(anyio_backend_name: str) -> None:
    program = THIRD.format(backend=anyio_backend_name)
    with ServerProcess(["-c", program]) as worker:
        for seen in ("(began)", "(takes no more messages)", "(again: running calls)"):
            worker.read_until(seen)
            worker.process.terminate()
        assert worker.wait() == -signal.SIGTERM


async def test_a_third_signal_that_does_not_end_the_process() -> None:
    began, goes = threading.Event(), threading.Event()

    def handle(message: int) -> None:
        began.set()
        assert goes.wait(20)

    with raising(signal.SIGURG) as send:
        async with LifespanContainer() as container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await anyio.to_thread.run_sync(began.wait)
                for _ in range(3):
                    send()
                    await anyio.wait_all_tasks_blocked()
                goes.set()

            tasks.start_soon(stop)
            summary = await run_worker(
                handle, numbers(), container=container, signals=[signal.SIGURG]
            )
            assert summary.stopped_by is signal.SIGURG


async def test_a_message_that_could_not_be_acknowledged_in_time_is_named(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    acknowledging = anyio.Event()

    async def handle(message: int) -> None: ...

    async def acknowledge(message: int, result: None) -> None:
        acknowledging.set()
        await anyio.sleep_forever()

    with raising(signal.SIGTERM) as terminate:
        async with LifespanContainer() as container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await acknowledging.wait()
                terminate()

            tasks.start_soon(stop)
            summary = await run_worker(
                handle, numbers(), container=container, on_done=acknowledge, grace_period=0
            )
            assert summary == WorkerSummary(1, 0, 0, 1, signal.SIGTERM)
    assert "A message was neither done nor failed: 0" in caplog.messages


async def test_handlers_of_the_event_loop_are_put_back(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio has none")
    heard = anyio.Event()
    loop = asyncio.get_running_loop()

    async def handle(message: int) -> None: ...

    loop.add_signal_handler(signal.SIGTERM, heard.set)
    try:
        async with LifespanContainer() as container:
            await run_worker(handle, numbers(), container=container)
        signal.pthread_kill(_main_thread(), signal.SIGTERM)
        with anyio.fail_after(20):
            await heard.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_handler_that_is_set_meanwhile_stays() -> None:
    def other(*_: object) -> None: ...

    async def handle(message: int) -> None:
        signal.signal(signal.SIGTERM, other)

    before = signal.getsignal(signal.SIGTERM)
    try:
        async with LifespanContainer() as container:
            await run_worker(handle, numbers(1), container=container)
        assert signal.getsignal(signal.SIGTERM) is other
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_workers_of_one_loop_share_the_signals(log: Log) -> None:
    first, second, third = Handling(log), Handling(log), Handling(log)
    summaries: list[WorkerSummary] = []

    async def work(handling: Handling) -> None:
        container, handle = handling.container()
        async with container:
            summaries.append(await run_worker(handle, numbers(9), container=container))

    with raising(signal.SIGTERM) as terminate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, first)
            tasks.start_soon(work, second)
            await first.began.wait()
            await second.began.wait()
            terminate()
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(work, third)  # it comes too late
            first.goes.set()
            await anyio.wait_all_tasks_blocked()
            second.goes.set()
    expected = done(taken=1, done=1, stopped_by=signal.SIGTERM)
    assert sorted(summaries) == [expected._replace(taken=0, done=0), expected, expected]
    assert log.count("began 0") == 2


async def test_signals_do_not_come_to_other_threads(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(message: int) -> None: ...

    async def main() -> WorkerSummary:
        async with LifespanContainer() as container:
            return await run_worker(handle, numbers(), container=container)

    summary = await anyio.to_thread.run_sync(anyio.run, main)
    assert summary == done(taken=3, done=3)
    assert "Signals do not stop the worker: they come to the main thread alone" in caplog.messages


async def test_cancelled_from_outside(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    handling = Handling(log)
    container, handle = handling.container()

    async def messages() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            log.append("closed")

    async with container, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await handling.began.wait()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel)
        await run_worker(handle, messages(), container=container, concurrency=2)
    assert log[0] == "began 1"
    assert set(log[1:]) == {
        "closed",
        f"rolled back 1: {anyio.get_cancelled_exc_class().__name__}",
    }
    assert "A message was neither done nor failed: 1" in caplog.messages


async def test_an_error_that_nobody_decides_about_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = anyio.Event()

    async def handle(message: int) -> None:
        raise ValueError("no")

    async def on_error(message: int, error: Exception) -> None:
        asked.set()
        await anyio.sleep_forever()

    async with LifespanContainer() as container, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await asked.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel)
        await run_worker(handle, numbers(1), container=container, on_error=on_error)
    assert "Nobody has decided about this error" in caplog.messages


async def test_a_worker_stops_when_its_container_is_left(log: Log) -> None:
    container = LifespanContainer()
    comes = anyio.Event()
    raised: list[LifespanNotRunning] = []

    async def messages() -> AsyncIterator[int]:
        await comes.wait()
        yield 1

    @container.inject
    async def handle(message: int) -> None:
        log.append("handled")

    async def work() -> None:
        with pytest.raises(LifespanNotRunning, match="it is being left") as caught:
            await run_worker(
                handle, messages(), container=container, on_error=lambda *_: log.append("failed")
            )
        raised.append(caught.value)

    async with anyio.create_task_group() as tasks:
        async with container:
            tasks.start_soon(work)
            await anyio.wait_all_tasks_blocked()
        comes.set()
    assert raised
    assert not log


# Refreshes


async def test_a_message_waits_for_a_value_that_is_being_refreshed(log: Log) -> None:
    container = LifespanContainer()
    handling, goes = anyio.Event(), anyio.Event()
    seen: list[Engine] = []

    @container.inject
    async def handle(message: int, engine: EngineDep) -> None:
        seen.append(engine)
        handling.set()
        await goes.wait()
        assert engine.is_open

    async def refresh() -> None:
        await handling.wait()
        await container.refresh(get_engine, policy="resource_preserving")
        log.append("refreshed")

    async with container, anyio.create_task_group() as tasks:

        async def go_on() -> None:
            await handling.wait()
            await anyio.wait_all_tasks_blocked()
            goes.set()

        tasks.start_soon(refresh)
        tasks.start_soon(go_on)
        summary = await run_worker(handle, numbers(), container=container, concurrency=2)
        assert summary == done(taken=3, done=3)
    assert log == ["refreshed"]
    assert len(set(seen)) == 2


async def test_a_value_that_did_not_come_back_fails_the_message() -> None:
    container = LifespanContainer()
    fails = False

    async def get_model() -> str:
        if fails:
            raise OSError("no such model")
        return "model"

    @container.inject
    async def handle(
        message: int, model: Annotated[str, Depends(get_model, scope="lifespan")]
    ) -> None:
        raise AssertionError("it has no model")

    async with container:
        fails = True
        with pytest.raises(OSError, match="no such model"):
            await container.refresh(get_model, policy="resource_preserving")
        with pytest.raises(UnavailableLifespanDependency, match="failed to start it again"):
            await run_worker(handle, numbers(), container=container)


async def test_a_handler_that_has_begun_is_not_begun_again(log: Log) -> None:
    container = LifespanContainer(get_engine)
    error = UnavailableLifespanDependency(get_engine, "it is being refreshed", "Wait.", 1)

    async def handle(message: int) -> None:
        log.append("began")
        raise error

    async with container:
        with pytest.raises(UnavailableLifespanDependency):
            await run_worker(handle, numbers(), container=container)
    assert log == ["began"]


# What is refused


async def stream(message: int) -> AsyncIterator[int]:
    yield message


async def undeclared(message: int, engine: EngineDep) -> None: ...


async def handles(message: int) -> None: ...


def in_a_thread(message: int) -> None: ...


def no_message() -> None: ...


@pytest.mark.parametrize(
    ("handler", "messages", "options", "error", "text"),
    [
        (stream, numbers, {}, LifespanDependencyError, "`stream` is a generator function"),
        (undeclared, numbers, {}, UninitializedLifespanDependency, "`get_engine`"),
        (no_message, numbers, {}, TypeError, "`no_message` cannot handle messages"),
        (handles, [1, 2], {}, TypeError, r"messages=\[1, 2\]: a worker needs an async iterable"),
        (handles, lambda: [1, 2], {}, TypeError, r"messages=\[1, 2\]: a worker needs an async"),
        (handles, numbers, {"concurrency": 0}, ValueError, "concurrency=0: give how many"),
        (handles, numbers, {"concurrency": 1.5}, ValueError, "concurrency=1.5: give how many"),
        (handles, numbers, {"call_timeout": -1}, ValueError, "call_timeout=-1: give seconds"),
        (handles, numbers, {"call_timeout": "1"}, ValueError, "call_timeout='1': give seconds"),
        (handles, numbers, {"grace_period": -1}, ValueError, "grace_period=-1: give seconds"),
        (
            handles,
            numbers,
            {"grace_period": math.nan},
            ValueError,
            "grace_period=nan: give seconds",
        ),
        (in_a_thread, numbers, {"call_timeout": 1}, ValueError, "`in_a_thread` is not async"),
    ],
)
async def test_refused(
    handler: Any, messages: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    async with LifespanContainer() as container:
        with pytest.raises(error, match=text):
            await run_worker(handler, messages, container=container, **options)


async def test_a_container_that_does_not_run_is_refused() -> None:
    with pytest.raises(LifespanNotRunning, match="it was not entered, or was left"):
        await run_worker(handles, numbers(), container=LifespanContainer())
