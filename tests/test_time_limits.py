"""`start_timeout` and `stop_timeout`: what takes too long is cancelled; the rest goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio import get_cancelled_exc_class
from fastapi import FastAPI

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    LifespanTimeout,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
)
from tests.clients import Gate, Thing, provider, running, settle
from tests.recording import leaves

pytestmark = pytest.mark.anyio

LIMIT = 0.03  # not less: a busy machine may take that long for nothing
in_each_mode = pytest.mark.parametrize("mode", ["sequential", "concurrent"])


async def outlast() -> None:
    """Let more time pass than the limits that are to be seen at work."""
    with anyio.move_on_after(2 * LIMIT):
        await anyio.sleep_forever()


async def hang() -> None:
    """Wait to be cancelled, and let the test fail, not hang, if that never happens."""
    with anyio.fail_after(10):
        await anyio.sleep_forever()


async def clean_up(log: list[str]) -> None:
    try:
        await hang()
    finally:
        with anyio.CancelScope(shield=True):
            await outlast()
        log.append("clean")


async def raise_another(log: list[str]) -> None:
    try:
        await hang()
    except get_cancelled_exc_class():
        log.append("failed")
        raise OSError("could not roll back") from None


async def ignore_once(log: list[str]) -> None:
    with suppress(get_cancelled_exc_class()):
        await hang()
    log.append("ignored")
    await hang()


async def hold_a_task_group(log: list[str]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(clean_up, log)
        await group.start(never_ready)


async def never_ready(*, task_status: Any) -> None:
    await hang()


async def hold_a_deadline(log: list[str]) -> None:
    with anyio.fail_after(3600), anyio.CancelScope():
        await clean_up(log)


async def hold_what_asyncio_has(log: list[str]) -> None:
    async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
        group.create_task(clean_up(log))
        await asyncio.sleep(3600)


async def swallow(log: list[str]) -> None:
    with suppress(get_cancelled_exc_class()):
        await hang()
    log.append("swallowed")


Hang = Callable[[list[str]], Any]
HANGS: list[tuple[Hang, str]] = [
    (clean_up, "clean"),
    (raise_another, "failed"),
    (ignore_once, "ignored"),
    (hold_a_task_group, "clean"),
    (hold_a_deadline, "clean"),
]
hangs = pytest.mark.parametrize(
    ("hanging", "trace", "anyio_backend"),
    [
        *[(*each, backend) for each in HANGS for backend in ("asyncio", "trio")],
        (hold_what_asyncio_has, "clean", "asyncio"),
    ],
)


def route(app: FastAPI, provider: Callable[..., Any], path: str = "/", **options: Any) -> None:
    @app.get(path)
    async def read(value: Annotated[Any, Depends(provider, scope="lifespan", **options)]) -> str:
        return str(value)


def problems(caplog: pytest.LogCaptureFixture) -> list[tuple[str, BaseException | None]]:
    """What the library has logged as an error, and why."""
    return [
        (record.getMessage(), record.exc_info[1] if record.exc_info else None)
        for record in caplog.records
        if record.name == "fastapi_lifespan_deps" and record.levelno >= logging.WARNING
    ]


class Service:
    """A dependency that may hang, one that it takes, one that takes it, and one apart."""

    def __init__(self, mode: Any = "sequential", **limits: Any) -> None:
        self.log: list[str] = []
        self.start: Hang | None = None
        self.stop: Hang | None = None
        self.get_base = get_base = provider("base", self.log)
        self.get_other = provider("other", self.log)

        async def get_value(
            base: Annotated[Thing, Depends(get_base, scope="lifespan")],
        ) -> AsyncIterator[Thing]:
            if self.start is not None:
                await self.start(self.log)
            self.log.append("start value")
            yield Thing("value", base)
            if self.stop is not None:
                await self.stop(self.log)
            assert str(base) == "base"  # else it is closed
            self.log.append("stop value")

        self.get_value = get_value

        async def get_user(
            value: Annotated[Thing, Depends(get_value, scope="lifespan")],
        ) -> AsyncIterator[Thing]:
            self.log.append("start user")
            yield Thing("user", value)
            self.log.append("stop user")

        self.get_user = get_user
        self.app = app = LifespanFastAPI(lifespan_start=mode)
        route(app, self.get_other, "/other")
        route(app, get_user, "/user")
        route(app, get_value, "/value", **limits)


# --- The start


@hangs
@in_each_mode
async def test_a_start_that_takes_too_long_is_cancelled_and_fails_the_startup(
    hanging: Hang, trace: str, mode: str
) -> None:
    service = Service(mode, start_timeout=LIMIT)
    service.start = hanging
    with pytest.raises(LifespanTimeout) as late:
        async with running(service.app):
            raise AssertionError("it serves")
    assert (late.value.provider, late.value.seconds) == (service.get_value, LIMIT)
    assert [step.label for step in late.value.path] == ["GET /user", "value", "value"]
    assert isinstance(late.value, TimeoutError)
    assert isinstance(late.value.__cause__, OSError if hanging is raise_another else type(None))
    assert getattr(late.value, "__notes__", []) == []
    assert sorted(service.log) == sorted(
        ["start other", "start base", trace, "stop base", "stop other"]
    )
    assert service.log.index(trace) < service.log.index("stop base")


async def test_a_start_that_yields_in_spite_of_its_cancellation_has_started() -> None:
    """Perhaps with a fallback. The scopes around it are as if nothing had happened."""
    service = Service(start_timeout=LIMIT, stop_timeout=LIMIT)
    service.start = swallow
    async with running(service.app) as client:
        assert (await client.get("/user")).json() == "user(value(base))"
        await outlast()
        assert (await client.get("/user")).json() == "user(value(base))"
        service.stop = lambda log: anyio.lowlevel.checkpoint()
    assert service.log[2:4] == ["swallowed", "start value"]
    assert service.log[-4:] == ["stop user", "stop value", "stop base", "stop other"]


@pytest.mark.parametrize("kind", ["function", "context manager", "method"])
@pytest.mark.parametrize("limit", [LIMIT, timedelta(seconds=LIMIT)], ids=["s", "timedelta"])
async def test_every_asynchronous_kind_can_be_cut_off(kind: str, limit: Any) -> None:
    async def function() -> None:
        await hang()

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        await hang()
        yield

    class Owner:
        async def __call__(self) -> None:
            await hang()

    app = LifespanFastAPI()
    kinds: dict[str, Any] = {"function": function, "context manager": context, "method": Owner()}
    route(app, kinds[kind], start_timeout=limit)
    with pytest.raises(LifespanTimeout) as late:
        async with running(app):
            raise AssertionError("it serves")
    assert late.value.provider is kinds[kind]
    assert late.value.seconds == LIMIT


async def test_the_whole_message_of_a_start_and_of_a_stop() -> None:
    async def get_pool() -> AsyncIterator[None]:
        if hangs_at == "start":
            await hang()
        yield
        await hang()

    app = LifespanFastAPI()

    @app.get("/users")
    async def read_users(
        pool: Annotated[None, Depends(get_pool, scope="lifespan", start_timeout=LIMIT)],
        same: Annotated[None, Depends(get_pool, scope="lifespan", stop_timeout=LIMIT)],
    ) -> None: ...

    here = test_the_whole_message_of_a_start_and_of_a_stop.__qualname__
    file = Path(__file__).relative_to(Path.cwd())
    users = f"{file}:{read_users.__code__.co_firstlineno}"
    pool = f"{file}:{get_pool.__code__.co_firstlineno}"
    for hangs_at in ("start", "stop"):
        with pytest.raises(LifespanTimeout) as late:
            async with running(app):
                pass
        assert str(late.value) == (
            f"`{here}.<locals>.get_pool` did not {hangs_at} within 0.03 seconds "
            f"({hangs_at}_timeout=0.03), and was cancelled.\n\n"
            f"  GET /users  {users}  {here}.<locals>.read_users\n"
            f'  └─ pool     {pool}  {here}.<locals>.get_pool  scope="lifespan"\n\n'
            "Give it more time, or find out what it waits for."
        )


@in_each_mode
async def test_the_time_of_others_does_not_count(mode: Any) -> None:
    """Not that of what it takes, at the start; nor that of what takes it, at the stop."""
    log: list[str] = []

    async def get_base() -> AsyncIterator[None]:
        await outlast()
        yield
        log.append("stop base")

    async def get_value(
        base: Annotated[None, Depends(get_base, scope="lifespan", stop_timeout=LIMIT)],
    ) -> AsyncIterator[None]:
        log.append("start value")
        yield
        log.append("stop value")

    async def get_user(
        value: Annotated[
            None, Depends(get_value, scope="lifespan", start_timeout=LIMIT, stop_timeout=LIMIT)
        ],
    ) -> AsyncIterator[None]:
        yield
        await outlast()
        log.append("stop user")

    app = LifespanFastAPI(lifespan_start=mode)
    route(app, get_user)
    async with running(app):
        pass
    assert log == ["start value", "stop user", "stop value", "stop base"]


@in_each_mode
async def test_a_value_may_live_longer_than_its_start_may_take(mode: Any) -> None:
    """The time is up long since when its code after `yield` awaits something."""
    gate = Gate()
    log: list[str] = []

    async def get_value() -> AsyncIterator[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(gate.wait)
            yield "value"
            await outlast()
            gate.open()
        await outlast()
        log.append("stop")

    app = LifespanFastAPI(lifespan_start=mode)
    route(app, get_value, start_timeout=LIMIT, stop_timeout=3600)
    async with running(app) as client:
        await outlast()
        assert (await client.get("/")).json() == "value"
    assert log == ["stop"]


async def test_a_refresh_whose_start_takes_too_long_leaves_the_old_value() -> None:
    service = Service(start_timeout=LIMIT)
    async with running(service.app) as client:
        container = service.app.lifespan_container
        old = container[service.get_user]
        for asked in (service.get_value, service.get_base):
            service.start = clean_up
            service.log.clear()
            with pytest.raises(LifespanTimeout) as late:
                await container.refresh(asked)
            assert late.value.provider is service.get_value
            await settle()
            both = ["start base", "clean", "stop base"]
            assert service.log == (["clean"] if asked is service.get_value else both)
            assert container[service.get_user] is old
            assert (await client.get("/user")).json() == "user(value(base))"
        service.start = None
        await container.refresh(service.get_value)
        assert container[service.get_user] is not old


async def test_a_resource_preserving_refresh_whose_start_takes_too_long() -> None:
    service = Service(start_timeout=LIMIT)
    async with running(service.app) as client:
        container = service.app.lifespan_container
        service.start = clean_up
        with pytest.raises(LifespanTimeout) as late:
            await container.refresh(service.get_value, policy="resource_preserving")
        with pytest.raises(UnavailableLifespanDependency) as refused:
            container[service.get_user]
        assert refused.value.__cause__ is late.value
        assert (await client.get("/user")).status_code == 503
        assert (await client.get("/other")).json() == "other"
        service.start = None
        await container.refresh(service.get_value)
        assert (await client.get("/user")).json() == "user(value(base))"


@in_each_mode
async def test_an_override_whose_start_takes_too_long_fails_the_requests_that_need_it(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(mode)

    async def get_slow() -> None:
        await clean_up(service.log)

    async def fake(
        slow: Annotated[None, Depends(get_slow, scope="lifespan", start_timeout=LIMIT)],
    ) -> Thing:
        raise AssertionError("it was called")

    async with running(service.app) as client:
        service.log.clear()
        service.app.dependency_overrides[service.get_value] = fake
        for _ in range(2):
            with pytest.raises(UninitializedLifespanDependency) as failed:
                await client.get("/user")
            assert (await client.get("/other")).json() == "other"
            ((_, late),) = problems(caplog)
            assert failed.value.__cause__ is late
            assert isinstance(late, LifespanTimeout)
            assert late.provider is get_slow
            assert "overrides get_value" in str(late)
        assert service.log == ["clean"]
        service.app.dependency_overrides.clear()
        assert (await client.get("/user")).json() == "user(value(base))"


# --- The stop


@hangs
@in_each_mode
async def test_a_stop_that_takes_too_long_is_cancelled_and_the_others_go_on(
    hanging: Hang, trace: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(mode, stop_timeout=LIMIT)
    service.stop = hanging
    with pytest.raises(LifespanTimeout) as late:
        async with running(service.app) as client:
            assert (await client.get("/user")).json() == "user(value(base))"
            service.log.clear()
    assert (late.value.provider, late.value.seconds) == (service.get_value, LIMIT)
    assert [step.label for step in late.value.path] == ["GET /user", "value", "value"]
    assert isinstance(late.value.__cause__, OSError if hanging is raise_another else type(None))
    assert sorted(service.log) == sorted(["stop user", trace, "stop base", "stop other"])
    order = [event for event in service.log if event != "stop other"]
    assert order == ["stop user", trace, "stop base"]
    assert problems(caplog) == []  # who stops the application is told


async def test_a_stop_that_goes_on_in_spite_of_its_cancellation_is_told_too() -> None:
    service = Service(stop_timeout=LIMIT)
    service.stop = swallow
    with pytest.raises(LifespanTimeout):
        async with running(service.app):
            service.log.clear()
    assert service.log == ["stop user", "swallowed", "stop value", "stop base", "stop other"]


@in_each_mode
async def test_several_that_take_too_long_are_all_told(mode: Any) -> None:
    """With what went wrong before."""
    log: list[str] = []

    def slow(name: str, need: Any = None) -> Any:
        async def get(
            need: Annotated[None, Depends(need or anyio.lowlevel.checkpoint, scope="lifespan")],
        ) -> AsyncIterator[None]:
            yield
            log.append(name)
            await hang()

        return get

    async def fails() -> AsyncIterator[None]:
        yield
        log.append("fails")
        raise OSError("stop")

    app = LifespanFastAPI(lifespan_start=mode)
    first, apart = slow("first"), slow("apart")
    second = slow("second", first)
    for path, get in (("/1", second), ("/2", fails), ("/3", apart), ("/4", first)):
        route(app, get, path, stop_timeout=LIMIT)
    body = LookupError("while serving")
    with pytest.raises(ExceptionGroup) as several:
        async with running(app):
            raise body
    told = leaves(several.value)
    late = {error.provider for error in told if isinstance(error, LifespanTimeout)}
    assert late == {first, second, apart}
    assert told[0] is body
    assert sorted(str(error) for error in told if not isinstance(error, LifespanTimeout)) == [
        "stop",
        "while serving",
    ]
    assert len(told) == 5
    assert sorted(log) == ["apart", "fails", "first", "second"]
    assert log.index("second") < log.index("first")


async def test_a_stop_that_takes_too_long_after_a_failed_startup_is_a_note() -> None:
    service = Service(stop_timeout=LIMIT)
    service.stop = clean_up
    error = OSError("hook")

    async def fail() -> None:
        raise error

    service.app.router.add_event_handler("startup", fail)
    with pytest.raises(OSError) as failed:
        async with running(service.app):
            raise AssertionError("it serves")
    assert failed.value is error
    assert "did not stop within 0.03 seconds" in "".join(failed.value.__notes__)
    assert service.log[-3:] == ["clean", "stop base", "stop other"]


@in_each_mode
async def test_a_stop_that_takes_too_long_ends_also_when_the_application_is_cancelled(
    mode: str,
) -> None:
    service = Service(mode, stop_timeout=LIMIT)
    service.stop = clean_up
    with anyio.CancelScope() as scope:
        async with running(service.app):
            service.log.clear()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert sorted(service.log) == ["clean", "stop base", "stop other", "stop user"]


@in_each_mode
@pytest.mark.parametrize("asked", ["value", "base"])
async def test_an_old_value_whose_stop_takes_too_long_after_a_refresh(
    mode: str, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged at once, and raised at the end. What it takes stops after it."""
    service = Service(mode, stop_timeout=LIMIT)
    service.stop = clean_up
    with pytest.raises(LifespanTimeout) as late, anyio.fail_after(10):
        async with running(service.app) as client:
            container = service.app.lifespan_container
            service.log.clear()
            is_base = asked == "base"
            draining = await container.refresh(service.get_base if is_base else service.get_value)
            assert (await client.get("/user")).json() == "user(value(base))"
            await draining.wait()
            stops = ["stop user", "clean", *(["stop base"] if is_base else [])]
            assert service.log[-len(stops) :] == stops
            ((message, logged),) = problems(caplog)
            assert "get_value` failed to stop" in message
            assert isinstance(logged, LifespanTimeout)
            assert (await client.get("/user")).json() == "user(value(base))"
            service.stop = None
    assert [error for _, error in problems(caplog)] == [late.value]


@in_each_mode
async def test_a_resource_preserving_refresh_goes_on_when_the_stop_has_taken_too_long(
    mode: str,
) -> None:
    service = Service(mode, stop_timeout=LIMIT)
    service.stop = clean_up
    with pytest.raises(LifespanTimeout), anyio.fail_after(10):
        async with running(service.app) as client:
            service.log.clear()
            refresh = service.app.lifespan_container.refresh
            await refresh(service.get_base, policy="resource_preserving")
            assert service.log[:3] == ["stop user", "clean", "stop base"]
            assert service.log[3:] == ["start base", "start value", "start user"]
            assert (await client.get("/user")).json() == "user(value(base))"
            service.stop = None


async def test_a_fake_whose_stop_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()

    async def get_slow() -> AsyncIterator[Thing]:
        yield Thing("slow")
        await clean_up(service.log)

    async def fake(
        slow: Annotated[Thing, Depends(get_slow, scope="lifespan", stop_timeout=LIMIT)],
    ) -> Thing:
        return Thing("fake", slow)

    with pytest.raises(LifespanTimeout) as late:
        async with running(service.app) as client:
            service.app.dependency_overrides[service.get_value] = fake
            assert (await client.get("/user")).json() == "user(fake(slow))"
            service.app.dependency_overrides.clear()
            assert (await client.get("/user")).json() == "user(value(base))"
    assert late.value.provider is get_slow
    assert service.log.count("clean") == 1
    assert service.log[-1] == "stop other"


# --- A crash


class Mortal:
    """A dependency whose background task can fail, and whose clean-up takes its time then."""

    def __init__(self, clean_up: Hang, mode: Any = "sequential", **limits: Any) -> None:
        self.killed = anyio.Event()
        self.lives = 0
        self.log: list[str] = []
        self.error = OSError("the connection was lost")
        self.clean_up = clean_up
        self.app = LifespanFastAPI(lifespan_start=mode)
        route(self.app, provider("other", self.log), "/other")
        route(self.app, self.get, "/value", **limits)

    async def fail(self) -> None:
        await self.killed.wait()
        raise self.error

    async def get(self) -> AsyncIterator[str]:
        self.lives += 1
        life = self.lives
        try:
            async with anyio.create_task_group() as group:
                if life == 1:
                    group.start_soon(self.fail)
                yield f"life {life}"
        finally:
            if life == 1:
                await self.clean_up(self.log)

    async def kill(self, client: httpx.AsyncClient) -> None:
        self.killed.set()
        with anyio.fail_after(10):
            while (await client.get("/value")).status_code == 200:
                await anyio.lowlevel.checkpoint()


@in_each_mode
async def test_a_crash_whose_clean_up_takes_too_long(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The clean-up is cut off, and the others go on."""
    mortal = Mortal(clean_up, mode, stop_timeout=LIMIT)
    with pytest.raises(LifespanTimeout) as late, anyio.fail_after(10):
        async with running(mortal.app, raises=False) as client:
            assert (await client.get("/value")).json() == "life 1"
            await mortal.kill(client)
            assert (await client.get("/other")).json() == "other"
            draining = await mortal.app.lifespan_container.refresh(mortal.get)
            assert (await client.get("/value")).json() == "life 2"
            await draining.wait()
            assert mortal.log == ["start other", "clean"]
    assert late.value.provider == mortal.get
    assert mortal.log[2:] == ["stop other"]
    ((message, logged),) = problems(caplog)
    assert "`Mortal.get` ended by itself while serving" in message
    assert logged is late.value


async def test_a_crash_is_logged_before_its_clean_up_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who reads the log need not wait for a clean-up that hangs."""
    gate = Gate()

    async def clean_up(log: list[str]) -> None:
        with anyio.CancelScope(shield=True):
            await gate.wait()

    mortal = Mortal(clean_up)
    logged: list[str] = []
    with pytest.raises(ExceptionGroup) as died:
        async with running(mortal.app, raises=False) as client:
            await mortal.kill(client)
            await gate.hold()
            with anyio.move_on_after(10):
                while not problems(caplog):
                    await anyio.lowlevel.checkpoint()
            logged += [message for message, _ in problems(caplog)]
            gate.open()
    assert leaves(died.value) == [mortal.error]
    assert len(logged) == 1
    assert "`Mortal.get` ended by itself while serving" in logged[0]


# --- The event loop ends


async def left_open(service: Service) -> Any:
    context = service.app.router.lifespan_context(service.app)
    await context.__aenter__()
    service.log.clear()
    return context


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@in_each_mode
def test_a_stop_that_takes_too_long_is_cut_off_when_the_event_loop_ends(
    mode: str, anyio_backend: str
) -> None:
    services: list[Service] = []

    async def main() -> Any:
        services.append(Service(mode, stop_timeout=LIMIT))
        services[0].stop = clean_up
        return await left_open(services[0])

    anyio.run(main, backend=anyio_backend)
    assert sorted(services[0].log) == ["clean", "stop base", "stop other", "stop user"]
    order = [event for event in services[0].log if event != "stop other"]
    assert order == ["stop user", "clean", "stop base"]
