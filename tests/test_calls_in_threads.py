"""Synchronous calls, from any thread but the event loop's; and containers of synchronous code."""

import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from traceback import walk_stack
from types import FrameType
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends as Stock

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanNotRunning,
    RefreshError,
    current_container,
    get_container,
    inject,
)
from fastapi_lifespan_deps.call.leaving import end
from fastapi_lifespan_deps.call.threads import Answer, Owner, Taken
from fastapi_lifespan_deps.live.asking import under
from fastapi_lifespan_deps.live.generation import Pin

log: list[str] = []
PATIENCE = 20


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


class Engine:
    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self.is_alive = True


async def get_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    log.append("engine up")
    yield engine
    engine.is_alive = False
    log.append("engine down")


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]
here: ContextVar[str] = ContextVar("here", default="nowhere")


async def get_session(engine: EngineDep) -> AsyncIterator[str]:
    """It runs in the event loop, in one task."""
    async with anyio.create_task_group() as tasks:
        log.append("open session")
        try:
            yield f"session of {engine.name}"
        except BaseException as error:
            log.append(f"session sees {type(error).__name__}")
            raise
        finally:
            log.append("close session")
            tasks.cancel_scope.cancel()


async def get_word() -> str:
    return "word"


def get_unit(session: Annotated[str, Stock(get_session)]) -> Iterator[str]:
    """It runs in the thread of the call, in its context."""
    log.append(f"open unit {here.get()} {threading.get_ident()}")
    token = here.set("unit")
    try:
        yield f"unit of {session}"
    except BaseException as error:
        log.append(f"unit sees {type(error).__name__}")
        raise
    finally:
        here.reset(token)
        log.append("close unit")


def get_size(word: Annotated[str, Stock(get_word)]) -> int:
    return len(word)


container = LifespanContainer()


@container.inject
def handle(
    text: str,
    unit: Annotated[str, Stock(get_unit)],
    size: Annotated[int, Stock(get_size)],
    engine: EngineDep,
) -> str:
    assert engine.is_alive
    log.append(f"handle {text} {here.get()}")
    return f"{text} {unit} {size}"


@container.inject
def peek(engine: EngineDep) -> Engine:
    return engine


@container.inject
def fail(unit: Annotated[str, Stock(get_unit)]) -> None:
    raise ZeroDivisionError


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *args).result(PATIENCE)


def test_a_synchronous_call_runs_in_the_thread_and_context_of_its_caller() -> None:
    here.set("the caller's")
    with container.sync() as running:
        assert handle("a") == "a unit of session of engine 4"
        assert log == [
            *("engine up", "open session", f"open unit the caller's {threading.get_ident()}"),
            *("handle a unit", "close unit", "close session"),
        ]
        assert running.call(handle, "b") == "b unit of session of engine 4"
        assert in_thread(handle, "c") == "c unit of session of engine 4"
        assert running[get_engine] is running.call(peek) is peek() is in_thread(peek)
        assert current_container()[get_engine] is running[get_engine]
    assert log[-1] == "engine down"


def test_an_error_is_thrown_into_dependencies_here_and_there() -> None:
    with container.sync(), pytest.raises(ZeroDivisionError):
        fail()
    assert log[3:] == [
        *("unit sees ZeroDivisionError", "close unit"),
        *("session sees ZeroDivisionError", "close session", "engine down"),
    ]


def test_an_error_of_an_asynchronous_function_is_raised_here() -> None:
    async def wrong(session: Annotated[str, Stock(get_session)]) -> None:
        raise ZeroDivisionError

    with LifespanContainer(handlers=[wrong]).sync() as running, pytest.raises(ZeroDivisionError):
        running.call(wrong)
    with pytest.raises(LifespanNotRunning, match="it is being left"):
        running.call(wrong)


def test_where_nothing_is_asynchronous_nothing_is_asked_of_the_event_loop() -> None:
    def get_simple(engine: EngineDep) -> Iterator[str]:
        yield f"simple {engine.name}"

    def function(simple: Annotated[str, Stock(get_simple)]) -> str:
        return simple

    with LifespanContainer(handlers=[function]).sync() as running:
        assert running.call(function) == "simple engine"


def test_errors_of_leaving_are_told() -> None:
    def wrong(word: Annotated[str, Stock(get_word)]) -> Iterator[None]:
        try:
            yield
        finally:
            raise ValueError("here")

    async def wrong_async() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ValueError("there")

    @inject
    def function(
        one: Annotated[None, Stock(wrong)], two: Annotated[None, Stock(wrong_async)]
    ) -> None: ...

    with LifespanContainer().sync() as running:
        with pytest.raises(ExceptionGroup) as caught:
            running.call(function)
        assert [str(one) for one in caught.value.exceptions] == ["there", "here"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_beside_an_asynchronous_container(backend: str) -> None:
    async def main() -> None:
        async with container:
            assert await anyio.to_thread.run_sync(handle, "a") == "a unit of session of engine 4"
            with pytest.raises(LifespanNotRunning, match="thread of its event loop"):
                handle("b")

    anyio.run(main, backend=backend)


def test_calls_from_many_threads_at_once() -> None:
    with container.sync(), ThreadPoolExecutor(8) as threads:
        found = [threads.submit(handle, str(number)) for number in range(40)]
        assert [one.result(PATIENCE) for one in found] == [
            f"{number} unit of session of engine 4" for number in range(40)
        ]
    assert log.count("open session") == log.count("close session") == 40


def test_asynchronous_functions_are_called_too() -> None:
    async def read(text: str, session: Annotated[str, Stock(get_session)]) -> str:
        return f"{text} {session} {current_container()[get_engine].name}"

    with LifespanContainer(handlers=[read]).sync() as running:
        assert running.call(read, "a") == "a session of engine engine"
        read_injected = running.inject(read)
        assert inspect.iscoroutinefunction(read_injected)
        with running.enter(get_unit) as unit:
            assert unit == "unit of session of engine"
        with pytest.raises(ZeroDivisionError), running.enter(get_session):
            raise ZeroDivisionError
        assert log[-2:] == ["session sees ZeroDivisionError", "close session"]


def test_a_refresh_leaves_no_call_with_a_dead_value() -> None:
    entered, go_on = threading.Event(), threading.Event()

    @container.inject
    def slow(engine: EngineDep, takes: Annotated[Any, Stock(get_container)]) -> bool:
        entered.set()
        assert go_on.wait(PATIENCE)
        assert peek() is engine  # pinned as the outer call is
        assert takes[get_engine] is engine
        return bool(engine.is_alive)

    with container.sync() as running, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(slow)
        assert entered.wait(PATIENCE)
        old = running[get_engine]
        running.refresh(get_engine)
        assert running[get_engine] is not old
        assert peek() is running[get_engine]
        assert old.is_alive
        go_on.set()
        assert waiting.result(PATIENCE) is True
    assert log.count("engine up") == log.count("engine down") == 2


def test_overrides_that_are_set_meanwhile_hold() -> None:
    with container.sync():
        try:
            container.dependency_overrides[get_engine] = lambda: Engine("fake")
            assert peek().name == "fake"
            assert handle("a") == "a unit of session of fake 4"
        finally:
            container.dependency_overrides.clear()


def test_a_caller_without_the_given_names_is_told_so_by_python() -> None:
    with container.sync(), pytest.raises(TypeError, match="text"):
        handle()


def test_leaving_waits_for_calls_in_threads() -> None:
    entered, go_on = threading.Event(), threading.Event()

    @container.inject
    def slow(engine: EngineDep) -> bool:
        entered.set()
        assert go_on.wait(PATIENCE)
        return engine.is_alive

    with ThreadPoolExecutor(2) as threads:
        with container.sync() as running:
            waiting = threads.submit(slow)
            assert entered.wait(PATIENCE)
            closing = running._standing.run.calls
            threads.submit(until, lambda: closing._is_closing, go_on.set)
        assert waiting.result(PATIENCE) is True
        with pytest.raises(LifespanNotRunning):
            peek()


def until(condition: Callable[[], bool], act: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    act()


@pytest.mark.unix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_process_it_does_not_run() -> None:
    with container.sync() as running:
        child = os.fork()
        if not child:
            status = 1
            try:
                running.call(peek)
            except LifespanNotRunning as error:
                status = 0 if "another process" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_that_was_forked_is_told_by_its_number() -> None:
    with container.sync() as running:
        tasks = running._standing.run.live.supervisor.tasks
        tasks.process, process = object(), tasks.process
        asked: list[Callable[[], object]] = [
            peek,
            lambda: running[get_engine],
            lambda: running.refresh(get_engine),
            lambda: running.enter(get_session).__enter__(),
        ]
        for ask in asked:
            with pytest.raises(LifespanNotRunning, match="another process"):
                ask()
        # there it may be started again
        with container.sync() as other:
            assert other.call(peek)
        tasks.process = process


def test_a_container_may_be_left_in_another_thread() -> None:
    entered = ExitStack()
    running = entered.enter_context(LifespanContainer(get_engine).sync())
    assert running[get_engine].is_alive
    with ThreadPoolExecutor(1) as threads:
        threads.submit(entered.close).result()
    assert log == ["engine up", "engine down"]


def test_calls_in_threads_that_take_too_long_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    entered, go_on = threading.Event(), threading.Event()

    @container.inject
    def slow(engine: EngineDep) -> bool:
        entered.set()
        assert go_on.wait(PATIENCE)
        return engine.is_alive

    with ThreadPoolExecutor(2) as threads:
        with container.sync():
            waiting = threads.submit(slow)
            assert entered.wait(PATIENCE)
            threads.submit(until, lambda: "Calls are cancelled" in caplog.text, go_on.set)
        assert waiting.result(PATIENCE) is True


def interrupt() -> None:
    """What Ctrl-C does."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.unix
def test_an_interrupted_call_is_left_before_that_is_raised() -> None:
    async def wait(session: Annotated[str, Stock(get_session)]) -> None:
        interrupt()
        await anyio.sleep_forever()

    with LifespanContainer(handlers=[wait]).sync() as running:
        with pytest.raises(KeyboardInterrupt):
            running.call(wait)
        assert log[-1] == "close session"
    assert log[-1] == "engine down"


@pytest.mark.unix
def test_an_interrupt_cuts_off_what_is_being_entered() -> None:
    async def slow() -> AsyncIterator[None]:
        interrupt()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cut off")
        yield

    @inject
    def function(
        session: Annotated[str, Stock(get_session)], nothing: Annotated[None, Stock(slow)]
    ) -> None:
        raise AssertionError

    with LifespanContainer(handlers=[function]).sync() as running:
        with pytest.raises(KeyboardInterrupt):
            running.call(function)
        assert log[1:] == [
            "open session",
            "cut off",
            "session sees KeyboardInterrupt",
            "close session",
        ]


@pytest.mark.unix
def test_what_is_entered_in_spite_of_an_interrupt_sees_it() -> None:
    async def slow() -> AsyncIterator[None]:
        interrupt()
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        try:
            yield
        except BaseException as error:
            log.append(f"sees {type(error).__name__}")
            raise

    @inject
    def function(nothing: Annotated[None, Stock(slow)]) -> None:
        raise AssertionError

    with LifespanContainer().sync() as running:
        with pytest.raises(KeyboardInterrupt):
            running.call(function)
        assert log == ["sees KeyboardInterrupt"]


@pytest.mark.unix
def test_an_interrupt_while_a_dependency_is_left_waits_for_its_end() -> None:
    async def slow() -> AsyncIterator[None]:
        yield
        interrupt()
        await anyio.to_thread.run_sync(threading.Event().wait, 0.01)
        log.append("left")

    @inject
    def function(nothing: Annotated[None, Stock(slow)]) -> None: ...

    with LifespanContainer().sync() as running:
        with pytest.raises(KeyboardInterrupt):
            running.call(function)
        assert log == ["left"]


def test_what_is_cut_off_before_it_began_is_refused() -> None:
    with LifespanContainer().sync() as running:
        run = running._standing.run
        taken = Taken(run)

        def cut_off_before_its_task_begins() -> Owner:
            owner = Owner(run, taken)
            owner.cancel()
            return owner

        owner = running._portal.call(cut_off_before_its_task_begins)
        with pytest.raises(LifespanNotRunning, match="which took too long"):
            owner.ask(anyio.sleep_forever, can_be_cut_off=True)
        taken.give_back()


async def interrupt_twice(entered: threading.Event) -> None:
    """Nobody waits for what can't be cut off when there is a second interrupt."""
    interrupt()
    with suppress(anyio.get_cancelled_exc_class()):
        await anyio.sleep_forever()
    interrupt()
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(entered.wait, PATIENCE)


@pytest.mark.unix
def test_leaving_waits_for_what_an_interrupted_call_has_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    entered = threading.Event()

    async def slow(engine: EngineDep) -> AsyncIterator[None]:
        await interrupt_twice(entered)
        yield
        assert engine.is_alive
        log.append("left")

    @inject
    def function(nothing: Annotated[None, Stock(slow)]) -> None:
        raise AssertionError

    told = "cancelled, for their container is left: a dependency of a synchronous call"
    with (
        ThreadPoolExecutor(1) as threads,
        LifespanContainer(handlers=[function]).sync() as running,
    ):
        threads.submit(until, lambda: told in caplog.text, entered.set)
        with pytest.raises(KeyboardInterrupt):
            running.call(function)
    assert log == ["engine up", "left", "engine down"]


@pytest.mark.unix
def test_what_an_interrupted_call_cannot_leave_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    async def slow() -> AsyncIterator[None]:
        await interrupt_twice(entered)
        yield
        raise ZeroDivisionError

    @inject
    def function(nothing: Annotated[None, Stock(slow)]) -> None:
        raise AssertionError

    with LifespanContainer().sync() as running:
        with pytest.raises(KeyboardInterrupt):
            running.call(function)
        entered.set()
    assert "A dependency of a call failed to end" in caplog.text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_hangs_while_it_is_entered_is_cut_off_with_the_container(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    began = threading.Event()

    async def slow() -> AsyncIterator[None]:
        began.set()
        await anyio.sleep_forever()
        yield

    @inject
    def function(
        session: Annotated[str, Stock(get_session)], nothing: Annotated[None, Stock(slow)]
    ) -> None:
        raise AssertionError

    async def main() -> None:
        async def call() -> None:
            with pytest.raises(LifespanNotRunning, match="which took too long") as caught:
                await anyio.to_thread.run_sync(function)
            log.append(type(caught.value).__name__)

        container = LifespanContainer(handlers=[function])
        async with anyio.create_task_group() as tasks, container:
            tasks.start_soon(call)
            await anyio.to_thread.run_sync(began.wait, PATIENCE)

    anyio.run(main, backend=backend)
    assert sorted(log[2:]) == [
        "LifespanNotRunning",
        "close session",
        "engine down",
        "session sees LifespanNotRunning",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_functions_leave_threads_for_what_they_wait_for(backend: str) -> None:
    together = threading.Barrier(40, timeout=PATIENCE)

    async def read() -> str:
        return await anyio.to_thread.run_sync(lambda: "read")

    def function(word: Annotated[str, Stock(get_word)]) -> str:
        together.wait()
        return in_there()

    @inject
    def in_there(text: Annotated[str, Stock(read)]) -> str:
        return text

    async def main() -> None:
        async with LifespanContainer() as running, anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(running.call, function)

    with_limit(main, backend)


def with_limit(main: Callable[[], Any], backend: str) -> None:
    """Run it, and fail if it hangs."""

    async def limited() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(limited, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_dependency_of_a_call_in_a_thread_cannot_wait_for_its_end(backend: str) -> None:
    async def refreshing(
        engine: EngineDep, container: Annotated[LifespanContainer, Stock(get_container)]
    ) -> str:
        try:
            await container.refresh(get_engine, policy="resource_preserving")
        except RefreshError as error:
            return str(error)
        raise AssertionError

    @inject
    def function(text: Annotated[str, Stock(refreshing)]) -> str:
        return text

    async def main() -> None:
        async with LifespanContainer(handlers=[function]):
            found = await anyio.to_thread.run_sync(function)
            assert "would wait for its own end" in found

    with_limit(main, backend)


# run and command


def test_run_starts_only_what_the_function_needs() -> None:
    async def get_model() -> str:
        raise AssertionError("not needed")

    both = LifespanContainer(get_model, handlers=[handle])

    async def load(name: str, session: Annotated[str, Stock(get_session)]) -> str:
        return f"{name} {session}"

    def status() -> str:
        return "fine"

    assert both.run(status) == "fine"
    assert log == []
    assert both.run(load, "a") == "a session of engine"
    assert both.run(handle, text="b") == "b unit of session of engine 4"
    assert log.count("engine up") == log.count("engine down") == 2


def test_a_command_shows_only_what_is_left_to_give() -> None:
    @container.command
    async def load(name: str, session: Annotated[str, Stock(get_session)], size: int = 3) -> str:
        return f"{name} {session} {size}"

    assert str(inspect.signature(load)) == "(name: str, size: int = 3) -> str"
    assert load("a", size=4) == "a session of engine 4"
    assert log[-1] == "engine down"

    with pytest.raises(DependencyScopeError):

        @container.command
        def wrong(page: Annotated[int, Stock(get_page)]) -> None: ...


def get_page(page: int) -> int:
    return page


# Streams


@container.inject
async def count(
    stop: int, session: Annotated[str, Stock(get_session)], engine: EngineDep
) -> AsyncIterator[str]:
    try:
        for number in range(stop):
            yield f"{number} {session}"
    finally:
        log.append("end of count")


@container.inject
def count_sync(
    stop: int, unit: Annotated[str, Stock(get_unit)], engine: EngineDep
) -> Iterator[str]:
    try:
        for number in range(stop):
            yield f"{number} {unit}"
    finally:
        log.append("end of count")


ENDS = ["end of count", "close session"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stream_is_owned_by_one_task_whoever_takes_its_items(backend: str) -> None:
    async def main() -> None:
        async with container:
            assert inspect.isasyncgenfunction(count)
            assert [one async for one in count(2)] == ["0 session of engine", "1 session of engine"]
            assert log[-2:] == ENDS

            items = count(5)
            assert await anext(items) == "0 session of engine"

            async def take() -> None:
                assert await anext(items) == "1 session of engine"

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
            await items.aclose()  # an early end, and no error
            assert log[-2:] == ENDS
            assert not any("sees" in one for one in log)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stream_that_fails_or_is_cancelled_is_left(backend: str) -> None:
    @container.inject
    async def fails(session: Annotated[str, Stock(get_session)]) -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    @container.inject
    async def waits(session: Annotated[str, Stock(get_session)]) -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    @container.inject
    async def never_begins(page: Annotated[None, Stock(fails_itself)]) -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        async with container:
            with pytest.raises(ZeroDivisionError):
                async for _ in fails():
                    pass
            assert log[-2:] == ["session sees ZeroDivisionError", "close session"]
            with anyio.move_on_after(0.01) as scope:
                async for _ in waits():
                    pass
            assert scope.cancelled_caught
            assert log[-1] == "close session"
            with pytest.raises(ZeroDivisionError):
                async for _ in never_begins():
                    raise AssertionError

    anyio.run(main, backend=backend)


async def fails_itself() -> None:
    raise ZeroDivisionError


def test_a_synchronous_stream_may_be_taken_in_several_threads() -> None:
    here.set("the caller's")
    with container.sync():
        assert list(count_sync(2)) == [f"{number} unit of session of engine" for number in range(2)]
        assert log[-3:] == ["end of count", "close unit", "close session"]
        items = count_sync(5)
        assert next(items) == "0 unit of session of engine"
        assert here.get() == "the caller's"  # what it sets stays its own
        assert in_thread(next, items) == "1 unit of session of engine"
        in_thread(items.close)  # type: ignore[attr-defined]
        assert log[-3:] == ["end of count", "close unit", "close session"]
        assert not any("sees" in one for one in log)


def test_a_synchronous_stream_that_fails_is_left() -> None:
    @container.inject
    def fails(unit: Annotated[str, Stock(get_unit)]) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with container.sync(), pytest.raises(ZeroDivisionError):
        list(fails())
    assert "session sees ZeroDivisionError" in log


def test_injected_methods_keep_their_owner() -> None:
    class Service:
        name = "service"

        @container.inject
        def greet(self, engine: EngineDep, text: str = "hello") -> str:
            return f"{text} {self.name} {engine.name}"

    service = Service()
    with container.sync() as running:
        assert running.call(service.greet, "bye") == "bye service engine"
        assert service.greet(text="hi") == "hi service engine"
    assert container.run(service.greet) == "hello service engine"
    with LifespanContainer(handlers=[service.greet]).sync() as running:
        assert running[get_engine].name == "engine"


async def limited() -> AsyncIterator[None]:
    with anyio.move_on_after(0.01):
        yield


async def failing_child() -> AsyncIterator[None]:
    async def fail() -> None:
        await anyio.sleep(0.01)
        raise ZeroDivisionError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        yield


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("provider", "expected"), [(limited, RuntimeError), (failing_child, ExceptionGroup)]
)
def test_a_dependency_that_dies_in_the_event_loop_fails_the_call(
    backend: str, provider: Any, expected: type[Exception]
) -> None:
    @container.inject
    def wait(
        session: Annotated[str, Stock(get_session)], limit: Annotated[None, Stock(provider)]
    ) -> None:
        until(lambda: "close session" in log, lambda: None)

    async def main() -> None:
        async with container:
            with pytest.raises(expected):
                await anyio.to_thread.run_sync(wait)

    anyio.run(main, backend=backend)
    assert log[-2:] == ["close session", "engine down"]


def test_an_exit_of_an_asynchronous_command_is_the_callers() -> None:
    async def leave(engine: EngineDep) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        container.run(leave)
    assert caught.value.code == 3
    assert log == ["engine up", "engine down"]


def test_a_stream_cannot_be_called_once() -> None:
    with container.sync() as running, pytest.raises(LifespanDependencyError, match="called once"):
        running.call(count_sync, 3)


def test_a_synchronous_stream_that_is_dropped_in_the_event_loop_does_not_block_it() -> None:
    async def main() -> None:
        async with container:
            items = await anyio.to_thread.run_sync(count_sync, 3)
            assert await anyio.to_thread.run_sync(next, items) == "0 unit of session of engine"
            with pytest.raises(LifespanNotRunning, match="thread of its event loop"):
                next(items)
        assert log[-4:] == [*("end of count", "close unit", "close session"), "engine down"]

    anyio.run(main)


def test_a_synchronous_stream_that_is_suspended_ends_with_its_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    with container.sync():
        items = count_sync(3)
        assert next(items) == "0 unit of session of engine"
    assert log[-4:] == [*("end of count", "close unit", "close session"), "engine down"]
    assert list(items) == []


def test_a_synchronous_stream_that_makes_an_item_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.001)
    begun, go_on = threading.Event(), threading.Event()

    @container.inject
    def slow(engine: EngineDep) -> Iterator[bool]:
        begun.set()
        assert go_on.wait(PATIENCE)
        yield engine.is_alive

    with ThreadPoolExecutor(2) as threads:
        with container.sync():
            taken = threads.submit(list, slow())
            assert begun.wait(PATIENCE)
            threads.submit(until, lambda: "Calls are cancelled" in caplog.text, go_on.set)
        assert taken.result(PATIENCE) == [True]


def test_whatever_is_interrupted_is_answered() -> None:
    """Before it was asked; before it began, if it can be cut off; and after it is done."""
    with LifespanContainer().sync() as running:
        run = running._standing.run
        taken = Taken(run)
        owner = Owner(run, taken)

        async def ask() -> None: ...

        never_asked, not_begun, done, to_be_left = (Answer() for _ in range(4))
        done.tell()

        def settle() -> None:
            owner._settle((ask, never_asked, False))
            owner._asked.append((ask, not_begun, True))
            owner._settle((ask, not_begun, True))
            owner._settle((ask, done, False))
            owner._asked.append((ask, to_be_left, False))
            owner._settle((ask, to_be_left, False))

        run.loop.call_soon_threadsafe(settle)
        for interrupted in (never_asked, not_begun):
            with pytest.raises(InterruptedError):
                interrupted.result()
        assert to_be_left.result() is None
        taken.give_back()


class Interruption(BaseException): ...


def in_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *args).result()


def test_what_an_ended_call_has_left_in_a_thread_is_nothing_to_others() -> None:
    with container.sync() as running:
        standing = running._standing
        ended = standing._replace(pin=Pin.of({}, standing.run.current))
        assert ended.pin is not None
        del standing.run.current.pins[ended.pin]
        token = under.set(ended)
        with pytest.raises(LifespanNotRunning):
            current_container()
        under.reset(token)


def test_what_is_interrupted_before_it_is_left_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    interruptions = [Interruption()]

    def interrupted(*args: Any) -> None:
        if interruptions:
            raise interruptions.pop()
        end(*args)

    monkeypatch.setattr("fastapi_lifespan_deps.call.threads.end", interrupted)

    def get_word() -> Iterator[str]:
        yield "word"
        raise AssertionError("it was told of the interruption")

    def get_text(word: Annotated[str, Stock(get_word)]) -> Iterator[str]:
        try:
            yield word
        finally:
            log.append("left")

    @inject
    def read(text: Annotated[str, Stock(get_text)]) -> str:
        return text

    with LifespanContainer().sync(), pytest.raises(Interruption):
        read()
    assert log == ["left"]


def test_a_call_is_forgotten_wherever_it_is_interrupted() -> None:
    """By Ctrl-C, a soft time limit of Celery, or a cancellation of Temporal: at any call in it."""
    left = 0

    def get_counted() -> Iterator[None]:
        nonlocal left
        left += 1
        try:
            yield
        finally:
            left -= 1

    async def get_counted_there() -> AsyncIterator[None]:
        nonlocal left
        left += 1
        try:
            yield
        finally:
            left -= 1

    container = LifespanContainer()

    @container.inject
    def shared(engine: EngineDep) -> None: ...

    @container.inject
    def fresh(
        there: Annotated[None, Stock(get_counted_there)], here: Annotated[None, Stock(get_counted)]
    ) -> None: ...

    def interrupted(function: Callable[[], None], number: int) -> bool:
        """Whether there was a place of that number, and it was interrupted there."""
        count = 0

        def profile(frame: FrameType, event: str, _: object) -> None:
            nonlocal count
            if event == "call" and f"{os.sep}call{os.sep}" in frame.f_code.co_filename:
                if "__del__" in {one.f_code.co_name for one, _ in walk_stack(frame)}:
                    return
                count += 1
                if count == number:
                    raise Interruption

        sys.setprofile(profile)
        try:
            function()
        except Interruption:
            return True
        finally:
            sys.setprofile(None)
        return count >= number

    with container.sync() as running:
        run = running._standing.run
        for function in (shared, fresh):
            number = 1
            # in a thread of its own, whose context is its own
            while in_a_thread(interrupted, function, number):
                number += 1
            assert number > 5
        # what the loop has still to do for an interrupted call
        assert running.call(nothing) is None
        until(lambda: not run.calls._running, lambda: None)
        assert not run.current.pins
        assert left == 0


async def nothing() -> None: ...


def test_a_failed_start_leaves_no_thread() -> None:
    def get_nothing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), LifespanContainer(get_nothing).sync():
        raise AssertionError
    assert "lifespan container" not in {thread.name for thread in threading.enumerate()}


def test_in_its_own_event_loop_synchronous_code_is_refused_at_once() -> None:
    with container.sync() as running:

        async def ask() -> None:
            asked: list[Callable[[], object]] = [
                lambda: running.call(nothing),
                lambda: running.refresh(get_engine),
                lambda: running.enter(get_session),
            ]
            for one in asked:
                with pytest.raises(LifespanNotRunning, match="a synchronous call would block"):
                    one()

        running.call(ask)


def test_synchronous_code_waits_for_the_end_of_old_values_too() -> None:
    @inject
    def read(engine: EngineDep) -> str:
        with pytest.raises(RefreshError, match="uses the old value itself"):
            running.refresh(get_engine).wait()
        return engine.name

    with LifespanContainer(handlers=[read]).sync() as running:
        old = running[get_engine]
        running.refresh(get_engine).wait()
        assert not old.is_alive
        assert running.call(read) == "engine"
