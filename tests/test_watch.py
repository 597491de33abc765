"""Slow starts and stops are named in the log while they last, with the line that they stand at."""

import functools
import inspect
import logging
import math
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    enable_lifespan_scope,
)
from fastapi_lifespan_deps.live.entering import position_of
from fastapi_lifespan_deps.live.supervisor import MAX_THREADS
from fastapi_lifespan_deps.see.frames import MOST, awaiting
from tests.clients import running
from tests.hearing import PATIENCE, SLOW, Heard
from tests.processes import ServerProcess

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard() -> Iterator[Heard]:
    logger, handler = logging.getLogger("fastapi_lifespan_deps"), Heard()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def line_with(function: Callable[..., Any], text: str) -> str:
    """The line of this file in which a function says something."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    [line] = [first + index for index, one in enumerate(lines) if text in one]
    return f"tests{os.sep}test_watch.py:{line}"


def app_with(*providers: Callable[..., Any], **options: Any) -> LifespanFastAPI:
    options.setdefault("slow_after", SLOW)
    app = LifespanFastAPI(**options)
    for number, one in enumerate(providers):
        depends = [Depends(one, scope="lifespan")]
        app.get(f"/{number}", dependencies=depends)(lambda: None)
    return app


def gone() -> bool:
    """Wait until nobody watches any more."""
    for one in threads():
        one.join(PATIENCE)
    return not threads()


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "slow starts"]


# Each kind of provider, slow at both ends as far as it has two: how it waits, and where.


def providers(heard: Heard) -> dict[str, tuple[str, Callable[..., Any]]]:
    async def coroutine() -> None:
        await heard.until("starting for .* it waits at")  # start

    async def generator() -> AsyncIterator[None]:
        await heard.until("starting for .* it waits at")  # start
        yield
        await heard.until("stopping for .* it waits at")  # stop

    def function() -> None:
        heard.wait("starting for .* it runs at")  # start

    def sync_generator() -> Iterator[None]:
        heard.wait("starting for .* it runs at")  # start
        yield
        heard.wait("stopping for .* it runs at")  # stop

    async def blocking() -> AsyncIterator[None]:
        heard.wait("starting for .* it runs at")  # start
        yield
        heard.wait("stopping for .* it runs at")  # stop

    async def blocking_coroutine() -> None:
        heard.wait("starting for .* it runs at")  # start

    @contextmanager
    def managed() -> Iterator[None]:
        heard.wait("starting for .* it runs at")  # start
        yield
        heard.wait("stopping for .* it runs at")  # stop

    @asynccontextmanager
    async def async_managed() -> AsyncIterator[None]:
        await heard.until("starting for .* it waits at")  # start
        yield
        await heard.until("stopping for .* it waits at")  # stop

    class Kind:
        def __init__(self) -> None:
            heard.wait("starting for .* it runs at")  # start

    async def through_another() -> None:
        async def inner() -> None:
            await heard.until("starting for .* it waits at")  # start

        await inner()

    async def plain() -> None:
        await heard.until("starting for .* it waits at")  # start

    @functools.wraps(plain)
    def wrapped() -> Awaitable[None]:
        return plain()

    return {
        "coroutine": ("waits", coroutine),
        "generator": ("waits", generator),
        "function": ("runs", function),
        "sync generator": ("runs", sync_generator),
        "blocking": ("runs", blocking),
        "blocking coroutine": ("runs", blocking_coroutine),
        "contextmanager": ("runs", managed),
        "asynccontextmanager": ("waits", async_managed),
        "class": ("runs", Kind),
        "partial": ("runs", functools.partial(function)),
        "through another": ("waits", through_another),
        "wrapped": ("waits", wrapped),
        "a lambda around it": ("waits", lambda: plain()),
    }


KINDS = list(providers(Heard()))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_slow_provider_is_named_with_the_line_that_it_stands_at(
    kind: str, heard: Heard
) -> None:
    verb, provider = providers(heard)[kind]
    async with running(app_with(provider)):
        pass
    function = provider.func if isinstance(provider, functools.partial) else provider
    if kind == "a lambda around it":
        function = providers(heard)["wrapped"][1]
    started = [one for one in heard.texts() if "starting" in one]
    assert re.fullmatch(
        rf"`.+` \(.+:\d+\) has been starting for 0\.\d+ s; it {verb} at "
        rf"{re.escape(line_with(function, '# start'))}",
        next(one for one in started if f"it {verb} at" in one),
    )
    if "# stop" in inspect.getsource(inspect.unwrap(function)):
        stopped = [one for one in heard.texts() if "stopping" in one]
        assert any(
            one.endswith(f" s; it {verb} at {line_with(function, '# stop')}") for one in stopped
        )


async def test_it_is_said_again_and_in_the_end_that_it_is_over(heard: Heard) -> None:
    async def get_value() -> AsyncIterator[None]:
        await heard.until("starting", 3)
        yield
        await heard.until("stopping", 3)

    async with running(app_with(get_value)):
        pass
    said = [(one.__dict__["lifespan_event"], one) for one in heard.records if one.levelno == 30]
    for step, done in (("start_slow", "started"), ("stop_slow", "stopped")):
        times = [one.__dict__["seconds"] / SLOW for kind, one in said if kind == step]
        assert len(times) >= 3
        assert all(math.log2(time).is_integer() for time in times)
        assert sorted({*times}) == times
        [last] = [one.getMessage() for kind, one in said if kind == f"{step}_over"]
        assert re.fullmatch(rf"`.*get_value` {done} after \d+\.\d s", last)


async def test_a_record_has_its_parts_as_fields(heard: Heard) -> None:
    async def get_value() -> None:
        await heard.until("starting for .* it waits")  # here

    async with running(app_with(get_value)):
        pass
    record = next(one for one in heard.records if "it waits" in one.getMessage())
    fields = record.__dict__
    assert fields["lifespan_event"] == "start_slow"
    assert fields["dependency"] == get_value.__qualname__
    assert re.fullmatch(r"tests/test_watch\.py:\d+", fields["where"])
    assert fields["seconds"] >= SLOW
    assert fields["position"] == f"waits at {line_with(get_value, '# here')}"


async def test_of_those_that_start_at_once_each_is_named(heard: Heard) -> None:
    async def both() -> None:
        await heard.until("get_one` ")
        await heard.until("get_other` ")

    async def get_one() -> None:
        await both()

    async def get_other() -> None:
        await both()

    async with running(app_with(get_one, get_other, lifespan_start="concurrent")):
        pass
    slow = {one.__dict__["dependency"] for one in heard.records if one.levelno == logging.WARNING}
    assert slow == {get_one.__qualname__, get_other.__qualname__}


async def test_what_is_given_up_is_named_once(heard: Heard) -> None:
    """Whoever starts it is cancelled; what had started before is left, and not slow."""

    async def get_first() -> AsyncIterator[None]:
        yield

    async def get_value() -> None:
        await anyio.sleep_forever()  # here

    container = LifespanContainer(get_first, get_value, slow_after=SLOW)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(container.running().__aenter__)
        await heard.until("get_value.* it waits")
        tasks.cancel_scope.cancel()
    text = heard.texts()[-1]
    assert re.fullmatch(
        r"`.*get_value` \(.*\) was still starting after \d+\.\d s, and is given up; it waits at "
        + line_with(get_value, "# here"),
        text,
    )
    assert heard.texts(logging.ERROR) == []


async def test_what_is_given_up_at_once_is_not_named(heard: Heard) -> None:
    """Whoever gives it up, be it the end of the application, hasn't waited for it."""
    starting = anyio.Event()

    async def get_value() -> None:
        starting.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LifespanContainer(get_value).running().__aenter__)
        await starting.wait()
        tasks.cancel_scope.cancel()
    assert heard.texts() == []


async def test_what_would_have_started_next_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first could not be cut off; then there is nobody who waits for the second."""
    starting, go_on = anyio.Event(), anyio.Event()

    async def get_first() -> None:
        starting.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    def get_second() -> None:
        raise AssertionError

    container = LifespanContainer(get_first, get_second)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(container.running().__aenter__)
        await starting.wait()
        tasks.cancel_scope.cancel()
        go_on.set()
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_what_awaits_itself_has_an_end() -> None:
    class Endless:
        cr_frame = inspect.currentframe()

        @property
        def cr_await(self) -> "Endless":
            return self

    assert len(list(awaiting(Endless()))) == MOST


async def test_what_waits_for_a_thread_says_so(heard: Heard) -> None:
    def get_value(number: int) -> Callable[[], None]:
        def provider() -> None:
            heard.wait("it waits for a thread")

        return provider

    values = map(get_value, range(MAX_THREADS + 1))
    async with running(app_with(*values, lifespan_start="concurrent")):
        pass
    assert any(one.endswith("s; it waits for a thread") for one in heard.texts())


def test_of_a_manager_of_another_kind_nobody_knows_the_line() -> None:
    class Manager(AbstractAsyncContextManager[None]):
        async def __aexit__(self, *_: object) -> None: ...

    assert position_of(Manager(), Manager, threading.get_ident()) == ""


async def test_where_nobody_knows_the_line_none_is_named(heard: Heard) -> None:
    """A lifespan function may be of any kind."""

    class Lifespan(AbstractAsyncContextManager[None]):
        def __init__(self, app: Any) -> None: ...

        async def __aenter__(self) -> None:
            await heard.until("starting")

        async def __aexit__(self, *_: object) -> None: ...

    lifespan: Any = Lifespan
    async with running(app_with(lifespan=lifespan)):
        pass
    assert any(re.search(r"has been starting for 0\.\d+ s$", one) for one in heard.texts())


async def test_what_answers_every_question_with_an_error_is_entered_all_the_same(
    heard: Heard,
) -> None:
    """Asked for a frame, or for a generator."""

    class Awaitable:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __await__(self) -> Any:
            return self

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.inner)

        def send(self, value: Any) -> Any:
            return self.inner.send(value)

        def throw(self, *error: Any) -> Any:
            return self.inner.throw(*error)

        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    class Lifespan(AbstractAsyncContextManager[None]):
        def __init__(self, app: Any) -> None: ...

        async def __aenter__(self) -> None: ...

        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

        async def __aexit__(self, *_: object) -> None: ...

    async def get_proxy() -> None:
        await Awaitable(heard.until("get_proxy` .* it waits").__await__())  # here

    lifespan: Any = Lifespan
    async with running(app_with(get_proxy, lifespan=lifespan)):
        pass
    line = line_with(get_proxy, "# here")
    assert any(one.endswith(f"; it waits at {line}") for one in heard.texts())


async def test_a_refresh_and_an_override_are_watched_too(heard: Heard) -> None:
    starts = 0

    async def get_value() -> None:
        nonlocal starts
        starts += 1
        if starts > 1:
            await heard.until("starting")

    async def fake() -> None:
        await heard.until("fake` ")

    app = app_with(get_value)
    async with running(app) as client:
        await app.lifespan_container.refresh(get_value)
        assert "get_value" in heard.texts()[0]
        app.dependency_overrides[get_value] = fake
        await client.get("/0")
    assert any("fake" in one and "starting" in one for one in heard.texts())


async def test_hooks_and_lifespan_functions_are_watched_too(heard: Heard) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await heard.until("lifespan` .* it waits")  # lifespan start
        yield
        await heard.until("lifespan` .* stopping for .* it waits")  # lifespan stop

    def lifespan_with(value: Any) -> Iterator[None]:
        raise AssertionError

    def hook() -> None:
        heard.wait("hook` ")  # hook

    async def async_hook() -> None:
        await heard.until("async_hook` .* it waits")  # async hook

    app = app_with(lifespan=lifespan)
    app.router.add_event_handler("startup", hook)
    app.router.add_event_handler("shutdown", async_hook)
    async with running(app):
        pass
    said = "\n".join(heard.texts())
    for doing, verb, function, text in (
        ("starting", "runs", hook, "# hook"),
        ("stopping", "waits", async_hook, "# async hook"),
        ("starting", "waits", lifespan, "# lifespan start"),
        ("stopping", "waits", lifespan, "# lifespan stop"),
    ):
        line = line_with(function, text)
        assert re.search(
            rf"has been {doing} for 0\.\d+ s; it {verb} at {line}$", said, re.MULTILINE
        )


@pytest.mark.filterwarnings("ignore:generator function lifespans:DeprecationWarning")
async def test_a_synchronous_lifespan_function_with_values_is_watched_too(heard: Heard) -> None:
    def get_value() -> int:
        return 1

    def lifespan(
        app: Any, value: Annotated[int, Depends(get_value, scope="lifespan")]
    ) -> Iterator[None]:
        heard.wait("lifespan` ")  # start
        yield

    async with running(app_with(lifespan=lifespan)):
        pass
    line = line_with(lifespan, "# start")
    assert any(one.endswith(f" s; it runs at {line}") for one in heard.texts())


@pytest.mark.parametrize("starts", [True, False])
async def test_a_lifespan_function_that_fails_is_not_said_to_have_started(
    heard: Heard, starts: bool
) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if starts:
            yield
        await heard.until("lifespan` ")
        raise ZeroDivisionError
        yield

    def hook() -> None:
        heard.wait("hook` ")
        raise LookupError

    app = app_with(lifespan=lifespan)
    app.router.add_event_handler("shutdown", hook)
    with pytest.raises(Exception):  # noqa: B017  # one, or both
        async with running(app):
            pass
    done = "stopped after" if starts else "started after"
    assert not [one for one in heard.texts() if done in one]


async def test_a_log_that_fails_harms_nothing(heard: Heard) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    async def get_value() -> None:
        await heard.until("starting", 2)

    logger, handler = logging.getLogger("fastapi_lifespan_deps"), Failing()
    logger.addHandler(handler)
    try:
        async with running(app_with(get_value)):
            pass
    finally:
        logger.removeHandler(handler)


# What is not said


async def test_what_is_fast_leaves_no_thread_and_no_word(heard: Heard) -> None:
    seen: list[int] = []

    async def get_value() -> AsyncIterator[None]:
        seen.append(len(threads()))
        yield
        seen.append(len(threads()))

    async with running(app_with(get_value, slow_after=PATIENCE)):
        assert gone()
    assert gone()
    assert seen == [1, 1]
    assert heard.texts() == []


async def test_none_turns_it_off(heard: Heard) -> None:
    async def get_value() -> None:
        assert threads() == []

    async with running(app_with(get_value, slow_after=None)):
        pass
    assert heard.texts() == []


async def test_a_time_that_no_clock_will_see_is_waited_for(heard: Heard) -> None:
    async def get_value() -> None:
        threads()[0].join(0.05)  # with an error, if there is one
        assert threads()

    async with running(app_with(get_value, slow_after=1e10)):
        pass
    assert heard.texts() == []
    assert gone()


async def test_a_start_that_fails_is_not_said_to_have_started(heard: Heard) -> None:
    async def get_value() -> None:
        await heard.until("starting")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with running(app_with(get_value)):
            pass
    assert not [one for one in heard.texts() if "after" in one]


# Options


@pytest.mark.parametrize("value", [0, -1, math.nan, "10", True])
@pytest.mark.parametrize("make", [LifespanFastAPI, LifespanContainer])
def test_what_is_no_time_is_refused(value: Any, make: Callable[..., Any]) -> None:
    message = f"slow_after={value!r}: give seconds, more than 0, a timedelta, or None"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(slow_after=value)


async def test_every_way_to_an_application_or_a_container_takes_it(heard: Heard) -> None:
    async def get_value() -> None:
        await heard.until("starting", len(done) + 1)
        done.append(len(heard.texts()))

    done: list[int] = []
    slow = timedelta(seconds=SLOW)
    app = FastAPI()
    app.get("/", dependencies=[Depends(get_value, scope="lifespan")])(lambda: None)
    enable_lifespan_scope(app, slow_after=slow)
    enable_lifespan_scope(app, lifespan_start="concurrent")  # which leaves it as it is
    async with running(app):
        pass
    for container in (
        LifespanContainer(get_value, slow_after=slow),
        LifespanContainer.for_app(app, slow_after=slow),
    ):
        async with container:
            pass
    assert len(done) == 3


# Ctrl-C

HANGING = """
import sys

import anyio
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI


async def get_first():
    yield
    print("first left", flush=True)


async def get_pool(first: None = Depends(get_first, scope="lifespan")):
    await anyio.sleep_forever()
    yield


async def main():
    async with container:
        pass


container = LifespanContainer(get_pool, slow_after=0.1)
app = LifespanFastAPI(slow_after=0.1)
app.get("/", dependencies=[Depends(get_pool, scope="lifespan")])(lambda: None)

if __name__ == "__main__":
    if sys.argv[1] == "sync":
        with container.sync():
            pass
    elif sys.argv[1] == "TestClient":
        with TestClient(app):
            pass
    else:
        anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.unix
@pytest.mark.parametrize("way", ["asyncio", "trio", "sync", "TestClient"])
def test_ctrl_c_ends_a_start_that_hangs(way: str) -> None:
    """One is enough. What had started is left, and one line says what hung."""
    with ServerProcess(["-c", HANGING, way]) as process:
        process.read_until("(it waits at)")
        process.process.send_signal(signal.SIGINT)
        status = process.wait()
        assert status == -signal.SIGINT
        assert re.search(
            r"^`get_pool` \(<string>:\d+\) was still starting after \d+\.\d s, and is given up; "
            r"it waits at <string>:\d+\nfirst left\nTraceback",
            process.output,
            re.MULTILINE,
        )
        assert process.output.rstrip().endswith("KeyboardInterrupt")
        assert "The startup failed" not in process.output


def test_a_stop_under_the_test_client_is_watched_too(heard: Heard) -> None:
    async def get_value() -> AsyncIterator[None]:
        yield
        await heard.until("stopping")

    with TestClient(app_with(get_value)):
        pass
    assert "has been stopping for 0." in heard.texts()[0]
