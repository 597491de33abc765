"""`run_worker`: a loop over messages, its errors, its signals and its summary."""

import asyncio
import functools
import gc
import logging
import math
import os
import signal
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
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
from fastapi_lifespan_deps.call.signals import Receiver, listening
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
            call_timeout=timedelta(milliseconds=1),
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
            summary = await run_worker(
                handle, numbers(9), container=container, grace_period=timedelta(0)
            )
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


async def test_a_signal_wakes_the_event_loop_whichever_thread_it_comes_to() -> None:
    """Only what it writes does: the loop's own thread is not interrupted."""
    heard = threading.Event()

    def send() -> bool:
        signal.pthread_kill(threading.get_ident(), signal.SIGURG)
        return heard.wait(10)

    with listening([signal.SIGURG], lambda _: heard.set()):
        assert await anyio.to_thread.run_sync(send)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_others_have_wake_the_event_loop_stays() -> None:
    loop = asyncio.get_running_loop()
    with listening([signal.SIGURG], lambda _: None):
        loop.add_signal_handler(signal.SIGUSR2, int)
        wanted = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wanted)
    found = signal.set_wakeup_fd(-1)
    loop.remove_signal_handler(signal.SIGUSR2)
    assert found == wanted != -1


async def test_signals_wake_the_event_loop_until_the_last_who_listens_has_gone() -> None:
    heard = threading.Event()
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before, warn_on_full_buffer=False)

    def send() -> bool:
        signal.pthread_kill(threading.get_ident(), signal.SIGURG)
        return heard.wait(10)

    with ExitStack() as first, ExitStack() as second:
        first.enter_context(listening([signal.SIGUSR2], lambda _: None))
        second.enter_context(listening([signal.SIGURG], lambda _: heard.set()))
        first.close()
        assert await anyio.to_thread.run_sync(send)
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found, warn_on_full_buffer=False)
    assert found == before


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("is_taken", [False, True])
async def test_what_others_have_closed_does_not_wake_the_event_loop(is_taken: bool) -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    os.close(reads)
    os.close(writes)
    if is_taken:  # its number, by a file that may block
        other = os.open(os.devnull, os.O_WRONLY)
        os.dup2(other, writes)
        os.close(other)
    heard = threading.Event()

    def send() -> bool:
        signal.pthread_kill(threading.get_ident(), signal.SIGURG)
        return heard.wait(10)

    try:
        with listening([signal.SIGURG], lambda _: heard.set()):
            assert await anyio.to_thread.run_sync(send)
    finally:
        if is_taken:
            os.close(writes)
    assert signal.set_wakeup_fd(-1) == -1


async def test_signals_come_if_others_have_forgotten_the_event_loop() -> None:
    heard = anyio.Event()
    wakes = signal.set_wakeup_fd(-1)  # trio's own
    try:
        with listening([signal.SIGURG], lambda _: heard.set()):
            signal.raise_signal(signal.SIGURG)
            with anyio.fail_after(10):
                await heard.wait()
    finally:
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)


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


async def test_a_worker_takes_no_more_while_a_cancellation_ends_its_calls(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The task of the source goes on meanwhile, if asyncio cancels that of the worker alone."""
    if anyio_backend_name == "trio":
        pytest.skip("in trio, only who owns a scope can cancel")
    began, is_ending, is_given = anyio.Event(), anyio.Event(), anyio.Event()

    async def handle(message: int) -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            is_ending.set()
            with anyio.CancelScope(shield=True):
                await is_given.wait()
                await anyio.wait_all_tasks_blocked()

    async def messages() -> AsyncIterator[int]:
        yield 0
        await is_ending.wait()
        is_given.set()
        yield 1

    async with LifespanContainer() as container:
        work = run_worker(handle, messages(), container=container, concurrency=2)
        task = asyncio.ensure_future(work)
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert caplog.messages == ["A message was neither done nor failed: 0"]


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
    handling = Handling(log)
    container, handle = handling.container()
    summaries: list[WorkerSummary] = []

    @container.inject
    async def messages(engine: EngineDep) -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async def work() -> None:
        summaries.append(await run_worker(handle, messages, container=container))

    async with anyio.create_task_group() as tasks, container:
        tasks.start_soon(work)
        await handling.began.wait()
        tasks.start_soon(go_on_when_blocked, handling.goes)
    assert summaries == [done(taken=1, done=1, stopped_by="its container")]
    assert str(summaries[0]).endswith(": stopped by its container")
    assert log == ["began 1", "committed 1"]


async def go_on_when_blocked(event: anyio.Event) -> None:
    await anyio.wait_all_tasks_blocked()
    event.set()


async def test_a_message_that_comes_when_the_container_was_left(log: Log) -> None:
    """Its handler cannot be called any more, which is no failure of the message."""
    container = LifespanContainer()

    async def handle(message: int) -> None: ...

    async def messages() -> AsyncIterator[int]:
        container._standing.run.calls._is_closing = True
        yield 1

    async with container:
        with pytest.raises(LifespanNotRunning, match="it is being left"):
            await run_worker(
                handle, messages(), container=container, on_error=lambda *_: log.append("failed")
            )
    assert not log


async def test_a_worker_of_an_application_stops_with_it() -> None:
    async def messages() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 1

    async def handle(message: int) -> None: ...

    summaries: list[WorkerSummary] = []

    @asynccontextmanager
    async def lifespan(app: LifespanFastAPI) -> AsyncIterator[None]:
        async def work() -> None:
            summaries.append(await run_worker(handle, messages, container=app.lifespan_container))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield

    app = LifespanFastAPI(lifespan=lifespan, handlers=[handle])
    async with app.router.lifespan_context(app):
        await anyio.wait_all_tasks_blocked()
    assert summaries == [done(taken=0, done=0, stopped_by="its container")]


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


# Found from outside


class Sending:
    """A source that sends a signal, and then has more."""

    def __init__(self, send: Callable[[], None]) -> None:
        self.send = send
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(5):
            self.taken += 1
            yield number
            if number == 1:
                self.send()
            await anyio.wait_all_tasks_blocked()


def test_signals_stop_it_under_any_runner() -> None:
    async def handle(message: int) -> None: ...

    async def main(send: Callable[[], None]) -> None:
        async with LifespanContainer() as container:
            source = Sending(send)
            summary = await run_worker(handle, source, container=container)
            assert summary == done(taken=2, done=2, stopped_by=signal.SIGTERM)

    with raising(signal.SIGTERM) as send:
        asyncio.run(main(send))  # which does not tell anyio of its loop


def around(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        assert not kwargs
        return ("around", await function(*args))

    return wrapper


async def test_what_stands_around_an_injected_function_is_called() -> None:
    container = LifespanContainer()

    @around
    @container.inject
    async def handle(message: int, engine: EngineDep) -> int:
        assert engine.is_open
        return message

    results: list[Any] = []
    async with container:
        await run_worker(
            handle,
            numbers(1),
            container=container,
            on_done=lambda _, got: results.append(got),
        )
        results.append(await container.call(handle, 1))
    assert results == [("around", 0), ("around", 1)]


def test_what_stands_around_is_called_by_synchronous_code_too() -> None:
    container = LifespanContainer()

    async def handle(message: int, engine: EngineDep) -> int:
        return message

    handle = around(container.inject(handle))  # type: ignore[assignment]
    assert container.run(handle, 1) == ("around", 1)
    with container.sync() as running:
        assert running.call(handle, 2) == ("around", 2)


async def test_a_coroutine_that_a_plain_function_returns_is_awaited() -> None:
    seen: list[str] = []

    async def handle(message: int, text: str) -> None:
        seen.append(f"{text} {message}")

    async with LifespanContainer() as container:
        await run_worker(lambda number: handle(number, "handled"), numbers(1), container=container)
    assert seen == ["handled 0"]


@pytest.mark.parametrize("ends_by", ["signal", "error", "cancellation"])
async def test_a_source_may_hold_scopes_and_task_groups_open(ends_by: str, log: Log) -> None:
    async def messages() -> AsyncIterator[int]:
        with anyio.fail_after(60):
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)
                    for number in range(9):
                        yield number
            finally:
                log.append("closed")

    with raising(signal.SIGTERM) as terminate, anyio.CancelScope() as scope:

        async def handle(message: int) -> None:
            if ends_by == "error":
                raise ValueError("no")
            (terminate if ends_by == "signal" else scope.cancel)()
            await anyio.wait_all_tasks_blocked()

        async with LifespanContainer() as container:
            if ends_by == "error":
                with pytest.raises(ValueError, match="no"):
                    await run_worker(handle, messages(), container=container)
            else:
                summary = await run_worker(handle, messages(), container=container)
                assert summary.done == 1
    assert log == ["closed"]


@pytest.mark.parametrize("whose", ["handler", "on_done", "on_error", "source", "close"])
@pytest.mark.parametrize("how", ["future", "task"])
async def test_a_cancellation_by_others_is_an_error(
    anyio_backend_name: str, whose: str, how: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("in trio, only who owns a scope can cancel")

    async def cancelled_by_others(place: str) -> None:
        if whose == place and how == "future":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        elif whose == place:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async def messages() -> AsyncIterator[int]:
        try:
            yield 0
            await cancelled_by_others("source")
        finally:
            await cancelled_by_others("close")

    async def handle(message: int) -> None:
        await cancelled_by_others("handler")
        if whose == "on_error":
            raise ValueError

    async def on_done(message: int, result: None) -> None:
        await cancelled_by_others("on_done")

    async def on_error(message: int, error: Exception) -> None:
        await cancelled_by_others("on_error")
        raise error

    async with LifespanContainer() as container:
        with pytest.raises(RuntimeError, match="was cancelled, and not by the worker"):
            await run_worker(
                handle, messages(), container=container, on_done=on_done, on_error=on_error
            )


@pytest.mark.parametrize("fails", [False, True])
async def test_a_handler_with_a_task_group_is_cut_off(
    fails: bool, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    began = anyio.Event()

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if fails:
                raise ValueError("while cancelled")

    async def handle(message: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(anyio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            began.set()

    def on_error(message: int, error: Exception) -> None:
        assert isinstance(error, ExceptionGroup)
        log.append(repr(error.exceptions))

    with raising(signal.SIGTERM) as terminate:
        async with LifespanContainer() as container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await began.wait()
                terminate()

            tasks.start_soon(stop)
            summary = await run_worker(
                handle, numbers(), container=container, grace_period=0, on_error=on_error
            )
            assert summary == WorkerSummary(1, 0, int(fails), int(not fails), signal.SIGTERM)
    assert log == (["(ValueError('while cancelled'),)"] if fails else [])


async def test_what_the_clean_up_of_a_cut_off_call_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began = anyio.Event()
    container = LifespanContainer()
    errors: list[Exception] = []

    async def get_session() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise OSError("the roll-back failed")

    @container.inject
    async def handle(message: int, session: Annotated[None, FastAPIDepends(get_session)]) -> None:
        began.set()
        await anyio.sleep_forever()

    with raising(signal.SIGTERM) as terminate:
        async with container, anyio.create_task_group() as tasks:

            async def stop() -> None:
                await began.wait()
                terminate()

            tasks.start_soon(stop)
            await run_worker(handle, numbers(), container=container, grace_period=0)
            await run_worker(
                handle,
                numbers(1),
                container=container,
                call_timeout=0.001,
                on_error=lambda _, error: errors.append(error),
            )
    [text] = [one for one in caplog.messages if "its clean-up failed" in one]
    assert "handle` was cancelled" in text
    [error] = errors
    assert isinstance(error, LifespanTimeout)
    assert any("the roll-back failed" in note for note in error.__notes__)


@pytest.mark.parametrize(
    "wrong", [signal.SIGTERM, [99], ["x"], [signal.SIGTERM, signal.SIGKILL], None]
)
async def test_wrong_signals_are_refused_and_nothing_is_left(wrong: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with LifespanContainer() as container:
        with pytest.raises(ValueError, match="signals="):
            await run_worker(handles, numbers(), container=container, signals=wrong)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_each_worker_hears_only_its_signals(log: Log) -> None:
    first, second = Handling(log), Handling(log)
    summaries: dict[str, WorkerSummary] = {}

    async def work(name: str, handling: Handling, *signals: signal.Signals) -> None:
        container, handle = handling.container()
        async with container:
            summaries[name] = await run_worker(
                handle, numbers(2), container=container, signals=signals
            )

    with raising(signal.SIGINT) as send:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, "both", first, signal.SIGINT, signal.SIGTERM)
            await first.began.wait()
            tasks.start_soon(work, "one", second, signal.SIGTERM)
            await second.began.wait()
            send()
            await anyio.wait_all_tasks_blocked()
            first.goes.set()
            second.goes.set()
    assert summaries == {
        "both": done(taken=1, done=1, stopped_by=signal.SIGINT),
        "one": done(taken=2, done=2),
    }


class Reader:
    """A source with a connection of its own."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.left = [1]

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()

    def aclose(self) -> None:
        self.log.append("closed")


@pytest.mark.parametrize("is_injected", [False, True])
async def test_a_source_that_is_through_is_closed_after_the_last_call(
    log: Log, is_injected: bool
) -> None:
    handling = Handling(log)
    container, handle = handling.container()

    async def get_connection() -> AsyncIterator[None]:
        yield
        log.append("closed")

    async def messages(connection: Annotated[None, FastAPIDepends(get_connection)]) -> Any:
        yield 1

    async with container, anyio.create_task_group() as tasks:

        async def go_on() -> None:
            await handling.began.wait()
            await anyio.wait_all_tasks_blocked()
            handling.goes.set()

        tasks.start_soon(go_on)
        source = messages if is_injected else Reader(log)
        await run_worker(handle, source, container=container, concurrency=2)
    assert log == ["began 1", "committed 1", "closed"]


async def test_a_source_that_does_not_close_is_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def messages() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=is_shielded):
                await (goes.wait() if is_shielded else anyio.sleep_forever())

    class Hanging(Reader):
        async def aclose(self) -> None:  # type: ignore[override]
            await anyio.sleep_forever()

    goes, is_shielded = anyio.Event(), False

    async def handle(message: int) -> None:
        terminate()

    with raising(signal.SIGTERM) as terminate:
        async with LifespanContainer() as container:
            for source in (messages(), Hanging(Log())):
                summary = await run_worker(handle, source, container=container, grace_period=0)
                assert summary.stopped_by is signal.SIGTERM
    assert "The source of messages did not close within the grace period" in caplog.messages


async def test_what_closing_a_source_raises_stops_the_worker() -> None:
    class Failing(Reader):
        def aclose(self) -> None:
            raise BaseExceptionGroup("in its task group", [GeneratorExit(), OSError("closing")])

    async with LifespanContainer() as container:
        with pytest.raises(ExceptionGroup, match="in its task group") as caught:
            await run_worker(handles, Failing(Log()), container=container)
    assert repr(caught.value.exceptions) == "(OSError('closing'),)"


async def test_a_container_that_is_left_is_no_failure_of_a_message(
    monkeypatch: pytest.MonkeyPatch, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    handling = Handling(log)
    container, handle = handling.container()
    raised: list[LifespanNotRunning] = []

    async def work() -> None:
        with pytest.raises(LifespanNotRunning, match="it was left while") as caught:
            await run_worker(
                handle, numbers(), container=container, on_error=lambda *_: log.append("failed")
            )
        raised.append(caught.value)

    async with anyio.create_task_group() as tasks, container:
        tasks.start_soon(work)
        await handling.began.wait()
    assert raised
    assert "failed" not in log
    assert "A message was neither done nor failed: 0" in caplog.messages


async def test_an_error_is_logged_if_the_worker_is_cancelled_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(message: int) -> None:
        if message == 1:
            raise ValueError("the cause")
        await anyio.sleep_forever()

    async with LifespanContainer() as container, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel)
        await run_worker(handle, numbers(), container=container, concurrency=2)
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "The worker was cancelled after this error"
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "ValueError('the cause')"


def test_a_process_that_is_forked_meanwhile_ends_by_its_signals() -> None:
    async def handle(message: int) -> None:
        child = os.fork()
        if not child:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM

    async def main() -> None:
        async with LifespanContainer() as container:
            summary = await run_worker(handle, numbers(1), container=container)
            assert summary == done(taken=1, done=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        anyio.run(main)


async def test_a_process_that_was_forked_is_told_by_its_number() -> None:
    async def handle(message: int) -> None:
        receiver = signal.getsignal(signal.SIGURG)
        assert isinstance(receiver, Receiver)
        receiver._process = 0
        signal.raise_signal(signal.SIGURG)
        assert signal.getsignal(signal.SIGURG) is signal.SIG_IGN

    with raising(signal.SIGURG):
        async with LifespanContainer() as container:
            summary = await run_worker(
                handle, numbers(1), container=container, signals=[signal.SIGURG]
            )
            assert summary.stopped_by is None


async def test_errors_of_a_handler_that_look_like_others_are_its_own(log: Log) -> None:
    group = ExceptionGroup("both", [ValueError()])
    errors = [LifespanNotRunning("another one", "Start it."), group]

    async def handle(message: int) -> None:
        raise errors[message]

    seen: list[Exception] = []
    async with LifespanContainer() as container:
        await run_worker(
            handle, numbers(2), container=container, on_error=lambda _, error: seen.append(error)
        )
    assert seen == errors


async def test_an_application_that_serves_keeps_its_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    async def handle(message: int) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    app = LifespanFastAPI(handlers=[handle])
    async with app.router.lifespan_context(app):
        await run_worker(handle, numbers(1), container=app.lifespan_container)
        await run_worker(
            handle, numbers(1), container=app.lifespan_container, signals=(signal.SIGTERM,)
        )
    assert seen[0] is before
    assert seen[1] is not before


async def test_waiting_for_a_refresh_takes_no_time_of_the_call() -> None:
    container = LifespanContainer()
    starts, is_first = anyio.Event(), True

    async def get_model() -> str:
        nonlocal is_first
        if not is_first:
            await starts.wait()
        is_first = False
        return "model"

    @container.inject
    async def handle(
        message: int, model: Annotated[str, Depends(get_model, scope="lifespan")]
    ) -> None: ...

    async with container, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(container.refresh, get_model, policy="resource_preserving"))
        await anyio.wait_all_tasks_blocked()

        async def start() -> None:
            await anyio.sleep(0.01)
            starts.set()

        tasks.start_soon(start)
        summary = await run_worker(handle, numbers(), container=container, call_timeout=0.001)
        assert summary == done(taken=3, done=3)


async def test_callbacks_and_sources_may_declare_dependencies(log: Log) -> None:
    container = LifespanContainer(get_engine)

    def get_messages(engine: EngineDep) -> AsyncIterator[int]:
        assert engine.is_open
        return numbers(2)

    @container.inject
    def acknowledge(message: int, result: None, engine: EngineDep) -> None:
        assert engine.is_open
        log.append(f"acknowledged {message}")

    async def decide(message: int, error: Exception, engine: EngineDep) -> None:
        assert engine.is_open
        log.append(f"decided {message}")

    async def handle(message: int) -> None:
        if message == 1:
            raise ValueError

    async with container:
        for source in (get_messages, partial(numbers, 2)):
            await run_worker(
                handle, source, container=container, on_done=acknowledge, on_error=decide
            )
    assert log == ["acknowledged 0", "decided 1"] * 2


class Huge:
    def __repr__(self) -> str:
        raise ValueError("it is too long")


async def test_a_message_is_named_whatever_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(message: object) -> None: ...

    def acknowledge(message: object, result: None) -> None:
        raise OSError("not acknowledged")

    async def messages(message: object) -> AsyncIterator[object]:
        yield message

    async with LifespanContainer() as container:
        for message in (Huge(), b"x" * 1000, [10**5000]):
            with pytest.raises(OSError, match="not acknowledged"):
                await run_worker(
                    handle, partial(messages, message), container=container, on_done=acknowledge
                )
    first, second, third = (one for one in caplog.messages if "neither done nor" in one)
    assert "Huge" in first
    assert second.endswith("xxx'...")
    assert max(map(len, (first, second, third))) < 300


async def test_a_message_is_let_go_when_it_is_done() -> None:
    class Message: ...

    alive: list[weakref.ref[Message]] = []
    checked = anyio.Event()

    async def messages() -> AsyncIterator[Message]:
        message = Message()
        alive.append(weakref.ref(message))
        yield message
        del message
        await anyio.wait_all_tasks_blocked()
        assert alive[0]() is None
        checked.set()

    async def handle(message: Message) -> None: ...

    async with LifespanContainer() as container:
        await run_worker(handle, messages(), container=container)
    assert checked.is_set()


def test_a_message_whose_call_never_began_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The loop of asyncio cancels a task before its first step, if it is told to."""

    async def messages() -> AsyncIterator[str]:
        yield "first"
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: [one.cancel() for one in asyncio.all_tasks()])
        yield "second"

    async def handle(message: str) -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        async with LifespanContainer() as container:
            await run_worker(handle, messages(), container=container, concurrency=3)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        with suppress(asyncio.CancelledError):
            asyncio.run(main())
        gc.collect()
    assert "A message was neither done nor failed: 'second'" in caplog.messages


@pytest.mark.parametrize("name", ["on_done", "on_error"])
@pytest.mark.parametrize("wrong", [[1], lambda message: None])
async def test_what_cannot_be_told_is_refused(name: str, wrong: Any) -> None:
    async with LifespanContainer() as container:
        with pytest.raises(TypeError, match=f"{name}="):
            await run_worker(handles, numbers(), container=container, **{name: wrong})


async def test_odd_callables() -> None:
    async with LifespanContainer() as container:
        # a class that tells nothing of its parameters
        await run_worker(handles, numbers(1), container=container, on_done=slice)
        with pytest.raises(TypeError, match="handler=None: give a function"):
            await run_worker(None, numbers(), container=container)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a worker needs an async iterable"):
            await run_worker(handles, Reader, container=container)


def test_a_nursery_that_is_cut_off_is_no_error() -> None:
    async def handle(message: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            terminate()

    async def main() -> None:
        async with LifespanContainer() as container:
            summary = await run_worker(handle, numbers(), container=container, grace_period=0)
            assert summary == WorkerSummary(1, 0, 0, 1, signal.SIGTERM)

    with raising(signal.SIGTERM) as terminate:
        anyio.run(main, backend="trio")
