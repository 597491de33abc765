"""What happens is told to a listener: each event once, in order, and whatever the listener does."""

import functools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import FrozenInstanceError, fields
from typing import Annotated, Any, get_args

import anyio
import pytest
from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanEvent, LifespanFastAPI, enable_lifespan_scope
from fastapi_lifespan_deps.events import EventKind
from tests.clients import Gate, running, settle
from tests.refreshing import Service

pytestmark = pytest.mark.anyio


class Listener:
    """Keeps the events that it is given."""

    def __init__(self) -> None:
        self.events: list[LifespanEvent] = []
        self.threads: set[int] = set()

    def __call__(self, event: LifespanEvent) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    @property
    def told(self) -> list[str]:
        """Kinds and names, as `started get_pool`."""
        return [
            f"{event.kind} {event.name.split('.')[-1]}" if event.name else event.kind
            for event in self.events
        ]

    def of(self, *kinds: EventKind) -> list[LifespanEvent]:
        return [event for event in self.events if event.kind in kinds]

    async def until(self, kind: EventKind) -> LifespanEvent:
        with anyio.fail_after(20):
            while not self.of(kind):
                await anyio.lowlevel.checkpoint()
        return self.of(kind)[0]


async def get_pool() -> AsyncIterator[str]:
    yield "pool"


Pool = Annotated[str, Depends(get_pool, scope="lifespan")]


def get_session(pool: Pool) -> Iterator[str]:
    yield f"session of {pool}"


Session = Annotated[str, Depends(get_session, scope="lifespan")]


def app_with(listener: Any, *providers: Callable[..., Any], **options: Any) -> LifespanFastAPI:
    app = LifespanFastAPI(on_lifespan_event=listener, **options)
    for provider in providers:
        app.get("/", dependencies=[Depends(provider, scope="lifespan")])(lambda: None)
    return app


@pytest.mark.parametrize("start", ["sequential", "concurrent"])
async def test_a_run_is_told_from_up_to_down(start: Any) -> None:
    listener = Listener()
    before = time.time_ns()
    async with running(app_with(listener, get_session, lifespan_start=start)):
        assert listener.told == [
            "starting get_pool",
            "started get_pool",
            "starting get_session",
            "started get_session",
            "up",
        ]
    assert listener.told[5:] == [
        "stopping get_session",
        "stopped get_session",
        "stopping get_pool",
        "stopped get_pool",
        "down",
    ]
    assert listener.threads == {threading.get_ident()}
    times = [before, *(event.time_ns for event in listener.events), time.time_ns()]
    assert times == sorted(times)
    for event in listener.events:
        assert event.error is None
        is_end = event.kind in ("started", "stopped", "up", "down")
        assert (event.seconds is not None and event.seconds >= 0) is is_end
        if event.kind in ("up", "down"):
            assert (event.provider, event.name, event.where) == (None, None, None)
        else:
            assert event.provider in (get_pool, get_session)
            assert event.where is not None
            assert event.where.startswith(f"tests{os.sep}test_events.py:")


async def test_an_application_without_lifespan_dependencies_comes_up_and_goes_down_too() -> None:
    listener = Listener()
    async with running(app_with(listener)):
        assert listener.told == ["up"]
    assert listener.told == ["up", "down"]


def test_an_event_is_frozen_holds_no_value_and_is_made_by_keywords() -> None:
    event = LifespanEvent(kind="up", time_ns=1)
    with pytest.raises(FrozenInstanceError):
        event.kind = "down"  # type: ignore[misc]
    with pytest.raises(TypeError):
        LifespanEvent("up")  # type: ignore[call-arg]
    names = [field.name for field in fields(LifespanEvent)]
    assert names == [
        "kind",
        "provider",
        "name",
        "where",
        "time_ns",
        "seconds",
        "error",
        "is_raised",
    ]


async def test_a_start_that_fails_is_told_and_raised() -> None:
    error = OSError("no network")

    async def fails(pool: Pool) -> None:
        raise error

    listener = Listener()
    with pytest.raises(OSError, match="no network"):
        async with running(app_with(listener, fails)):
            pass
    assert listener.told == [
        "starting get_pool",
        "started get_pool",
        "starting fails",
        "start_failed fails",
        "stopping get_pool",
        "stopped get_pool",
        "down",
    ]
    [failed] = listener.of("start_failed")
    assert failed.error is error
    assert failed.is_raised
    assert failed.seconds is not None
    assert (listener.events[-1].error, listener.events[-1].is_raised) == (error, True)


async def test_what_the_applications_own_code_raises_is_told_at_the_end() -> None:
    listener = Listener()
    app = app_with(listener, get_pool)
    error = OSError("hook")

    def fail() -> None:
        raise error

    app.router.add_event_handler("shutdown", fail)
    with pytest.raises(OSError, match="hook"):
        async with running(app):
            pass
    assert listener.events[-1].kind == "down"
    assert listener.events[-1].error is error


async def test_a_stop_that_fails_is_told_and_raised_at_the_end() -> None:
    error = OSError("gone")

    async def fails() -> AsyncIterator[None]:
        yield
        raise error

    listener = Listener()
    with pytest.raises(OSError, match="gone"):
        async with running(app_with(listener, fails)):
            pass
    assert listener.told[2:] == ["up", "stopping fails", "stop_failed fails", "down"]
    assert [event.error for event in listener.of("stop_failed", "down")] == [error, error]


async def test_starts_that_are_given_up_are_told_too(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    async def fails() -> None:
        await gate.hold()
        raise OSError

    async def hangs() -> None:
        await gate.wait()

    listener = Listener()
    with pytest.raises(OSError):
        async with running(app_with(listener, fails, hangs, lifespan_start="concurrent")):
            pass
    assert sorted(listener.told) == sorted(
        ["starting fails", "starting hangs", "start_failed fails", "start_failed hangs", "down"]
    )
    assert all(event.error is not None and event.is_raised for event in listener.of("start_failed"))
    assert not caplog.records


async def test_what_depends_on_a_failure_never_began_and_is_not_told_of() -> None:
    async def fails() -> None:
        raise OSError

    async def needs(value: Annotated[None, Depends(fails, scope="lifespan")]) -> None: ...

    listener = Listener()
    with pytest.raises(OSError):
        async with running(app_with(listener, needs, lifespan_start="concurrent")):
            pass
    assert listener.told == ["starting fails", "start_failed fails", "down"]


async def test_a_refresh_is_told() -> None:
    listener = Listener()
    service = Service(on_lifespan_event=listener)
    async with service.running():
        await settle()
        listener.events.clear()
        draining = await service.refresh()
        await draining.wait()
        db, user = service.get_db, service.get_user
        assert [(event.kind, event.provider) for event in listener.events] == [
            ("refreshing", db),
            ("starting", db),
            ("started", db),
            ("starting", user),
            ("started", user),
            ("refreshed", db),
            ("stopping", user),
            ("stopped", user),
            ("stopping", db),
            ("stopped", db),
        ]
        [refreshed] = listener.of("refreshed")
        assert refreshed.seconds is not None


async def test_a_refresh_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    service = Service(on_lifespan_event=listener)
    error = OSError("no network")

    async def fail() -> None:
        raise error

    async with service.running():
        service.at["start db 2"] = fail
        with pytest.raises(OSError, match="no network"):
            await service.refresh()
        [failed] = listener.of("refresh_failed")
        assert failed.provider is service.get_db
        assert failed.error is error
        assert failed.is_raised
        assert failed.seconds is not None
    assert not caplog.records  # whoever asked is told


async def test_a_refresh_that_nobody_waits_for_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    service = Service(on_lifespan_event=listener)
    gate = Gate()

    async def fail() -> None:
        await gate.wait()
        raise OSError("no network")

    async with service.running():
        service.at["start db 2"] = fail
        call = service.call(service.refresh)
        await gate.hold()
        call.cancel_scope.cancel()
        await call.ended.wait()
        gate.open()
        failed = await listener.until("refresh_failed")
        assert not failed.is_raised
        [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert "was not refreshed" in record.getMessage()


async def test_refresh_every_is_told() -> None:
    listener = Listener()
    app = LifespanFastAPI(on_lifespan_event=listener)
    depends = Depends(get_pool, scope="lifespan", refresh_every=0.01)
    app.get("/", dependencies=[depends])(lambda: None)
    async with running(app):
        assert (await listener.until("refreshed")).provider is get_pool


async def test_a_drain_that_takes_too_long_is_told() -> None:
    listener = Listener()
    service = Service(on_lifespan_event=listener)
    async with service.running():
        service.call(service.ask, path="/held")
        await service.gate.hold()
        draining = await service.refresh(drain_timeout=0)
        await draining.wait()
        [timed_out] = listener.of("drain_timed_out")
        assert timed_out.provider is service.get_db
        assert timed_out.seconds == 0
        assert str(timed_out.error) == "still used by GET /held"


async def test_a_wait_for_a_drain_that_takes_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.live.refresh.PATIENCE", 0)
    listener = Listener()
    service = Service(on_lifespan_event=listener)
    async with service.running():
        service.call(service.ask, path="/held")
        await service.gate.hold()
        draining = await service.refresh()
        service.call(draining.wait)
        slow = await listener.until("drain_slow")
        assert slow.provider is service.get_db
        assert str(slow.error) == "it is used by GET /held"
        service.gate.open()


@pytest.mark.parametrize("how", ["one", "two", "removed", "invalid"])
async def test_overrides_are_told_when_they_are_in_force(how: str) -> None:
    listener = Listener()
    app = app_with(listener, get_session)

    async def fake() -> str:
        return "fake"

    overrides: dict[Any, Any] = app.dependency_overrides
    if how == "removed":
        overrides[get_pool] = fake
    async with running(app, raises=False) as client:
        listener.events.clear()
        if how == "removed":
            overrides.clear()
        elif how == "two":
            overrides |= {get_pool: fake, get_session: lambda: "another"}
        else:
            overrides[get_pool] = fake if how == "one" else "no callable"
        await client.get("/")
        [applied] = listener.of("overrides_applied")
        assert applied.provider is (None if how == "two" else get_pool)
        assert applied.seconds is not None
        assert (applied.error is not None) is (how == "invalid")
        await client.get("/")
        assert len(listener.of("overrides_applied")) == 1


async def test_an_equal_override_is_no_other() -> None:
    """A bound method is another object each time that it is looked up."""

    class Fakes:
        async def pool(self) -> str:
            return "fake"

    listener, fakes = Listener(), Fakes()
    app = app_with(listener, get_pool)
    async with running(app) as client:
        for _ in range(3):
            app.dependency_overrides = {get_pool: fakes.pool}
            await client.get("/")
    assert len(listener.of("overrides_applied")) == 1


async def test_a_fake_that_fails_to_start_is_told(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    app = app_with(listener, get_pool)

    async def fake() -> str:
        raise OSError("no network")

    async with running(app, raises=False) as client:
        app.dependency_overrides[get_pool] = fake
        assert (await client.get("/")).status_code == 500
        [failed] = listener.of("start_failed")
        assert failed.provider is fake
        assert not failed.is_raised
        assert len(caplog.records) == 1


def mortal_app(listener: Listener, leaves: Callable[[], Any]) -> tuple[FastAPI, anyio.Event]:
    kill = anyio.Event()

    async def fail() -> None:
        await kill.wait()
        raise OSError("connection lost")

    async def get_mortal() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            try:
                yield "mortal"
            finally:
                with anyio.CancelScope(shield=True):
                    await leaves()

    return app_with(listener, get_mortal), kill


async def test_a_death_is_told_with_its_reason() -> None:
    listener = Listener()
    app, kill = mortal_app(listener, anyio.lowlevel.checkpoint)
    with pytest.raises(ExceptionGroup):
        async with running(app):
            kill.set()
            died = await listener.until("died")
            assert isinstance(died.error, ExceptionGroup)
            assert not died.is_raised
    assert listener.told == ["starting get_mortal", "started get_mortal", "up", *DEATH, "down"]


DEATH = ["died get_mortal"]


async def test_a_death_that_takes_long_is_told_at_once_and_its_reason_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    listener = Listener()
    app, kill = mortal_app(listener, gate.wait)
    with pytest.raises(ExceptionGroup):
        async with running(app):
            kill.set()
            died = await listener.until("died")
            assert died.error is None
            gate.open()
            failed = await listener.until("stop_failed")
            assert isinstance(failed.error, ExceptionGroup)
    assert listener.told[3:] == [*DEATH, "stop_failed get_mortal", "down"]
    assert [one.levelno for one in caplog.records] == [logging.ERROR] * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
async def test_what_a_listener_raises_is_logged_and_harms_nothing(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def listener(event: LifespanEvent) -> None:
        heard.append(event.kind)
        raise error("listener")

    async with running(app_with(listener, get_session)) as client:
        assert (await client.get("/")).status_code == 200
    assert heard[-5:] == ["stopping", "stopped", "stopping", "stopped", "down"]
    assert len(caplog.records) == len(heard) == 10
    assert "failed to hear of 'starting'" in caplog.records[0].getMessage()


async def test_a_log_that_raises_harms_nothing_either() -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("the disk is full")

    handler = Broken()
    logger = logging.getLogger("fastapi_lifespan_deps")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    listener = Listener()
    try:
        async with running(app_with(listener, get_session)) as client:
            assert (await client.get("/")).status_code == 200
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(listener.events) == 10


async def test_the_last_listener_that_is_given_is_the_one() -> None:
    first, second = Listener(), Listener()
    app = app_with(first, get_pool)
    enable_lifespan_scope(app, lifespan_start="concurrent")  # leaves the listener alone
    async with running(app):
        pass
    assert len(first.events) == 6
    enable_lifespan_scope(app, on_lifespan_event=second)
    async with running(app):
        pass
    assert (len(first.events), len(second.events)) == (6, 6)


async def test_an_application_whose_class_is_fixed_has_a_listener_too() -> None:
    listener = Listener()
    app = enable_lifespan_scope(FastAPI(), on_lifespan_event=listener)
    async with running(app):
        pass
    assert listener.told == ["up", "down"]


class AsyncListener:
    async def __call__(self, event: LifespanEvent) -> None: ...


async def async_listener(event: LifespanEvent) -> None: ...


@pytest.mark.parametrize(
    "listener",
    [
        async_listener,
        AsyncListener(),
        AsyncListener().__call__,
        functools.partial(async_listener),
        "listener",
        1,
    ],
)
@pytest.mark.parametrize("way", ["class", "function"])
def test_a_listener_that_cannot_be_one_is_refused_where_it_is_given(
    listener: Any, way: str
) -> None:
    with pytest.raises(TypeError, match=r"on_lifespan_event=.*give a plain function"):
        if way == "class":
            LifespanFastAPI(on_lifespan_event=listener)
        else:
            enable_lifespan_scope(FastAPI(), on_lifespan_event=listener)


def test_the_kinds_are_known_to_type_checkers() -> None:
    assert set(get_args(EventKind)) >= {"starting", "started", "died", "refreshed", "up", "down"}
