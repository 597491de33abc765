"""`container.refresh`: a fresh value takes the place of the one that serves (clause 14)."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, FastAPI, WebSocket

from fastapi_lifespan_deps import (
    Depends,
    Draining,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    RefreshError,
    UninitializedLifespanDependency,
    enable_lifespan_scope,
    get_container,
)
from fastapi_lifespan_deps.live.refresh import Policy
from tests.clients import Gate, Thing, listen, provider, running, settle
from tests.refreshing import AVAILABILITY, POLICIES, RESOURCE, Broken, Service, breaks

pytestmark = pytest.mark.anyio

# --- What is started and stopped, and in what order


@POLICIES
@pytest.mark.parametrize("lifespan_start", ["sequential", "concurrent"])
async def test_clause_14_it_and_its_dependents_are_replaced_and_nothing_else(
    policy: Policy, lifespan_start: str
) -> None:
    service = Service(lifespan_start=lifespan_start)
    starts, stops = ["start db 2", "start user 2"], ["stop user 1", "stop db 1"]
    async with service.running() as client:
        cache = service.app.lifespan_container[service.get_cache]
        draining = await service.refresh(policy=policy)
        assert (await client.get("/user")).json() == "user 2(db 2) session(db 2) user 2(db 2)"
        await draining.wait()
        assert service.log == (starts + stops if policy == AVAILABILITY else stops + starts)
        assert service.app.lifespan_container[service.get_cache] is cache
    assert service.log[4:] in (
        ["stop cache 1", "stop user 2", "stop db 2"],  # an instance is as young as its start
        ["stop user 2", "stop cache 1", "stop db 2"],
        ["stop user 2", "stop db 2", "stop cache 1"],
    )


async def test_an_application_whose_class_is_fixed() -> None:
    service = Service()
    app = enable_lifespan_scope(FastAPI())

    @app.get("/db")
    async def read(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        return str(db)

    async with running(app) as client:
        container: LifespanContainer = getattr(app.router, "lifespan_container")  # noqa: B009
        await (await container.refresh(service.get_db)).wait()
        assert (await client.get("/db")).json() == "db 2"
        assert service.log == ["start db 1", "start db 2", "stop db 1"]


@POLICIES
async def test_what_it_depends_on_is_left_alone(policy: Policy) -> None:
    service = Service()
    async with service.running():
        await (await service.refresh(service.get_user, policy=policy)).wait()
        assert sorted(service.log) == ["start user 2", "stop user 1"]
        assert await service.ask("/user") == "user 2(db 1) session(db 1) user 2(db 1)"


@POLICIES
async def test_every_instance_of_a_provider_is_replaced(policy: Policy) -> None:
    """Each place with `use_cache=False` has its own, and so does what depends on that."""
    service = Service()
    own = Depends(service.get_db, scope="lifespan", use_cache=False)

    async def get_owner(db: Annotated[Thing, own]) -> Thing:
        return Thing("owner", db)

    async def read(
        one: Annotated[Thing, own],
        two: Annotated[Thing, own],
        owner: Annotated[Thing, Depends(get_owner, scope="lifespan")],
        shared: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> list[str]:
        return [str(one), str(two), str(owner), str(shared)]

    service.app.get("/own")(read)
    async with service.running() as client:
        before = (await client.get("/own")).json()
        await (await service.refresh(policy=policy)).wait()
        after = (await client.get("/own")).json()
        assert before == ["db 2", "db 3", "owner(db 4)", "db 1"]
        assert len({*before, *after}) == 8
        assert {f"stop db {number}" for number in range(1, 5)} <= {*service.log}
        assert {f"start db {number}" for number in range(5, 9)} <= {*service.log}


@POLICIES
@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
async def test_a_mounted_application_is_refreshed_with_its_parent(
    policy: Policy, kind: type[FastAPI]
) -> None:
    service = Service()
    child = kind()
    get_fake = service.provider("fake")

    @child.get("/db")
    async def read(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        return str(db)

    @child.get("/refresh")
    async def refresh(container: Annotated[LifespanContainer, Depends(get_container)]) -> str:
        await container.refresh(service.get_db, policy=policy)
        return str(container[service.get_db])

    service.app.mount("/child", child)
    async with service.running() as client:
        await service.refresh(policy=policy)
        assert (await client.get("/child/db")).json() == "db 2"
        assert (await client.get("/child/refresh")).json() == "db 3"
        assert await service.ask("/session") == "session(db 3)"
        child.dependency_overrides[service.get_db] = get_fake
        assert (await client.get("/child/db")).json() == "fake 1"
        await service.refresh(policy=policy)
        assert (await client.get("/child/db")).json() == "fake 2"
        assert await service.ask("/session") == "session(db 4)"


@POLICIES
async def test_again_and_again(policy: Policy) -> None:
    service = Service()
    async with service.running():
        for number in range(2, 30):
            draining = await service.refresh(policy=policy)
            assert await service.ask("/session") == f"session(db {number})"
            await draining.wait()
            assert sum(not thing.closed for thing in service.things) == 3
        live = service.app.lifespan_container._standing.run.live
        assert len(live.supervisor.instances) == 3


# --- Requests hold what their route can reach

HOLDERS = pytest.mark.parametrize("path", ["/held", "/stream", "/background", "/socket"])


@HOLDERS
async def test_clause_14_the_old_stops_when_the_last_request_that_holds_it_has_ended(
    path: str,
) -> None:
    service = Service()
    async with service.running():
        calls = [service.call(service.ask, path=path) for _ in range(2)]
        await settle()
        draining = await service.refresh()
        waiting = service.call(draining.wait)
        await settle()
        # its user is not held by these requests
        assert service.log == ["start db 2", "start user 2", "stop user 1"]
        assert await service.ask("/session") == "session(db 2)"
        assert not waiting.ended.is_set()
        service.gate.open()
        await waiting.ended.wait()
        assert service.log[3:] == ["stop db 1"]
        assert [call.result for call in calls] == ["db 1 db 1"] * 2


@HOLDERS
async def test_resource_preserving_waits_for_the_requests_that_hold_it(path: str) -> None:
    service = Service()
    async with service.running():
        calls = [service.call(service.ask, path=path) for _ in range(2)]
        await settle()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        assert service.log == ["stop user 1"]
        assert not refresh.ended.is_set()
        service.gate.open()
        await refresh.ended.wait()
        assert service.log[1:] == ["stop db 1", "start db 2", "start user 2"]
        await refresh.result.wait()
        assert [call.result for call in calls] == ["db 1 db 1"] * 2


@POLICIES
@pytest.mark.parametrize("path", ["/held/cache", "/socket/nothing"])
async def test_a_request_whose_route_does_not_reach_it_keeps_nothing_alive(
    policy: Policy, path: str
) -> None:
    service = Service()
    async with service.running():
        call = service.call(service.ask, path=path)
        await service.gate.hold()
        await (await service.refresh(policy=policy)).wait()
        assert {"stop db 1", "start db 2"} < {*service.log}
        assert not call.ended.is_set()
        service.gate.open()


class Foreign:
    """An ASGI application of its own, as Socket.IO's is: an object, which is mounted."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await self.gate.wait()
        await send({"type": "websocket.close", "code": 1000})


@POLICIES
async def test_a_mounted_application_that_is_not_starlettes_keeps_nothing_alive(
    policy: Policy,
) -> None:
    service = Service()
    service.app.mount("/socket/foreign", Foreign(service.gate))
    async with service.running():
        call = service.call(service.ask, path="/socket/foreign/io")
        await service.gate.hold()
        draining = await service.refresh(policy=policy)
        await draining.wait()
        assert not call.ended.is_set()


async def test_a_route_that_was_added_while_serving_holds_what_it_declares() -> None:
    """Also what FastAPI has not solved yet when the refresh comes."""
    service = Service()
    gate = Gate()

    async def get_session(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> Thing:
        return Thing("session", db)

    async def read(
        _: Annotated[None, Depends(gate.wait)],
        session: Annotated[Thing, Depends(get_session)],
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> str:
        return f"{session} {db}"

    async with service.running():
        service.app.get("/late")(read)
        call = service.call(service.ask, path="/late")
        await gate.hold()
        draining = await service.refresh()
        await settle()
        assert service.log == ["start db 2", "start user 2", "stop user 1"]
        gate.open()
        await draining.wait()
        assert call.result == "session(db 1) db 1"
        assert await service.ask("/late") == "session(db 2) db 2"


async def test_a_request_holds_nothing_while_it_is_in_a_middleware() -> None:
    service = Service()
    gate = Gate()

    @service.app.middleware("http")
    async def hold(request: Any, call_next: Any) -> Any:
        await gate.wait()
        return await call_next(request)

    async with service.running():
        call = service.call(service.ask, path="/user")
        await gate.hold()
        await service.refresh(policy="resource_preserving")
        assert service.log == ["stop user 1", "stop db 1", "start db 2", "start user 2"]
        gate.open()
        await call.ended.wait()
        assert call.result == "user 2(db 2) session(db 2) user 2(db 2)"


async def test_a_request_holds_everything_until_it_gets_to_the_route_of_a_mounted_app() -> None:
    service = Service()
    inner = FastAPI()
    service.app.mount("/in", inner)
    gate, stopping = Gate(), Gate()
    stopping.open()
    service.at["stop user 1"] = stopping.wait

    @inner.middleware("http")
    async def hold(request: Any, call_next: Any) -> Any:
        await gate.wait()
        return await call_next(request)

    @inner.get("/cache")
    async def hold_cache(
        cache: Annotated[Thing, Depends(service.get_cache, scope="lifespan")],
    ) -> str:
        await service.gate.wait()
        return str(cache)

    @inner.get("/db")
    async def hold_db(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        await service.gate.wait()
        return str(db)

    async with service.running():
        calls = [service.call(service.ask, path=path) for path in ("/in/cache", "/in/db")]
        await settle()
        draining = await service.refresh()
        await settle()
        assert service.log == ["start db 2", "start user 2"]
        gate.open()
        await service.gate.hold()
        await stopping.hold()  # nobody tells that the requests are at their routes; it is looked up
        service.gate.open()
        await draining.wait()
        assert [call.result for call in calls] == ["cache 1", "db 1"]


async def test_a_request_that_takes_the_container_holds_everything() -> None:
    service = Service()

    @service.app.get("/any")
    async def read(container: Annotated[LifespanContainer, Depends(get_container)]) -> list[str]:
        await service.gate.wait()
        return [str(container[service.get_user]), str(container[service.get_cache])]

    async with service.running():
        call = service.call(service.ask, path="/any")
        await service.gate.hold()
        await service.refresh()
        await service.refresh(service.get_cache)
        await settle()
        assert not any(event.startswith("stop") for event in service.log)
        service.gate.open()
        await call.ended.wait()
        assert call.result == '["user 1(db 1)","cache 1"]'
        await settle()
        assert {*service.log} > {"stop user 1", "stop db 1", "stop cache 1"}


async def test_clause_14_a_request_sees_all_old_or_all_new_values() -> None:
    """By a request-scoped dependency, the endpoint and the container, wherever the switch falls."""
    service = Service()
    gates = [Gate(), Gate(), Gate()]

    async def get_session(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")], stop: int
    ) -> Thing:
        if stop == 0:
            await gates[0].wait()
        return db

    async def read(
        stop: int,
        session: Annotated[Thing, Depends(get_session)],
        user: Annotated[Thing, Depends(service.get_user, scope="lifespan")],
        container: Annotated[LifespanContainer, Depends(get_container)],
    ) -> str:
        if stop == 1:
            await gates[1].wait()
        return f"{session} {user} {container[service.get_db]} {container[service.get_user]}"

    service.app.get("/seen/{stop}")(read)
    service.at["start user 2"] = gates[2].wait
    old, new = (f"db {n} user {n}(db {n}) db {n} user {n}(db {n})" for n in (1, 2))
    async with service.running():
        calls = [service.call(service.ask, path=f"/seen/{stop}") for stop in (0, 1)]
        for gate in gates[:2]:
            await gate.hold()
        refresh = service.call(service.refresh)
        await gates[2].hold()  # the new database is there, and nobody sees it
        assert await service.ask("/seen/2") == old
        assert str(service.app.lifespan_container[service.get_db]) == "db 1"
        gates[2].open()
        await refresh.ended.wait()
        assert await service.ask("/seen/2") == new
        for gate in gates:
            gate.open()
        for call in calls:
            await call.ended.wait()
            assert call.result == old


# --- Overrides


@POLICIES
async def test_the_override_of_an_overridden_provider_is_refreshed(policy: Policy) -> None:
    service = Service()
    service.app.dependency_overrides[service.get_db] = service.provider("fake")
    async with service.running():
        await service.refresh(policy=policy)
        assert await service.ask("/session") == "session(fake 2)"
        assert not any(" db " in event for event in service.log)  # nobody has started it
        service.app.dependency_overrides.clear()
        assert await service.ask("/session") == "session(db 1)"


@POLICIES
async def test_an_original_that_is_overridden_stays_as_it_is(policy: Policy) -> None:
    service = Service()
    async with service.running():
        service.app.dependency_overrides[service.get_db] = service.provider("fake")
        await service.ask("/session")
        await (await service.refresh(policy=policy)).wait()
        assert await service.ask("/session") == "session(fake 2)"
        service.app.dependency_overrides.clear()
        assert await service.ask("/session") == "session(db 1)"
        await settle()
        assert service.log.count("stop fake 2") == 1


@POLICIES
async def test_the_dependents_of_an_overridden_provider_are_refreshed_too(policy: Policy) -> None:
    """What waits for the end of an override, and depends on the refreshed, must not be stale."""
    service = Service()
    async with service.running():
        service.app.dependency_overrides[service.get_user] = service.provider("fake")
        assert await service.ask("/user") == "fake 1 session(db 1) fake 1"
        await (await service.refresh(policy=policy)).wait()
        assert await service.ask("/user") == "fake 1 session(db 2) fake 1"
        service.app.dependency_overrides.clear()
        assert await service.ask("/user") == "user 2(db 2) session(db 2) user 2(db 2)"


@POLICIES
async def test_what_an_override_has_kept_from_starting_is_not_started_by_a_refresh(
    policy: Policy,
) -> None:
    service = Service()
    service.app.dependency_overrides[service.get_user] = service.provider("fake")
    async with service.running():
        await service.refresh(policy=policy)
        await settle()
        assert sorted(service.log) == ["start db 2", "stop db 1"]


@POLICIES
@pytest.mark.parametrize("when", ["before the start", "while running"])
async def test_what_depends_on_an_original_and_on_the_refreshed(policy: Policy, when: str) -> None:
    """The page is built on the database, which is overridden, and on the cache, which is not."""
    service = Service()
    get_page = service.provider("page", service.get_db, service.get_cache)

    @service.app.get("/page")
    async def read(page: Annotated[Thing, Depends(get_page, scope="lifespan")]) -> str:
        return str(page)

    fakes = {service.get_db: service.provider("fake")}
    if when == "before the start":
        service.app.dependency_overrides.update(fakes)
    async with service.running():
        service.app.dependency_overrides.update(fakes)
        await service.ask("/page")
        await (await service.refresh(service.get_cache, policy=policy)).wait()
        assert (await service.ask("/page")).endswith("(fake 1, cache 2)")
        service.app.dependency_overrides.clear()
        assert (await service.ask("/page")).endswith("(db 1, cache 2)")


@POLICIES
async def test_an_override_that_is_set_during_a_refresh(policy: Policy) -> None:
    """It starts once, and the original is a fresh one when it goes."""
    service = Service()
    async with service.running():
        starting = Gate()
        service.at["start db 2"] = starting.wait
        refresh = service.call(service.refresh, policy=policy)
        await starting.hold()
        service.app.dependency_overrides[service.get_db] = service.provider("fake")
        request = service.call(service.ask, path="/session")
        await settle()
        starting.open()
        await refresh.ended.wait()
        await request.ended.wait()
        assert (refresh.error, request.result) == (None, "session(fake 1)")
        service.app.dependency_overrides.clear()
        assert await service.ask("/session") == "session(db 2)"


@pytest.mark.parametrize("is_asked_for", [False, True])
async def test_an_override_that_is_set_while_a_refresh_drains(is_asked_for: bool) -> None:
    service = Service()
    async with service.running():
        service.call(service.ask, path="/held")
        await service.gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        service.app.dependency_overrides[service.get_db] = service.provider("fake")
        if is_asked_for:
            assert await service.ask("/session") == "session(fake 1)"
        service.gate.open()
        await refresh.ended.wait()
        assert refresh.error is None
        assert await service.ask("/session") == "session(fake 1)"
        assert service.log.count("start fake 1") == 1
        service.app.dependency_overrides.clear()
        assert await service.ask("/session") == "session(db 2)"


async def test_an_override_that_is_not_valid_cannot_be_refreshed() -> None:
    service = Service()
    not_callable: Any = "fake"
    async with service.running():
        service.app.dependency_overrides[service.get_db] = not_callable
        await service.ask("/cache")
        for policy in (AVAILABILITY, RESOURCE):
            with pytest.raises(RefreshError, match="its override is not valid") as caught:
                await service.refresh(policy=policy)
            assert isinstance(caught.value.__cause__, LifespanDependencyError)
        service.app.dependency_overrides.clear()
        assert await service.ask("/session") == "session(db 1)"


@POLICIES
async def test_an_override_that_failed_to_start_is_brought_back_by_a_refresh(
    policy: Policy,
) -> None:
    """With what depends on it, which failed because of it."""
    service = Service()
    service.at["start fake 1"] = breaks
    async with service.running():
        service.app.dependency_overrides[service.get_db] = service.provider("fake")
        with pytest.raises(LifespanDependencyError, match="failed to start"):
            await service.ask("/user")
        await service.refresh(policy=policy)
        assert await service.ask("/session") == "session(fake 2)"
        assert (await service.ask("/user")).endswith("(fake 2)")
        service.app.dependency_overrides.clear()
        assert await service.ask("/user") == "user 1(db 1) session(db 1) user 1(db 1)"


async def test_an_override_that_is_removed_while_its_refresh_drains() -> None:
    """It can be set again."""
    service = Service()
    fakes = {service.get_db: service.provider("fake")}
    async with service.running():
        service.app.dependency_overrides.update(fakes)
        service.call(service.ask, path="/held")
        await service.gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        service.app.dependency_overrides.clear()
        assert (await service.ask("/session")).startswith("session(db")
        service.gate.open()
        await refresh.ended.wait()
        assert refresh.error is None
        assert (await service.ask("/session")).startswith("session(db")
        service.app.dependency_overrides.update(fakes)
        assert (await service.ask("/session")).startswith("session(fake")


# --- The time that draining may take


@pytest.mark.parametrize("drain_timeout", [0.01, timedelta(milliseconds=10)], ids=["float", "td"])
@POLICIES
async def test_when_the_time_for_draining_is_up_the_old_are_stopped(
    policy: Policy, drain_timeout: float | timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()

    @service.app.get("/late/{name}")
    async def read(user: Annotated[Thing, Depends(service.get_user, scope="lifespan")]) -> str:
        await service.gate.wait()
        return f"{user.name} {user.closed}"

    async with service.running():
        for path in ("/held", "/socket/nothing", "/held", "/held/cache"):
            service.call(service.ask, path=path)
            await settle()
        late = service.call(service.ask, path="/late/name")
        await settle()
        draining = await service.refresh(policy=policy, drain_timeout=drain_timeout)
        await draining.wait()
        stops = [event for event in service.log if event.startswith("stop")]
        assert stops == ["stop user 1", "stop db 1"]
        [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert record.name == "fastapi_lifespan_deps"
        assert record.getMessage() == (
            "The old `db` is stopped after 0.01 seconds, though still used by "
            "GET /held (2 requests), GET /late/{name}"
        )
        assert await service.ask("/session") == "session(db 2)"
        service.gate.open()
        await late.ended.wait()
        assert late.result == "user 1 True"


@pytest.mark.parametrize("drain_timeout", [0, 0.01, 3600])
@POLICIES
async def test_no_warning_when_nothing_holds_the_old(
    policy: Policy, drain_timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the stop itself takes."""
    service = Service()
    stopping, deadline = Gate(), 0.05 if drain_timeout == 0.01 else 0

    async def stop() -> None:
        await stopping.wait()

    service.at["stop db 1"] = stop
    async with service.running():
        refresh = service.call(service.refresh, policy=policy, drain_timeout=drain_timeout)
        await stopping.hold()
        with anyio.move_on_after(deadline):  # more than drain_timeout: it ends meanwhile
            await anyio.Event().wait()
        stopping.open()
        await refresh.ended.wait()
        await refresh.result.wait()
        assert [one.getMessage() for one in caplog.records if one.levelno > logging.INFO] == []


@pytest.mark.parametrize("drain_timeout", [-1, timedelta(seconds=-1), float("nan"), "10"])
@POLICIES
async def test_a_wrong_drain_timeout_is_refused_before_anything_is_touched(
    policy: Policy, drain_timeout: Any
) -> None:
    service = Service()
    async with service.running():
        with pytest.raises((ValueError, TypeError, LifespanDependencyError)):
            await service.refresh(policy=policy, drain_timeout=drain_timeout)
        await settle()
        assert service.log == []
        assert await service.ask("/session") == "session(db 1)"


# --- Several at once


@pytest.mark.parametrize("others", [AVAILABILITY, RESOURCE])
@POLICIES
async def test_concurrent_refreshes_of_one_provider_are_one(
    policy: Policy, others: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    starting = Gate()
    service.at["start db 2"] = starting.wait
    async with service.running():
        service.call(service.ask, path="/held")
        await service.gate.hold()
        # the first call's time limit counts: in the first place the one to come first
        first = service.call(service.refresh, policy=policy, drain_timeout=0.01)
        await settle()
        calls = [service.call(service.refresh, policy=others, drain_timeout=3600) for _ in range(3)]
        await starting.hold()
        calls.append(service.call(service.refresh, policy=others))
        await settle()
        assert ("stop user 1" in service.log) == (policy == RESOURCE)
        starting.open()
        for call in (first, *calls):
            await call.ended.wait()
            assert call.error is None
            assert call.result is first.result
        await first.result.wait()
        starts = [event for event in service.log if event.startswith("start")]
        assert starts == ["start db 2", "start user 2"]
        assert "GET /held" in caplog.text


async def test_all_who_joined_a_refresh_are_told_that_it_has_failed() -> None:
    service = Service()
    starting = Gate()

    async def fail() -> None:
        await starting.wait()
        raise Broken

    service.at["start db 2"] = fail
    async with service.running():
        calls = [service.call(service.refresh) for _ in range(3)]
        await starting.hold()
        starting.open()
        for call in calls:
            await call.ended.wait()
            assert isinstance(call.error, Broken)
        await service.refresh()  # is a new one
        assert await service.ask("/session") == "session(db 3)"


@POLICIES
async def test_refreshes_of_different_providers_run_one_after_the_other(policy: Policy) -> None:
    service = Service()
    gate = Gate()
    service.at["start db 2"] = gate.wait
    async with service.running():
        one = service.call(service.refresh, policy=policy)
        await gate.hold()
        two = service.call(service.refresh, provider=service.get_cache, policy=policy)
        await settle()
        three = service.call(service.refresh, provider=service.get_user, policy=policy)
        await settle()
        assert not any("cache" in event for event in service.log)
        assert not two.ended.is_set()
        gate.open()
        for call in (one, two, three):
            await call.ended.wait()
            await call.result.wait()
        assert await service.ask("/user") == "user 3(db 2) session(db 2) user 3(db 2)"
        assert await service.ask("/cache") == "cache 2"
        starts = [event for event in service.log if event.startswith("start")]
        assert starts == ["start db 2", "start user 2", "start cache 2", "start user 3"]
        assert len(service.log) == 8


@POLICIES
async def test_a_caller_that_is_cancelled_does_not_stop_the_refresh(policy: Policy) -> None:
    service = Service()
    gate = Gate()
    service.at["start db 2"] = gate.wait
    async with service.running():
        first = service.call(service.refresh, policy=policy)
        await gate.hold()
        other = service.call(service.refresh, policy=policy)
        await settle()
        first.cancel_scope.cancel()
        await first.ended.wait()
        gate.open()
        await other.ended.wait()
        assert isinstance(other.result, Draining)
        await other.result.wait()
        assert await service.ask("/session") == "session(db 2)"
        assert len(service.log) == 4


async def test_two_runs_of_one_application_are_refreshed_each_for_itself() -> None:
    service = Service()
    async with service.running():
        outer = service.app.lifespan_container
        async with running(service.app):
            assert await service.ask("/session") == "session(db 2)"
            await service.refresh()
            assert await service.ask("/session") == "session(db 3)"
            assert str(outer[service.get_db]) == "db 1"
            await outer.refresh(service.get_db)
            assert str(outer[service.get_user]) == "user 4(db 4)"
            assert await service.ask("/session") == "session(db 3)"
        assert await service.ask("/session") == "session(db 4)"


# --- When there is nothing to refresh, or it is not the time


@pytest.mark.parametrize("policy", ["availability", "", None])
async def test_an_unknown_policy_is_refused(policy: Any) -> None:
    service = Service()
    async with service.running():
        with pytest.raises(ValueError, match="use one of availability_preserving, resource_pres"):
            await service.refresh(policy=policy)
        assert service.log == []


@POLICIES
async def test_a_provider_that_nothing_declares_is_refused(policy: Policy) -> None:
    service = Service()
    async with service.running():
        with pytest.raises(RefreshError, match="does not declare it") as caught:
            await service.refresh(breaks, policy=policy)
        assert caught.value.provider is breaks
        assert str(caught.value) == (
            "`breaks` cannot be refreshed: the application does not declare it. Give the callable "
            "that a route, a dependency or a hook declares."
        )
        assert service.log == []


@pytest.mark.parametrize("where", ["startup hook", "shutdown hook", "lifespan", "after lifespan"])
async def test_a_refresh_while_starting_or_stopping_is_refused(where: str) -> None:
    service = Service()
    errors: list[str] = []

    async def refresh() -> None:
        with pytest.raises(RefreshError) as caught:
            await service.refresh()
        errors.append(str(caught.value))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if where == "lifespan":
            await refresh()
        yield
        if where == "after lifespan":
            await refresh()

    router: Any = service.app.router
    if "hook" in where:
        router.add_event_handler(where.split()[0], refresh)
    else:
        router.lifespan_context = lifespan
    async with service.running():
        assert await service.ask("/session") == "session(db 1)"
    moment = "starting" if where in ("startup hook", "lifespan") else "stopping"
    assert errors == [
        f"`db` cannot be refreshed: the application is {moment}. Refresh while it serves: after "
        "its startup, and before its shutdown."
    ]
    with pytest.raises(LifespanNotRunning):
        await service.refresh()


async def test_a_container_that_has_outlived_its_application_refreshes_nothing() -> None:
    service = Service()
    async with service.running():
        container = service.app.lifespan_container
    for _ in range(2):
        with pytest.raises(RefreshError, match="the application is stopping"):
            await container.refresh(service.get_db)
        async with service.running():  # another run is not its own
            with pytest.raises(RefreshError):
                await container.refresh(service.get_db)
            assert service.log == []


@pytest.mark.parametrize("event", ["start cache 1", "stop cache 1", "start cache 2"])
@pytest.mark.parametrize("target", ["get_db", "get_cache"])
async def test_a_refresh_by_a_provider_that_starts_or_stops_is_refused(
    event: str, target: str
) -> None:
    """The second start, and the stop, come from a refresh: it would wait for itself."""
    service = Service()
    errors: list[Exception] = []

    async def refresh() -> None:
        try:
            await service.refresh(getattr(service, target))
        except (RefreshError, LifespanNotRunning) as error:
            errors.append(error)

    service.at[event] = refresh
    async with service.running():
        await (await service.refresh(service.get_cache)).wait()
        assert await service.ask("/cache") == "cache 2"
        assert len(errors) == 1
        if event != "start cache 1":
            assert "`cache` asks for it while it starts or stops itself" in str(errors[0])


async def test_a_task_that_a_dependency_has_started_may_refresh_it() -> None:
    """As one that watches a file would do. It may be cancelled by the stop that it causes."""
    service = Service()
    changed, restarted = [anyio.Event(), anyio.Event()], anyio.Event()
    count = 0

    async def get_watched() -> AsyncIterator[int]:
        nonlocal count
        count += 1

        async def watch(event: anyio.Event) -> None:
            await event.wait()
            await service.app.lifespan_container.refresh(get_watched)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, changed[count - 1])
            if count == 2:
                restarted.set()
            yield count
            tasks.cancel_scope.cancel()

    @service.app.get("/watched")
    async def read(watched: Annotated[int, Depends(get_watched, scope="lifespan")]) -> int:
        return watched

    async with service.running():
        changed[0].set()
        await restarted.wait()
        await settle()
        assert await service.ask("/watched") == "2"


async def test_a_task_of_a_dependency_cannot_wait_for_the_end_of_that() -> None:
    """Nor for that of what depends on it: it would wait for itself, and the shutdown for it."""
    app = LifespanFastAPI()
    refused: list[RefreshError] = []
    begin, stop, refreshed = anyio.Event(), anyio.Event(), anyio.Event()

    async def get_below() -> Thing:
        return Thing("below")

    async def get_value(
        below: Annotated[Thing, Depends(get_below, scope="lifespan")],
    ) -> AsyncIterator[Thing]:
        async def work() -> None:
            await begin.wait()
            container = app.lifespan_container
            if not refused:
                with pytest.raises(RefreshError, match="get_value` asks for it") as error:
                    await container.refresh(get_below, policy=RESOURCE)
                refused.append(error.value)
                draining = await container.refresh(get_below)
                with pytest.raises(RefreshError, match="it is the old value that waits"):
                    await draining.wait()
                refreshed.set()
            await stop.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield Thing("value", below)
            stop.set()

    app.get("/", dependencies=[Depends(get_value, scope="lifespan")])(lambda: None)
    with anyio.fail_after(10):
        async with running(app):
            begin.set()
            await refreshed.wait()
    assert refused[0].provider is get_below


async def test_a_value_that_was_stopped_is_not_served_because_it_was_before() -> None:
    """Clause 10: what a generation has worked out for its requests is forgotten, too."""
    app, gate, log = LifespanFastAPI(), Gate(), list[str]()
    get_value = provider("value", log)
    uses_value = Depends(get_value, scope="lifespan")

    async def get_ready(slow: bool = False) -> None:
        if slow:
            await gate.wait()

    @app.get("/", dependencies=[Depends(get_ready)])
    async def read(value: Annotated[Thing, uses_value]) -> str:
        return str(value)

    async def ask_slowly() -> None:
        with pytest.raises(UninitializedLifespanDependency, match="it has been stopped"):
            await client.get("/", params={"slow": True})

    with anyio.fail_after(10):
        async with running(app) as client, anyio.create_task_group() as tasks:
            assert (await client.get("/")).json() == "value"
            tasks.start_soon(ask_slowly)
            await gate.hold()
            draining = await app.lifespan_container.refresh(get_value, drain_timeout=0)
            await draining.wait()
            gate.open()


async def test_a_refresh_that_fails_when_its_caller_has_gone_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, gate = LifespanFastAPI(), Gate()
    values = [Thing("value")]

    async def get_value() -> Thing:
        if not values:
            await gate.wait()
            raise LookupError("not found")
        return values.pop()

    app.get("/", dependencies=[Depends(get_value, scope="lifespan")])(lambda: None)
    with anyio.fail_after(10):
        async with running(app):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(app.lifespan_container.refresh, get_value)
                await gate.hold()
                tasks.cancel_scope.cancel()
            gate.open()
            await settle()
    assert "LookupError: not found" in caplog.text


async def test_the_end_of_what_a_lifespan_function_keeps_cannot_be_waited_for() -> None:
    get_value = provider("value", [])

    @asynccontextmanager
    async def lifespan(
        app: FastAPI, value: Annotated[Thing, Depends(get_value, scope="lifespan")]
    ) -> AsyncIterator[None]:
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    with anyio.fail_after(10):
        async with running(app):
            draining = await app.lifespan_container.refresh(get_value)
            with pytest.raises(RefreshError, match="uses it until the application stops"):
                await draining.wait()


async def test_the_warning_names_routes_as_they_are_included(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    get_value = provider("value", [])
    uses_value = Depends(get_value, scope="lifespan")
    app, router = LifespanFastAPI(), APIRouter(prefix="/router")

    @router.get("/held/{name}")
    async def held(name: str, value: Annotated[Thing, uses_value]) -> None:
        await gate.wait()

    @router.websocket("/socket")
    async def socket(websocket: WebSocket, value: Annotated[Thing, uses_value]) -> None:
        await gate.wait()

    app.include_router(router, prefix="/api")
    with anyio.fail_after(10):
        async with running(app) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/api/router/held/one")
            tasks.start_soon(listen, app, "/api/router/socket", [])
            await settle()
            draining = await app.lifespan_container.refresh(get_value, drain_timeout=0)
            await draining.wait()
            gate.open()
    for label in ("GET /api/router/held/{name}", "WEBSOCKET /api/router/socket"):
        assert label in caplog.text
