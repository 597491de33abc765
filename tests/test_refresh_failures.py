"""A refresh while requests come, and one that goes wrong."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, WebSocket

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    RefreshError,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    get_container,
)
from fastapi_lifespan_deps.live.refresh import Policy
from tests.clients import Gate, Thing, client_of, settle
from tests.recording import leaves
from tests.refreshing import (
    AVAILABILITY,
    POLICIES,
    RESOURCE,
    Broken,
    Call,
    Provider,
    Service,
    breaks,
    connect,
)

pytestmark = pytest.mark.anyio


# --- While a value is withdrawn, and when it cannot be started

NEEDING = ["/user", "/session", "/listed", "/container", "/child/db", "/late", "/late/session"]


def needs_everywhere(service: Service, sync: list[str]) -> None:
    """Add what else may need the database: a mounted application, and a synchronous endpoint."""
    child = FastAPI()
    uses_db = Depends(service.get_db, scope="lifespan")

    @child.get("/db")
    def read(db: Annotated[Thing, uses_db]) -> str:
        sync.append(str(db))
        return str(db)

    async def listen(websocket: WebSocket, db: Annotated[Thing, uses_db]) -> None:
        raise AssertionError("called")

    async def accept_first(
        websocket: WebSocket, container: Annotated[LifespanContainer, Depends(get_container)]
    ) -> None:
        await websocket.accept()
        container[service.get_db]

    child.websocket("/socket")(listen)
    service.app.mount("/child", child)
    service.app.websocket("/socket/accepted")(accept_first)


def add_late_routes(service: Service) -> None:
    async def get_session(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> Thing:
        return db

    async def read(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        return str(db)

    async def read_session(session: Annotated[Thing, Depends(get_session)]) -> str:
        return str(session)

    async def listen(
        websocket: WebSocket, db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]
    ) -> None:
        raise AssertionError("called")

    service.app.get("/late")(read)
    service.app.get("/late/session")(read_session)
    service.app.websocket("/socket/late")(listen)


@pytest.mark.parametrize("phase", ["draining", "starting", "failed"])
async def test_requests_that_need_a_withdrawn_value_are_told_to_come_again(phase: str) -> None:
    service = Service()
    called: list[str] = []
    needs_everywhere(service, called)
    starting = Gate()
    async with service.running() as client:
        add_late_routes(service)
        service.at["start db 2"] = breaks if phase == "failed" else starting.wait
        if phase == "draining":
            service.call(service.ask, path="/held")
            await service.gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        for path in NEEDING:
            answer = await client.get(path)
            assert (path, answer.status_code) == (path, 503)
            assert answer.headers["Retry-After"] == "1"
            assert answer.json() == {"detail": "Service Unavailable"}
        accept = {"type": "websocket.accept"}
        for path in ("/socket", "/child/socket", "/socket/late", "/socket/accepted"):
            messages = await connect(service.app, path)
            assert [message["type"] for message in messages] == [
                "websocket.accept",
                "websocket.close",
            ], path
            assert messages[0] == accept or messages[0]["headers"] == []
            assert messages[1]["code"] == 1013
        assert called == []
        # and those that do not need it go on
        assert await service.ask("/cache") == "cache 1"
        assert str(service.app.lifespan_container[service.get_cache]) == "cache 1"
        with pytest.raises(UnavailableLifespanDependency) as caught:
            service.app.lifespan_container[service.get_user]
        assert caught.value.provider is service.get_user
        assert caught.value.__cause__ is refresh.error
        assert isinstance(refresh.error, Broken) == (phase == "failed")
        starting.open()
        service.gate.open()
        if phase == "failed":
            await service.refresh()
        await refresh.ended.wait()
        for path in NEEDING:
            assert (await client.get(path)).status_code == 200


async def test_a_websocket_that_came_before_the_value_was_withdrawn() -> None:
    """It holds nothing, and asks the container that belongs to nobody."""
    service = Service()

    @service.app.websocket("/socket/asking")
    async def listen(websocket: WebSocket) -> None:
        await websocket.accept()
        await service.gate.wait()
        await websocket.send_text(str(service.app.lifespan_container[service.get_db]))

    starting = Gate()
    service.at["start db 2"] = starting.wait
    async with service.running():
        socket = service.call(connect, app=service.app, path="/socket/asking")
        await service.gate.hold()
        service.call(service.refresh, policy=RESOURCE)
        await starting.hold()
        service.gate.open()
        await socket.ended.wait()
        assert [message["type"] for message in socket.result] == [
            "websocket.accept",
            "websocket.close",
        ]
        assert socket.result[1]["code"] == 1013
        starting.open()


@pytest.mark.parametrize("lifespan_start", ["sequential", "concurrent"])
@pytest.mark.parametrize("event", ["start db 2", "start user 2"])
async def test_a_failed_start_leaves_the_old_values_serving(
    event: str, lifespan_start: str
) -> None:
    service = Service(lifespan_start=lifespan_start)
    service.at[event] = breaks
    async with service.running():
        with pytest.raises(Broken) as caught:
            await service.refresh()
        await settle()
        # the error is the provider's own, and the fresh ones do not stay
        fresh = ["start db 2", "stop db 2"] if event == "start user 2" else []
        assert service.log == fresh
        assert "failed to start" in "".join(caught.value.__notes__)
        assert await service.ask("/user") == "user 1(db 1) session(db 1) user 1(db 1)"
        await (await service.refresh()).wait()
        assert (await service.ask("/user")).startswith("user ")
        assert await service.ask("/session") == "session(db 3)"
        assert service.log[-2:] == ["stop user 1", "stop db 1"]


@POLICIES
@pytest.mark.parametrize("first", ["slow", "failing"])
async def test_the_first_failure_is_raised_while_others_start(policy: Policy, first: str) -> None:
    """With a concurrent start: those are given up, in whatever order they are declared."""
    service = Service(lifespan_start="concurrent")
    names = ["slow", "failing"] if first == "slow" else ["failing", "slow"]
    providers = [service.provider(name, service.get_db) for name in names]

    @service.app.get("/both", dependencies=[Depends(one, scope="lifespan") for one in providers])
    async def read() -> None: ...

    starting = Gate()

    async def fail() -> None:
        await starting.hold()
        raise Broken

    service.at.update({"start slow 2": starting.wait, "start failing 2": fail})
    async with service.running():
        with pytest.raises(Broken):
            await service.refresh(policy=policy)
        await settle()
        started = {event[6:] for event in service.log if event.startswith("start ")}
        stopped = {event[5:] for event in service.log if event.startswith("stop ")}
        assert started == {"db 2", "user 2"}
        assert started <= stopped


@pytest.mark.parametrize("event", ["start db 2", "start user 2"])
@pytest.mark.parametrize("again", ["get_db", "get_user"])
@POLICIES
async def test_a_failed_resource_preserving_refresh_and_the_one_that_brings_the_value_back(
    event: str, again: str, policy: Policy
) -> None:
    """A refresh of what depends on the missing value brings back both."""
    service = Service()
    error = Broken("out of memory")

    async def fail() -> None:
        raise error

    service.at[event] = fail
    async with service.running(raises=False) as client:
        with pytest.raises(Broken) as caught:
            await service.refresh(policy=RESOURCE)
        assert caught.value is error
        await settle()
        started = [e[6:] for e in service.log if e.startswith("start ")]
        stopped = [e[5:] for e in service.log if e.startswith("stop ")]
        assert {*stopped} == {"user 1", "db 1", *started}
        for path in ("/user", "/session", "/held"):
            assert (await client.get(path)).status_code == 503
        with pytest.raises(UnavailableLifespanDependency, match="failed to start it again") as why:
            service.app.lifespan_container[service.get_db]
        assert why.value.__cause__ is error
        await service.refresh(getattr(service, again), policy=policy)
        answer = await client.get("/user")
        assert (answer.status_code, answer.json()[:5]) == (200, "user ")
        assert (await client.get("/session")).json() == "session(db 3)"


async def test_a_withdrawn_value_whose_refresh_failed_twice_says_why_it_failed_last() -> None:
    service = Service()
    errors = [Broken("first"), Broken("second")]

    async def fail() -> None:
        raise errors[0]

    service.at["start db 2"] = service.at["start db 3"] = fail
    async with service.running():
        for policy in (RESOURCE, AVAILABILITY):
            with pytest.raises(Broken):
                await service.refresh(policy=policy)
            with pytest.raises(UnavailableLifespanDependency) as caught:
                service.app.lifespan_container[service.get_db]
            assert caught.value.__cause__ is errors[0]
            if policy == RESOURCE:
                errors.pop(0)
        await service.refresh()
        assert await service.ask("/session") == "session(db 4)"


# --- When the application stops meanwhile


@pytest.mark.parametrize(
    ("policy", "phase"),
    [
        (AVAILABILITY, "starting"),
        (AVAILABILITY, "draining"),
        (RESOURCE, "starting"),
        (RESOURCE, "draining"),
    ],
)
async def test_an_application_that_stops_during_a_refresh(policy: Policy, phase: str) -> None:
    service = Service()
    starting = Gate()
    if phase == "starting":
        service.at["start user 2"] = starting.wait
    async with anyio.create_task_group() as tasks:
        async with service.running():
            if phase == "draining":
                Call(tasks, service.ask, path="/held")
                await service.gate.hold()
                service.gate = Gate()  # it outlives the application
            refresh = Call(tasks, service.refresh, policy=policy)
            await settle()
            queued = Call(tasks, service.refresh, provider=service.get_cache, policy=policy)
            await settle()
        # all that has started has stopped by now
        await refresh.ended.wait()
        await queued.ended.wait()
        if (policy, phase) == (AVAILABILITY, "draining"):
            await refresh.result.wait()
            assert queued.error is None
        else:
            for error in (refresh.error, queued.error):
                assert isinstance(error, RefreshError)
                assert "the application stops" in str(error)
        tasks.cancel_scope.cancel()
    starts = [event[6:] for event in service.log if event.startswith("start ")]
    stops = [event[5:] for event in service.log if event.startswith("stop ")]
    assert sorted(stops) == sorted(["db 1", "user 1", "cache 1", *starts])
    assert stops.index("user 1") < stops.index("db 1")


# --- Instances that die, and instances that fail to stop


def dies(service: Service, name: str, deaths: list[anyio.Event]) -> Provider:
    """A provider that needs nothing, and dies when the event of its number is set."""
    count = 0

    async def get_mortal() -> AsyncIterator[Thing]:
        nonlocal count
        count += 1
        thing = Thing(f"{name} {count}")

        async def die(event: anyio.Event) -> None:
            await event.wait()
            raise Broken(thing.name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die, deaths[count - 1])
            yield thing
            tasks.cancel_scope.cancel()

    return get_mortal


async def dead(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until an instance has ended by itself."""
    while "ended by itself" not in caplog.text:
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def mortal(
    service: Service, deaths: list[anyio.Event]
) -> AsyncIterator[tuple[Provider, Provider]]:
    """Run the application with a dependency that may die, and one that is built on it."""
    get_mortal = dies(service, "mortal", deaths)
    get_heir = service.provider("heir", get_mortal)

    @service.app.get("/mortal")
    async def read(
        mortal: Annotated[Thing, Depends(get_mortal, scope="lifespan")],
        heir: Annotated[Thing, Depends(get_heir, scope="lifespan")],
    ) -> str:
        return f"{mortal} {heir}"

    async with service.running():
        yield get_mortal, get_heir


@POLICIES
async def test_an_instance_that_dies_while_it_is_replaced(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    """The refresh goes on, and the death is told all the same: at once, and at shutdown."""
    service = Service()
    deaths = [anyio.Event(), anyio.Event()]
    gate = Gate()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with mortal(service, deaths) as (get_mortal, _):
            service.at["start heir 2" if policy == AVAILABILITY else "stop heir 1"] = gate.wait
            refresh = service.call(service.refresh, provider=get_mortal, policy=policy)
            await gate.hold()
            deaths[0].set()
            await dead(caplog)
            gate.open()
            await refresh.ended.wait()
            assert refresh.error is None
            await refresh.result.wait()
            assert await service.ask("/mortal") == "mortal 2 heir 2(mortal 2)"
            assert "ended by itself" in caplog.text
    assert [str(error) for error in leaves(caught.value)] == ["mortal 1"]


@POLICIES
@pytest.mark.parametrize("target", ["mortal", "heir"])
async def test_a_dead_instance_comes_back_by_a_refresh_of_it_or_of_what_depends_on_it(
    target: str, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    deaths = [anyio.Event(), anyio.Event(), anyio.Event()]
    with pytest.raises(BaseExceptionGroup):
        async with mortal(service, deaths) as (get_mortal, get_heir):
            deaths[0].set()
            await dead(caplog)
            with pytest.raises(UninitializedLifespanDependency) as caught:
                await service.ask("/mortal")
            assert caught.value.provider is get_mortal
            provider = get_mortal if target == "mortal" else get_heir
            await (await service.refresh(provider, policy=policy)).wait()
            assert await service.ask("/mortal") == "mortal 2 heir 2(mortal 2)"
            assert service.log == ["start heir 2", "stop heir 1"][:: 1 if policy[0] == "a" else -1]


@POLICIES
async def test_a_fresh_instance_that_dies_before_the_switch(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    deaths = [anyio.Event(), anyio.Event(), anyio.Event()]
    gate = Gate()
    with pytest.raises(BaseExceptionGroup):
        async with mortal(service, deaths) as (get_mortal, _):
            service.at["start heir 2"] = gate.wait
            refresh = service.call(service.refresh, provider=get_mortal, policy=policy)
            await gate.hold()
            deaths[1].set()
            await dead(caplog)
            gate.open()
            await refresh.ended.wait()
            assert isinstance(refresh.error, UninitializedLifespanDependency)
            assert refresh.error.provider is get_mortal
            cause = leaves(refresh.error.__cause__)
            assert [str(error) for error in cause] == ["mortal 2"]
            if policy == AVAILABILITY:
                assert await service.ask("/mortal") == "mortal 1 heir 1(mortal 1)"
            else:
                with pytest.raises(UnavailableLifespanDependency):
                    service.app.lifespan_container[get_mortal]
            await service.refresh(get_mortal)
            assert await service.ask("/mortal") == "mortal 3 heir 3(mortal 3)"


@POLICIES
async def test_an_old_instance_that_fails_to_stop(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    service.at["stop user 1"] = breaks
    with pytest.raises(Broken):
        async with service.running():
            draining = await service.refresh(policy=policy)
            await draining.wait()
            assert await service.ask("/session") == "session(db 2)"
            [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
            assert record.getMessage() == "`user` failed to stop"
            assert "stop db 1" in service.log


# --- A failed override


@POLICIES
async def test_what_has_failed_to_start_is_not_tried_again_by_a_refresh_of_something_else(
    policy: Policy,
) -> None:
    service = Service()
    tried = 0

    async def fake() -> None:
        nonlocal tried
        tried += 1
        raise Broken

    async with service.running():
        service.app.dependency_overrides[service.get_cache] = fake
        with pytest.raises(UninitializedLifespanDependency):
            await service.ask("/cache")
        await service.refresh(policy=policy)
        assert await service.ask("/session") == "session(db 2)"
        assert tried == 1
        with pytest.raises(Broken):
            await service.refresh(service.get_cache, policy=policy)
        assert tried == 2


@POLICIES
async def test_a_failed_override_does_not_keep_others_from_being_refreshed(
    policy: Policy,
) -> None:
    """What needs both can't start; what else needs the value that is refreshed can."""
    service = Service()

    async def fake(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> None:
        raise Broken

    async def get_report(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
        cache: Annotated[Thing, Depends(service.get_cache, scope="lifespan")],
    ) -> Thing:
        return Thing("report", db)

    @service.app.get("/report")
    async def read(report: Annotated[Thing, Depends(get_report, scope="lifespan")]) -> str:
        return str(report)

    async with service.running():
        service.app.dependency_overrides[service.get_cache] = fake
        with pytest.raises(UninitializedLifespanDependency):
            await service.ask("/report")
        await service.refresh(policy=policy)
        assert await service.ask("/session") == "session(db 2)"
        with pytest.raises(UninitializedLifespanDependency):
            await service.ask("/report")
        service.app.dependency_overrides.clear()
        assert await service.ask("/report") == "report(db 2)"


async def test_an_override_that_needs_what_is_withdrawn_waits_for_it() -> None:
    service = Service()

    async def fake(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> Thing:
        return Thing("fake", db)

    async with service.running():
        service.call(service.ask, path="/held")
        await service.gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        service.app.dependency_overrides[service.get_cache] = fake
        async with client_of(service.app, raises=False) as client:
            assert (await client.get("/cache")).status_code == 503
        service.gate.open()
        await refresh.ended.wait()
        assert await service.ask("/cache") == "fake(db 2)"
