"""Health checks: what they find, how many are made, and what a bad one cannot do to others."""

import asyncio
import functools
import gc
import logging
import math
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Annotated, Any, cast

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup
from fastapi import FastAPI

from fastapi_lifespan_deps import (
    Depends,
    HealthReport,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    RefreshError,
    UninitializedLifespanDependency,
    current_container,
    get_container,
)
from tests.clients import PATIENCE, Gate, Thing, running, settle
from tests.processes import ServerProcess
from tests.test_events import Listener

pytestmark = pytest.mark.anyio

SHORT = 0.05  # seconds that a hanging check is given
ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def lifespan(provider: Callable[..., Any], **options: Any) -> Any:
    return Depends(provider, scope="lifespan", **options)


def app_with(*declared: Any, **options: Any) -> LifespanFastAPI:
    app = LifespanFastAPI(**options)
    app.get("/", dependencies=declared)(lambda: "fine")
    return app


async def get_thing() -> AsyncIterator[Thing]:
    thing = Thing("thing")
    yield thing
    thing.closed = True


async def get_other() -> str:
    return "other"


async def passes(value: Any) -> None: ...


def outcome(report: HealthReport) -> dict[str, str]:
    return {one.name.split(".")[-1]: one.status for one in report.dependencies}


async def check(app: LifespanFastAPI, timeout: float = PATIENCE) -> HealthReport:
    """The report, which must come; a hanging check is given less time."""
    with anyio.fail_after(PATIENCE):
        return await app.lifespan_container.check_health(timeout=timeout)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[TaskGroup]:
    """Run an application, not for ever, with a task group around the test."""
    with anyio.fail_after(PATIENCE):
        async with running(app), anyio.create_task_group() as tasks:
            yield tasks


# --- What is found


class OddError(BaseException):
    pass


class Probe:
    def plain(self, value: Any) -> None: ...

    async def asynchronous(self, value: Any) -> None: ...

    def __call__(self, value: Any) -> None: ...


def answers(value: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    async def asynchronous(_: Any) -> Any:
        return value

    return asynchronous, lambda _: value


def raises(error: BaseException) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    async def asynchronous(_: Any) -> Any:
        raise error

    def plain(_: Any) -> Any:
        raise error

    return asynchronous, plain


async def not_awaited(value: Any) -> Any:
    return passes(value)


async def fails_when_awaited(value: Any) -> Any:
    return raises(OSError())[0](value)


class bool_:  # as NumPy's is: no subclass of bool
    def __bool__(self) -> bool:
        return False


PASSING = [
    *answers(None),
    *answers(True),
    *answers(0),
    *answers(""),
    passes,
    lambda value: passes(value),
    not_awaited,
    functools.partial(passes),
    Probe(),
    Probe().plain,
    Probe().asynchronous,
    Thing.__str__,
    print,
]
FAILING = [
    *answers(False),
    *answers(bool_()),
    lambda value: answers(False)[0](value),
    *raises(OSError("no network")),
    *raises(OddError()),
    *raises(KeyboardInterrupt()),
    *raises(SystemExit()),
    *raises(GeneratorExit()),
    *raises(StopIteration()),
    *raises(StopAsyncIteration()),
    *raises(ExceptionGroup("several", [OSError()])),
    *raises(asyncio.CancelledError()),
    fails_when_awaited,
]


@pytest.mark.parametrize("health", PASSING)
async def test_a_check_passes_whatever_it_returns_but_false(health: Any) -> None:
    async with served(app := app_with(lifespan(get_thing, health=health))):
        report = await check(app)
        assert report.status == "pass"
        [found] = report.dependencies
        assert (found.provider, found.name, found.status) == (get_thing, "get_thing", "pass")
        assert found.where.startswith(f"tests{os.sep}test_health.py:")
        assert found.seconds is not None
        assert found.error is None


@pytest.mark.parametrize("health", FAILING)
async def test_a_check_fails_if_it_raises_anything_or_returns_false(health: Any) -> None:
    async with served(app := app_with(lifespan(get_thing, health=health), lifespan(get_other))):
        report = await check(app)
        assert report.status == "fail"
        assert outcome(report) == {"get_thing": "fail", "get_other": "pass"}
        assert report.dependencies[0].error is not None
        assert "error" not in repr(report)  # for it may tell secrets
        assert report.dependencies[1].seconds is None


async def test_an_error_is_what_the_check_has_raised_or_says_what_it_has_returned() -> None:
    error = OSError("no network")

    async def is_in_order(value: Any) -> bool:
        return False

    broken = lifespan(get_thing, health=raises(error)[0])
    async with served(app := app_with(broken, lifespan(get_other, health=is_in_order))):
        first, second = (await check(app)).dependencies
        assert first.error is error
        assert f"is_in_order` (tests{os.sep}test_health.py:" in str(second.error)
        assert str(second.error).endswith("has returned False")


async def test_a_report_is_frozen() -> None:
    async with served(app := app_with(lifespan(get_thing))):
        report = await check(app)
    with pytest.raises(FrozenInstanceError):
        report.status = "fail"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        report.dependencies[0].status = "fail"  # type: ignore[misc]


async def test_the_check_gets_the_value_and_is_found_wherever_it_is_declared() -> None:
    seen: list[Any] = []

    async def get_user(thing: Annotated[Thing, lifespan(get_thing, health=seen.append)]) -> str:
        return "user"

    app = app_with(lifespan(get_thing), lifespan(get_user))
    async with served(app):
        await check(app)
        assert seen == [app.lifespan_container[get_thing]]


async def test_without_lifespan_dependencies_all_is_well() -> None:
    async with served(app := app_with()):
        assert await check(app) == HealthReport(status="pass", dependencies=())


async def test_each_of_several_instances_of_a_provider_is_checked() -> None:
    seen: list[Any] = []

    async def look(value: Any) -> bool:
        seen.append(value)
        return len(seen) != 2

    own = lifespan(get_thing, use_cache=False, health=look)
    async with served(app := app_with(own, own, own)):
        report = await check(app)
        assert sorted(one.status for one in report.dependencies) == ["fail", "pass", "pass"]
        assert len({id(one) for one in seen}) == 3


async def test_what_has_died_fails_without_a_check_of_it() -> None:
    gate, seen = Gate(), list[Any]()

    async def get_feed() -> AsyncIterator[str]:
        async def follow() -> None:
            await gate.wait()
            raise OSError("cut")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            yield "feed"

    async def get_reader(feed: Annotated[str, lifespan(get_feed, health=seen.append)]) -> str:
        return "reader"

    listener = Listener()
    with pytest.raises(ExceptionGroup):
        async with served(app := app_with(lifespan(get_reader), on_lifespan_event=listener)):
            assert (await check(app)).status == "pass"
            gate.open()
            await listener.until("died")
            report = await check(app)
            assert outcome(report) == {"get_feed": "fail", "get_reader": "fail"}
            for one in report.dependencies:
                assert isinstance(one.error, UninitializedLifespanDependency)
                assert "`get_feed`" in str(one.error).replace("locals>.get_", "`get_")
                assert "it ended by itself" in str(one.error)
            assert seen == ["feed"]
            assert listener.of("unhealthy") == []  # it was told otherwise


async def test_what_is_being_replaced_by_a_resource_preserving_refresh_fails() -> None:
    gate = Gate()

    async def get_model() -> str:
        if gate.reached.is_set() or starts:
            await gate.wait()
        starts.append("model")
        return "model"

    starts: list[str] = []
    async with served(app := app_with(lifespan(get_model, health=passes))) as tasks:
        refresh = functools.partial(app.lifespan_container.refresh, policy="resource_preserving")
        tasks.start_soon(refresh, get_model)
        await gate.hold()
        report = await check(app)
        assert outcome(report) == {"get_model": "fail"}
        assert "it is being refreshed" in str(report.dependencies[0].error)
        gate.open()
        await settle()
        assert (await check(app)).status == "pass"


async def test_a_fake_is_checked_by_its_own_check_alone() -> None:
    checked: list[Any] = []

    async def fake() -> str:
        return "fake"

    async def checked_fake(
        other: Annotated[str, lifespan(get_other)], own: Annotated[str, lifespan(fake)]
    ) -> str:
        return "checked fake"

    app = app_with(lifespan(get_thing, health=checked.append))
    async with served(app):
        app.dependency_overrides[get_thing] = fake  # no request has come since
        report = await check(app)
        assert [(one.provider, one.status) for one in report.dependencies] == [(fake, "pass")]
        assert checked == []
        app.dependency_overrides[get_thing] = checked_fake
        report = await check(app)
        assert [one.provider for one in report.dependencies] == [get_other, fake, checked_fake]
        app.dependency_overrides = {}
        await check(app)
        assert len(checked) == 1


async def test_an_override_that_is_no_good_fails() -> None:
    async def broken() -> None:
        raise OSError("no database")

    async def circular(thing: Annotated[Thing, lifespan(get_thing)]) -> None: ...

    async with served(app := app_with(lifespan(get_thing, health=passes), lifespan(get_other))):
        app.dependency_overrides[get_thing] = broken
        report = await check(app)
        assert {one.provider: one.status for one in report.dependencies} == {
            broken: "fail",
            get_other: "pass",
        }
        app.dependency_overrides[get_thing] = circular
        report = await check(app)
        assert {one.provider: one.status for one in report.dependencies} == {
            get_thing: "fail",
            get_other: "pass",
        }
        assert "override that is in force is not valid" in str(report.dependencies[-1].error)


async def test_an_override_that_takes_long_to_start_is_not_waited_for_longer() -> None:
    gate = Gate()

    async def slow() -> str:
        await gate.wait()
        return "slow"

    async with served(app := app_with(lifespan(get_thing, health=passes))):
        app.dependency_overrides[get_thing] = slow
        assert [one.provider for one in (await check(app, SHORT)).dependencies] == [get_thing]
        gate.open()
        assert [one.provider for one in (await check(app)).dependencies] == [slow]


async def test_a_lifespan_function_may_ask_before_and_after_it_serves() -> None:
    found: list[HealthReport] = []

    @asynccontextmanager
    async def run(app: LifespanFastAPI) -> AsyncIterator[None]:
        found.append(await check(app))
        yield
        found.append(await check(app))

    async with served(app_with(lifespan(get_thing, health=passes), lifespan=run)):
        pass
    assert [report.status for report in found] == ["pass", "fail"]
    assert "it has been stopped" in str(found[1].dependencies[0].error)


# --- How many are made


class Counting:
    """A check that waits at a gate each time, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = Gate()

    async def __call__(self, value: Thing) -> None:
        self.count += 1
        await self.gate.wait()
        str(value)  # it isn't closed


async def test_who_comes_while_a_check_is_under_way_joins_it() -> None:
    health, reports = Counting(), list[HealthReport]()
    async with served(app := app_with(lifespan(get_thing, health=health))) as tasks:

        async def ask() -> None:
            reports.append(await check(app))

        for _ in range(10):
            tasks.start_soon(ask)
        await health.gate.hold()
        await settle()
        assert (await check(app, SHORT)).status == "fail"  # waits less
        assert health.count == 1
        health.gate.open()
        await settle()
        assert [report.status for report in reports] == ["pass"] * 10
        assert health.count == 1
        await check(app)
        assert health.count == 2


async def test_checks_are_made_at_once() -> None:
    barrier = threading.Barrier(3)
    together, reached = anyio.Event(), list[Any]()

    async def meet(value: Any) -> None:
        reached.append(value)
        if len(reached) == 3:
            together.set()
        await together.wait()

    def meet_in_threads(value: Any) -> None:
        barrier.wait(PATIENCE)

    own = functools.partial(lifespan, get_thing, use_cache=False)
    other = functools.partial(lifespan, get_other, use_cache=False)
    declared = [own(health=meet), other(health=meet_in_threads)] * 3
    async with served(app := app_with(*declared)):
        assert (await check(app)).status == "pass"


async def test_a_caller_that_goes_does_not_take_the_check_with_it() -> None:
    health, scope = Counting(), anyio.CancelScope()
    async with served(app := app_with(lifespan(get_thing, health=health))) as tasks:

        async def ask_and_go() -> None:
            with scope:
                await check(app)

        reports: list[HealthReport] = []

        async def ask() -> None:
            reports.append(await check(app))

        tasks.start_soon(ask_and_go)
        await health.gate.hold()
        tasks.start_soon(ask)
        await settle()
        scope.cancel()
        await settle()
        health.gate.open()
        await settle()
        assert [report.status for report in reports] == ["pass"]
        assert health.count == 1


# --- Those that hang


async def hangs(value: Any) -> None:
    await anyio.sleep_forever()


async def test_a_check_that_hangs_is_cancelled_and_lets_its_value_go() -> None:
    async with served(app := app_with(lifespan(get_thing, health=hangs), lifespan(get_other))):
        for _ in range(2):
            report = await check(app, SHORT)
            assert outcome(report) == {"get_thing": "fail", "get_other": "pass"}
            assert isinstance(report.dependencies[0].error, TimeoutError)
            assert str(report.dependencies[0].error).endswith("within 0.05 seconds")
        draining = await app.lifespan_container.refresh(get_thing)
        await draining.wait()


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_check_that_hangs_lets_its_value_go_though_nobody_waits_for_it(
    leaves: bool,
) -> None:
    health = Counting()
    async with served(app := app_with(lifespan(get_thing, health=health))) as tasks:
        scope = anyio.CancelScope()

        async def ask() -> None:
            with scope:
                await check(app, SHORT if leaves else PATIENCE)

        tasks.start_soon(ask)
        await health.gate.hold()
        if leaves:
            scope.cancel()
        draining = await app.lifespan_container.refresh(get_thing)
        if not leaves:
            assert draining._left
            health.gate.open()
        await draining.wait()


async def test_a_value_is_not_stopped_under_its_check() -> None:
    health, reports = Counting(), list[HealthReport]()
    async with served(app := app_with(lifespan(get_thing, health=health))) as tasks:

        async def ask() -> None:
            reports.append(await check(app))

        thing = app.lifespan_container[get_thing]
        tasks.start_soon(ask)
        await health.gate.hold()
        draining = await app.lifespan_container.refresh(get_thing)
        await settle()
        assert not thing.closed
        health.gate.open()
        await draining.wait()
        assert thing.closed
        await settle()
        assert [report.status for report in reports] == ["pass"]


async def test_a_check_that_takes_no_notice_of_its_cancellation_is_not_made_again() -> None:
    gate, count = Gate(), 0

    async def stubborn(value: Any) -> None:
        nonlocal count
        count += 1
        with anyio.CancelScope(shield=True):
            await gate.wait()

    async with served(app := app_with(lifespan(get_thing, health=stubborn))):
        for _ in range(3):
            assert (await check(app, SHORT)).status == "fail"
        assert count == 1
        draining = await app.lifespan_container.refresh(get_thing)  # which it does not delay
        await draining.wait()
        gate.open()
        await settle()
        assert (await check(app)).status == "pass"
        assert count == 2


@pytest.mark.parametrize("ends", [True, False])
async def test_a_check_that_hangs_in_a_thread_delays_nobody(ends: bool) -> None:
    opened, count = threading.Event(), 0

    def blocks(value: Any) -> None:
        nonlocal count
        count += 1
        opened.wait(PATIENCE)

    try:
        async with served(app := app_with(lifespan(get_thing, health=blocks))):
            for _ in range(3):
                report = await check(app, SHORT)
                assert isinstance(report.dependencies[0].error, TimeoutError)
            assert count == 1
            if ends:
                opened.set()
                while (await check(app)).status == "fail":
                    await anyio.lowlevel.checkpoint()
                assert count == 2
            draining = await app.lifespan_container.refresh(get_thing)
            await draining.wait()
        assert opened.is_set() is ends  # it went on
    finally:
        opened.set()


def test_a_check_that_hangs_in_a_thread_keeps_no_process_alive() -> None:
    program = """
import asyncio, threading
from fastapi_lifespan_deps import Depends, LifespanContainer
def hang(value): threading.Event().wait()
container = LifespanContainer(Depends(lambda: 1, scope="lifespan", health=hang))
async def main():
    async with container:
        print((await container.check_health(timeout=0.01)).status)
asyncio.run(main())
print("left", flush=True)
"""
    with ServerProcess(["-W", "error", "-c", program]) as process:
        assert process.read_until("(fail)") == "fail"
        assert process.wait() == 0
        assert process.output.endswith("left\n")


@pytest.mark.parametrize("timeout", [SHORT, math.inf])
async def test_a_check_that_hangs_does_not_delay_the_shutdown(timeout: float) -> None:
    gate, reports, listener = Gate(), list[HealthReport](), Listener()

    async def stubborn(value: Any) -> None:
        with anyio.CancelScope(shield=True):
            await gate.wait()

    own = functools.partial(lifespan, use_cache=False)
    app = app_with(
        own(get_thing, health=stubborn), own(get_other, health=hangs), on_lifespan_event=listener
    )
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                reports.append(await app.lifespan_container.check_health(timeout=timeout))

            async with running(app):
                tasks.start_soon(ask)
                await gate.hold()
            assert listener.told[-1] == "down"
    gate.open()
    assert [one.status for one in reports[0].dependencies] == ["fail", "fail"]
    assert not any("healthy" in told for told in listener.told)


@ON_ASYNCIO
async def test_a_check_that_others_cancel_before_it_begins_may_be_made_again() -> None:
    async with served(app := app_with(lifespan(get_thing, health=passes))) as tasks:
        reports: list[HealthReport] = []

        async def ask() -> None:
            reports.append(await check(app))

        def cancel() -> None:
            for task in asyncio.all_tasks():
                if task.get_name().startswith("health of"):
                    task.cancel()

        tasks.start_soon(ask)
        while not any(task.get_name().startswith("health of") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(cancel)
        await settle()
        assert (await check(app)).status == "pass"


# --- What a check may do


async def test_a_check_may_not_ask_for_the_health_of_all() -> None:
    async def ask(value: Any) -> None:
        await check(app)

    async with served(app := app_with(lifespan(get_thing, health=ask))):
        report = await check(app)
        assert isinstance(report.dependencies[0].error, LifespanDependencyError)
        assert "would wait for itself" in str(report.dependencies[0].error)


async def test_a_check_may_ask_for_a_refresh_but_not_wait_for_its_own_end() -> None:
    policies = ["availability_preserving", "resource_preserving"]

    async def refresh(value: Any) -> None:
        await current_container().refresh(get_thing, policy=cast(Any, policies.pop()))

    async with served(app := app_with(lifespan(get_thing, health=refresh))):
        before = app.lifespan_container[get_thing]
        report = await check(app)
        assert isinstance(report.dependencies[0].error, RefreshError)
        assert app.lifespan_container[get_thing] is before
        report = await check(app)
        assert report.status == "pass", report.dependencies[0].error
        assert app.lifespan_container[get_thing] is not before


async def test_a_check_knows_its_container_also_in_its_thread() -> None:
    seen: list[Any] = []

    def look(value: Any) -> None:
        seen.append((value, current_container()[get_thing]))

    async with served(app := app_with(lifespan(get_thing, health=look))):
        await check(app)
    [(value, found)] = seen
    assert value is found


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("is_async", [True, False])
async def test_an_error_and_a_check_keep_no_old_value_alive(
    caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    """Nor each other: a model is large."""
    caplog.set_level(logging.CRITICAL, "fastapi_lifespan_deps")  # which would keep the error

    class Model:
        pass

    async def get_model() -> Model:
        return Model()

    def fails(value: Any) -> None:
        raise OSError

    async def fails_too(value: Any) -> None:
        raise OSError

    health = fails_too if is_async else fails
    async with served(app := app_with(lifespan(get_model, health=health))):
        model = weakref.ref(app.lifespan_container[get_model])
        assert (await check(app)).status == "fail"
        draining = await app.lifespan_container.refresh(get_model)
        await draining.wait()
        await settle()
        del draining
        with anyio.fail_after(PATIENCE):  # a thread may be about to end
            while model() is not None:
                await anyio.lowlevel.checkpoint()


# --- Events


async def test_a_change_of_health_is_told_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trouble: list[Exception] = []

    async def fails_sometimes(value: Any) -> None:
        if trouble:
            raise trouble[0]

    listener = Listener()
    declared = lifespan(get_thing, health=fails_sometimes)
    async with served(app := app_with(declared, on_lifespan_event=listener)):
        caplog.set_level(logging.INFO, "fastapi_lifespan_deps")
        await check(app)
        listener.events.clear()
        for _ in range(2):
            trouble.append(OSError("no network"))
            for _ in range(3):
                await check(app)
            trouble.clear()
            for _ in range(3):
                await check(app)
        assert listener.told == ["unhealthy get_thing", "healthy get_thing"] * 2
        first, second, *_ = listener.events
        assert first.provider is get_thing
        assert isinstance(first.error, OSError)
        assert not first.is_raised
        assert second.error is None
        assert first.seconds is not None
        assert second.seconds is not None
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert told == 2 * [
            ("WARNING", "`get_thing` is unhealthy: its check fails"),
            ("INFO", "`get_thing` is healthy again"),
        ]
        assert caplog.records[0].exc_info is not None


async def test_a_fresh_instance_is_healthy_until_it_is_found_not_to_be() -> None:
    is_failing, listener = True, Listener()

    async def fails_sometimes(value: Any) -> bool:
        return not is_failing

    declared = lifespan(get_thing, health=fails_sometimes)
    async with served(app := app_with(declared, on_lifespan_event=listener)):
        await check(app)
        await app.lifespan_container.refresh(get_thing)
        assert len(listener.of("unhealthy")) == 1
        await check(app)
        assert len(listener.of("unhealthy")) == 2
        await app.lifespan_container.refresh(get_thing)
        is_failing = False
        await check(app)
        assert listener.of("healthy") == []


async def test_the_health_of_what_was_replaced_meanwhile_is_not_told() -> None:
    gate, listener = Gate(), Listener()

    async def fails_late(value: Any) -> bool:
        await gate.wait()
        return False

    declared = lifespan(get_thing, health=fails_late)
    async with served(app := app_with(declared, on_lifespan_event=listener)) as tasks:
        tasks.start_soon(check, app)
        await gate.hold()
        draining = await app.lifespan_container.refresh(get_thing)
        gate.open()
        await draining.wait()
        assert listener.of("unhealthy") == []


# --- Where it can be asked


async def test_a_request_asks_for_the_health_of_what_is_latest() -> None:
    app = app_with(lifespan(get_thing, health=passes))

    @app.get("/health")
    async def read_health(container: Annotated[Any, Depends(get_container)]) -> Any:
        return outcome(await container.check_health())

    async with running(app) as client:
        assert (await client.get("/health")).json() == {"get_thing": "pass"}


async def test_a_container_by_itself_can_be_asked() -> None:
    container = LifespanContainer(lifespan(get_thing, health=passes))
    with pytest.raises(LifespanNotRunning):
        await container.check_health()
    async with container:
        assert outcome(await container.check_health(timeout=timedelta(seconds=9))) == {
            "get_thing": "pass"
        }


def test_synchronous_code_can_ask() -> None:
    def get_pool() -> Iterator[str]:
        yield "pool"

    def fails(value: str) -> bool:
        return False

    container = LifespanContainer(lifespan(get_pool, health=fails), lifespan(get_other))
    with container.sync() as running:
        report = running.check_health()
        assert outcome(report) == {"get_pool": "fail", "get_other": "pass"}
        with pytest.raises(ValueError, match=r"^timeout=0: "):
            running.check_health(timeout=0)
    with pytest.raises(LifespanNotRunning):
        running.check_health()


async def test_another_event_loop_is_told_so() -> None:
    async def ask() -> None:
        await container.check_health()

    async with served(app := app_with(lifespan(get_thing, health=passes))):
        container = app.lifespan_container
        with pytest.raises(LifespanNotRunning, match="another event loop"):
            await anyio.to_thread.run_sync(anyio.run, ask)


@pytest.mark.parametrize(
    "timeout", [0, -1, math.nan, -math.inf, None, True, "1", timedelta(0), timedelta(seconds=-1)]
)
@ON_ASYNCIO
async def test_a_timeout_is_a_number_of_seconds_above_0(timeout: Any) -> None:
    async with served(app := app_with(lifespan(get_thing, health=passes))):
        with pytest.raises(ValueError) as refused:
            await app.lifespan_container.check_health(timeout=timeout)
        assert str(refused.value) == (
            f"timeout={timeout!r}: give seconds, more than 0, or a timedelta"
        )
