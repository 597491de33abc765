"""`refresh_every`: a dependency that is refreshed again and again by itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest
import trio
from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI, LifespanTimeout
from tests.clients import PATIENCE, Gate, Thing, client_of, progressing, running, settle

pytestmark = pytest.mark.anyio

INTERVAL = 0.01


async def outlast(seconds: float) -> None:
    """Let time pass in which something could happen that must not."""
    with anyio.move_on_after(seconds):
        await anyio.sleep_forever()


class Versions:
    """A dependency that counts its starts, and may wait or fail in one of them."""

    def __init__(self, name: str = "value") -> None:
        self.name = name
        self.started = 0
        self.stopped: list[str] = []
        self.starting = self.most = 0  # at a time
        self.gates: dict[int, Gate] = {}
        self.errors: dict[int, Exception] = {}
        self._changed = anyio.Event()

    async def get(self) -> AsyncIterator[Thing]:
        version = self.started = self.started + 1
        self._changed.set()
        self._changed = anyio.Event()
        self.starting += 1
        self.most = max(self.most, self.starting)
        try:
            if version in self.gates:
                await self.gates[version].wait()
            await anyio.lowlevel.checkpoint()
            if version in self.errors:
                raise self.errors[version]
        finally:
            self.starting -= 1
        thing = Thing(f"{self.name} {version}")
        yield thing
        thing.closed = True
        self.stopped.append(thing.name)

    def gate(self, version: int) -> Gate:
        self.gates[version] = Gate()
        return self.gates[version]

    async def until(self, version: int) -> None:
        """Wait until that start has begun; the one before is over then."""
        with progressing() as go_on:
            while self.started < version:
                await self._changed.wait()
                go_on()

    async def go_on(self, times: int = 3) -> None:
        await self.until(self.started + times)


def app_of(*versions: Versions, every: float | timedelta = INTERVAL) -> LifespanFastAPI:
    """An application with a route for each, at its name."""
    app = LifespanFastAPI()
    for each in versions:
        route(app, each.name, each.get, refresh_every=every)
    return app


def route(app: FastAPI, name: str, provider: Callable[..., Any], **options: Any) -> None:
    @app.get(f"/{name}")
    async def read(value: Annotated[Thing, Depends(provider, scope="lifespan", **options)]) -> str:
        return str(value)


def problems(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [
        record
        for record in caplog.records
        if record.name == "fastapi_lifespan_deps" and record.levelno >= logging.WARNING
    ]


# --- By itself


@pytest.mark.parametrize("every", [INTERVAL, timedelta(seconds=INTERVAL)], ids=["s", "timedelta"])
@pytest.mark.parametrize("start", ["sequential", "concurrent"])
async def test_it_is_refreshed_with_what_depends_on_it_and_nothing_else(
    every: Any, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    value, other, users = Versions(), Versions("other"), 0

    async def get_user(value: Annotated[Thing, Depends(value.get, scope="lifespan")]) -> Thing:
        nonlocal users
        users += 1
        return Thing(f"user {users}", value)

    app = LifespanFastAPI(lifespan_start=start)
    route(app, "value", value.get, refresh_every=every)
    route(app, "other", other.get)
    route(app, "user", get_user)
    async with running(app) as client:
        assert (await client.get("/user")).json() == "user 1(value 1)"
        for _ in range(3):
            await value.go_on()
            name, _, version = (await client.get("/value")).json().partition(" ")
            assert name == "value"
            assert int(version) >= value.started - 1
            version = (await client.get("/user")).json().removeprefix("user ").partition("(")[0]
            assert int(version) >= value.started - 1
        assert value.stopped == [f"value {number + 1}" for number in range(len(value.stopped))]
        assert len(value.stopped) >= value.started - 2
    assert other.started == 1
    assert value.stopped[-1] in (f"value {value.started}", f"value {value.started - 1}")
    assert problems(caplog) == []


@pytest.mark.parametrize("kind", ["function", "generator"])
async def test_a_synchronous_one_is_refreshed_too(kind: str) -> None:
    numbers: list[int] = []
    enough = anyio.Event()

    def get_number() -> int:
        numbers.append(len(numbers))
        if len(numbers) == 4:
            anyio.from_thread.run_sync(enough.set)
        return numbers[-1]

    def generate_number() -> Iterator[int]:
        yield get_number()

    app = LifespanFastAPI()
    route(app, "", {"function": get_number, "generator": generate_number}[kind], refresh_every=0.01)
    with anyio.fail_after(PATIENCE):
        async with running(app) as client:
            await enough.wait()
            assert int((await client.get("/")).json()) >= 2


async def test_each_place_that_has_its_own_is_refreshed() -> None:
    value = Versions()
    app = LifespanFastAPI()
    for name in ("one", "two"):
        route(app, name, value.get, refresh_every=INTERVAL, use_cache=False)
    async with running(app) as client:
        assert value.started == 2
        await value.until(7)
        versions = [(await client.get(path)).json() for path in ("/one", "/two")]
    assert versions[0] != versions[1]
    assert min(int(version.removeprefix("value ")) for version in versions) >= 3


async def test_it_begins_when_the_application_serves() -> None:
    value = Versions()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await outlast(5 * INTERVAL)
        assert value.started == 1
        yield
        count = value.started
        await outlast(5 * INTERVAL)
        assert value.started == count

    app = LifespanFastAPI(lifespan=lifespan)
    route(app, "value", value.get, refresh_every=INTERVAL)
    async with running(app):
        await value.go_on()


async def test_a_shutdown_that_takes_longer_than_an_interval_is_no_failure_of_a_refresh(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Versions()
    app = app_of(value)
    app.router.add_event_handler("shutdown", cast(Any, partial(outlast, 10 * INTERVAL)))
    async with running(app):
        await value.go_on()
    assert problems(caplog) == []


async def test_a_request_keeps_what_it_has_while_others_come_and_go() -> None:
    value, gate = Versions(), Gate()
    answers: list[str] = []
    held: list[int] = []
    app = app_of(value)

    @app.get("/held")
    async def read(value: Annotated[Thing, Depends(value.get, scope="lifespan")]) -> str:
        before = str(value)
        await gate.wait()
        return f"{before} = {value}"

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/held")).json())

    async with running(app) as client, anyio.create_task_group() as tasks:
        await value.go_on(1)
        tasks.start_soon(ask, client)
        await gate.hold()
        await value.go_on(5)
        all_old = range(1, value.started - 1)
        held += [number for number in all_old if f"value {number}" not in value.stopped]
        assert len(held) == 1
        gate.open()
    assert answers == [f"value {held[0]} = value {held[0]}"]


# --- One at a time


async def test_it_never_overlaps_itself() -> None:
    value = Versions()
    gate = value.gate(2)
    app = app_of(value)
    async with running(app) as client:
        with anyio.fail_after(PATIENCE):
            await gate.hold()
        await outlast(5 * INTERVAL)
        assert value.started == 2
        assert (await client.get("/value")).json() == "value 1"
        gate.open()
        await value.go_on()
        assert value.most == 1
        assert value.stopped[:2] == ["value 1", "value 2"]


async def test_those_of_several_dependencies_do_not_disturb_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Versions("base")
    count = 0

    async def get_user(
        base: Annotated[Thing, Depends(base.get, scope="lifespan", refresh_every=INTERVAL)],
    ) -> AsyncIterator[Thing]:
        nonlocal count
        count += 1
        before = str(base)
        yield Thing("user", base)
        assert str(base) == before  # which fails if it is closed

    others = [Versions("one"), Versions("two")]
    app = app_of(*others)
    route(app, "user", get_user, refresh_every=INTERVAL)
    async with running(app) as client:
        for each in (base, *others):
            await each.go_on()
        while count < 20:
            await base.go_on(1)
        assert (await client.get("/user")).json().startswith("user(base ")
    assert count > base.started  # its own refreshes, and those of what it takes
    assert problems(caplog) == []


@pytest.mark.parametrize("first", ["the timer", "the caller"])
async def test_a_manual_refresh_joins_it(first: str) -> None:
    value = Versions()
    gate, after = value.gate(2), value.gate(3)
    app = app_of(value, every=INTERVAL if first == "the timer" else 10 * INTERVAL)
    seen: list[Any] = []

    async def refresh() -> None:
        draining = await app.lifespan_container.refresh(value.get)
        seen.append((value.started, str(app.lifespan_container[value.get]), draining))

    async with running(app), anyio.create_task_group() as tasks:
        if first == "the caller":
            tasks.start_soon(refresh)
        with anyio.fail_after(PATIENCE):
            await gate.hold()
        await outlast(20 * INTERVAL if first == "the caller" else 0)
        tasks.start_soon(refresh)
        await settle()
        assert seen == []
        gate.open()
        with anyio.fail_after(PATIENCE):
            await after.hold()
        assert [one[:2] for one in seen] == [(2, "value 2")] * len(seen)
        assert len(seen) == (1 if first == "the timer" else 2)
        assert len({id(one[2]) for one in seen}) == 1
        assert value.stopped == ["value 1"]


# --- Failures


async def test_a_failure_is_logged_and_the_old_value_serves_until_the_next_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Versions()
    error = value.errors[2] = OSError("no such file")
    gate = value.gate(3)
    app = app_of(value)
    async with running(app) as client:
        with anyio.fail_after(PATIENCE):
            await gate.hold()
        assert (await client.get("/value")).json() == "value 1"
        assert value.stopped == []
        (record,) = problems(caplog)
        assert record.levelno == logging.ERROR
        assert "`Versions.get`" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        gate.open()
        await value.until(4)
        assert (await client.get("/value")).json() == "value 3"
    assert value.stopped[0] == "value 1"
    assert len(problems(caplog)) == 1


async def test_every_failure_is_logged_and_none_is_raised_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Versions()
    value.errors = {version: OSError(str(version)) for version in range(2, 6)}
    async with running(app_of(value)) as client:
        await value.until(7)
        assert (await client.get("/value")).json() == "value 6"
    logged = [record.exc_info and str(record.exc_info[1]) for record in problems(caplog)]
    assert logged == ["2", "3", "4", "5"]


async def test_a_refresh_that_is_cut_off_by_its_time_limit_is_a_failure_like_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Versions()
    value.gate(2)  # which nobody opens
    app = LifespanFastAPI()
    route(app, "value", value.get, refresh_every=INTERVAL, start_timeout=30 * INTERVAL)
    async with running(app) as client:
        await value.until(4)
        assert (await client.get("/value")).json() == "value 3"
    (record,) = problems(caplog)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LifespanTimeout)


async def test_a_dependent_that_fails_is_a_failure_of_the_refresh(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Versions("base")
    fails = False

    async def get_user(
        base: Annotated[Thing, Depends(base.get, scope="lifespan", refresh_every=INTERVAL)],
    ) -> Thing:
        if fails:
            raise OSError("no user")
        return Thing("user", base)

    app = LifespanFastAPI()
    route(app, "user", get_user)
    async with running(app) as client:
        fails = True
        await base.go_on()
        answer = (await client.get("/user")).json()
        assert len(problems(caplog)) >= 2
        assert all("`Versions.get`" in record.getMessage() for record in problems(caplog))
        fails = False
        await base.go_on()
        assert (await client.get("/user")).json() != answer


async def test_it_brings_back_what_has_died(caplog: pytest.LogCaptureFixture) -> None:
    died, back = anyio.Event(), anyio.Event()
    scopes: list[anyio.CancelScope] = []

    async def get_value() -> AsyncIterator[Thing]:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            if len(scopes) == 2:
                await died.wait()
            if len(scopes) == 3:
                back.set()
            yield Thing(f"value {len(scopes)}")

    app = LifespanFastAPI()
    route(app, "value", get_value, refresh_every=INTERVAL)
    async with running(app, raises=False) as client:
        scopes[0].cancel()
        await settle()
        assert (await client.get("/value")).status_code == 500
        died.set()
        with anyio.fail_after(PATIENCE):
            await back.wait()
        assert (await client.get("/value")).json() in ("value 2", "value 3")


# --- Overrides


@pytest.mark.parametrize("when", ["before the start", "while serving"])
async def test_an_override_is_refreshed_in_the_place_of_the_original(when: str) -> None:
    value, fake = Versions(), Versions("fake")
    app = app_of(value)
    if when == "before the start":
        app.dependency_overrides[value.get] = fake.get
    async with running(app) as client:
        if when == "while serving":
            await value.go_on()
            app.dependency_overrides[value.get] = fake.get
            await client.get("/value")  # it comes into force with a request
        count = value.started
        await fake.go_on(5)
        assert (await client.get("/value")).json().startswith("fake ")
        if when == "before the start":
            assert value.started == 0
        else:  # a refresh that was under way may have started one more
            assert value.started <= count + 1
        app.dependency_overrides.clear()
        assert (await client.get("/value")).json().startswith("value ")
        await settle()
        count = fake.started
        await value.go_on(5)
        assert fake.started == count
        assert len(fake.stopped) == count
    assert len(value.stopped) >= value.started - 1


async def test_what_appears_through_an_override_is_refreshed_until_it_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, late = Versions("clock"), Versions("late")

    async def get_user() -> Thing:
        return Thing("user")

    async def fake(
        late: Annotated[Thing, Depends(late.get, scope="lifespan", refresh_every=INTERVAL)],
    ) -> Thing:
        return Thing("fake", late)

    app = app_of(clock)
    route(app, "user", get_user)
    async with running(app) as client:
        for _ in range(2):
            await clock.go_on()
            app.dependency_overrides[get_user] = fake
            assert (await client.get("/user")).json().startswith("fake(late ")
            await late.go_on()
            app.dependency_overrides.clear()
            assert (await client.get("/user")).json() == "user"
            await settle()
            count = late.started
            await clock.go_on(10)  # far more than an interval
            assert late.started == count
            assert len(late.stopped) == count
    assert problems(caplog) == []


async def test_what_an_override_hides_is_refreshed_again_when_that_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, hidden = Versions("clock"), Versions("hidden")

    async def get_user(
        hidden: Annotated[Thing, Depends(hidden.get, scope="lifespan", refresh_every=INTERVAL)],
    ) -> Thing:
        return Thing("user", hidden)

    async def fake() -> Thing:
        return Thing("fake")

    app = app_of(clock)
    route(app, "user", get_user)
    async with running(app) as client:
        await hidden.go_on()
        app.dependency_overrides[get_user] = fake
        assert (await client.get("/user")).json() == "fake"
        await clock.go_on(10)
        app.dependency_overrides.clear()
        assert (await client.get("/user")).json().startswith("user(hidden ")
        await hidden.go_on()
        assert (await client.get("/user")).json().startswith("user(hidden ")
    assert problems(caplog) == []


async def test_a_refresh_that_is_due_when_an_override_hides_the_value_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow, hidden = Versions("slow"), Versions("hidden")
    gate = slow.gate(2)

    async def get_user(
        hidden: Annotated[Thing, Depends(hidden.get, scope="lifespan", refresh_every=INTERVAL)],
    ) -> Thing:
        return Thing("user", hidden)

    async def fake() -> Thing:
        return Thing("fake")

    app = LifespanFastAPI()
    route(app, "slow", slow.get)
    route(app, "user", get_user)
    async with running(app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(app.lifespan_container.refresh, slow.get)
        with anyio.fail_after(PATIENCE):
            await gate.hold()
        await outlast(5 * INTERVAL)  # it waits for the other refresh
        app.dependency_overrides[get_user] = fake
        gate.open()
        assert (await client.get("/user")).json() == "fake"
        await settle()
    assert problems(caplog) == []


# --- The end


def living_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("moment", ["waiting", "refreshing", "started the dependency"])
async def test_it_ends_with_the_application(moment: str, caplog: pytest.LogCaptureFixture) -> None:
    value, other = Versions(), Versions("other")
    before = living_tasks()
    gate = value.gate(3)

    async def get_user(value: Annotated[Thing, Depends(value.get, scope="lifespan")]) -> Thing:
        if moment == "started the dependency" and value.name == "value 2":
            reached.set()
            await anyio.sleep_forever()
        return Thing("user", value)

    reached = anyio.Event()
    app = app_of(value, other, every=3600 if moment == "waiting" else INTERVAL)
    route(app, "user", get_user)
    with anyio.fail_after(PATIENCE):
        async with running(app) as client:
            assert (await client.get("/value")).json() == "value 1"
            if moment == "refreshing":
                await gate.hold()
            elif moment == "started the dependency":
                await reached.wait()
        await settle()
    expected = {"waiting": 1, "refreshing": 2, "started the dependency": 2}[moment]
    assert sorted(value.stopped) == [f"value {number + 1}" for number in range(expected)]
    assert living_tasks() == before
    assert problems(caplog) == []
    assert value.starting == 0


async def test_the_next_run_of_the_application_refreshes_again() -> None:
    value = Versions()
    app = app_of(value)
    for _ in range(2):
        async with running(app) as client:
            await value.go_on()
            assert (await client.get("/value")).status_code == 200
        assert len(value.stopped) >= value.started - 1
        value.stopped.clear()
        value.started = 0


async def test_runs_that_are_alive_at_once_refresh_each_for_itself() -> None:
    value = Versions()
    app = app_of(value)
    async with app.router.lifespan_context(app):
        first = app.lifespan_container
        async with app.router.lifespan_context(app):
            second = app.lifespan_container
            names = {str(first[value.get]), str(second[value.get])}
            assert names == {"value 1", "value 2"}
            with anyio.fail_after(PATIENCE):
                while names & {str(first[value.get]), str(second[value.get])}:
                    await value.go_on(1)
            assert str(first[value.get]) != str(second[value.get])
        await value.go_on()
    async with client_of(app, raises=False) as client:
        assert (await client.get("/value")).status_code == 500


async def test_an_override_that_is_not_valid_is_a_failure_like_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Versions()
    app = app_of(value)
    async with running(app, raises=False) as client:
        app.dependency_overrides[value.get] = "no callable"  # type: ignore[assignment]
        assert (await client.get("/value")).status_code == 500
        with anyio.fail_after(20):
            while "was not refreshed" not in caplog.text:
                await anyio.lowlevel.checkpoint()
        app.dependency_overrides.clear()
        assert (await client.get("/value")).json().startswith("value ")
