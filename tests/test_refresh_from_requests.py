"""A refresh that a request asks for: it never waits for that request."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_lifespan_deps import (
    Depends,
    Draining,
    LifespanContainer,
    RefreshError,
    get_container,
)
from fastapi_lifespan_deps.live.refresh import Policy
from tests.clients import Gate, Thing, client_of, running, settle
from tests.refreshing import AVAILABILITY, POLICIES, RESOURCE, Service, connect

pytestmark = pytest.mark.anyio

Container = Annotated[LifespanContainer, Depends(get_container)]
WAYS = ["container", "application", "child task", "thread", "nested request"]


class Asking(Service):
    """Routes that ask for a refresh of the database: `/holding...` use it, `/admin...` don't."""

    def __init__(self, how: str = "container", policy: Policy = AVAILABILITY) -> None:
        super().__init__()
        self.how = how
        self.options: dict[str, Any] = {"policy": policy}
        self.seen: list[str] = []
        app, get_db = self.app, self.get_db
        uses_db = Depends(get_db, scope="lifespan")

        async def get_session(db: Annotated[Thing, uses_db]) -> Thing:
            return db

        async def get_refreshed(container: Container) -> None:
            await self.refresh_by(container)

        @app.get("/holding")
        async def holding(db: Annotated[Thing, uses_db], container: Container) -> str:
            await self.refresh_by(container)
            return f"{db} {container[get_db]}"

        @app.get("/holding/sync")
        def holding_sync(db: Annotated[Thing, uses_db], container: Container) -> str:
            anyio.from_thread.run(self.refresh_by, container)
            return f"{db} {container[get_db]}"

        @app.get("/holding/session")
        async def holding_session(
            session: Annotated[Thing, Depends(get_session)], container: Container
        ) -> str:
            await self.refresh_by(container)
            return f"{session} {container[get_db]}"

        @app.get("/holding/user")
        async def holding_user(
            user: Annotated[Thing, Depends(self.get_user, scope="lifespan")], container: Container
        ) -> str:
            await self.refresh_by(container)
            return f"{user.parts[0]} {container[get_db]}"

        @app.get("/holding/dependency", dependencies=[Depends(get_refreshed)])
        async def holding_dependency(db: Annotated[Thing, uses_db], container: Container) -> str:
            return f"{db} {container[get_db]}"

        @app.get("/holding/stream")
        async def holding_stream(
            db: Annotated[Thing, uses_db], container: Container
        ) -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                await self.refresh_by(container)
                yield f"{db} {container[get_db]}"

            return StreamingResponse(chunks())

        @app.get("/holding/background")
        async def holding_background(
            db: Annotated[Thing, uses_db], container: Container, tasks: BackgroundTasks
        ) -> None:
            async def refresh() -> None:
                await self.refresh_by(container)
                self.seen.append(f"{db} {container[get_db]}")

            tasks.add_task(refresh)

        @app.websocket("/socket/holding")
        async def holding_socket(
            websocket: WebSocket, db: Annotated[Thing, uses_db], container: Container
        ) -> None:
            await self.refresh_by(container)
            await websocket.accept()
            await websocket.send_text(f"{db} {container[get_db]}")
            await websocket.close()

        @app.get("/admin")
        async def admin(container: Container) -> str:
            await container.refresh(get_db, **self.options)
            return str(container[get_db])

        @app.get("/admin/how")
        async def admin_how(container: Container) -> str:
            await self.refresh_by(container)
            return str(container[get_db])

        @app.get("/admin/bare")
        async def admin_bare() -> str:
            await self.refresh(**self.options)
            return str(app.lifespan_container[get_db])

        @app.websocket("/socket/admin")
        async def admin_socket(websocket: WebSocket, container: Container) -> None:
            await websocket.accept()
            await self.refresh_by(container)
            await websocket.send_text(str(container[get_db]))
            await websocket.close()

    async def refresh_by(self, container: LifespanContainer) -> None:
        """Ask in one of the ways in which code of a request may ask."""
        refresh = partial(container.refresh, self.get_db, **self.options)
        if self.how == "container":
            await refresh()
        elif self.how == "application":
            await self.refresh(**self.options)
        elif self.how == "child task":
            errors: list[RefreshError] = []

            async def child() -> None:
                try:
                    await refresh()
                except RefreshError as error:
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
            for error in errors:
                raise error
        elif self.how == "thread":
            await anyio.to_thread.run_sync(anyio.from_thread.run, refresh)
        else:
            async with client_of(self.app) as client:
                await client.get("/admin")
        if self.options["policy"] == AVAILABILITY:
            assert not any(thing.closed for thing in self.things if thing.name == "db 1")


# A task of its own asks here; so nobody knows it for the request's, unless by its container.
OWN_TASK = ("/holding/sync", "/holding/stream")

HOLDING = [
    "/holding",
    "/holding/sync",
    "/holding/session",
    "/holding/user",
    "/holding/dependency",
    "/holding/stream",
    "/holding/background",
    "/socket/holding",
]

KNOWN = [
    (path, how)
    for path in HOLDING
    for how in WAYS
    if path not in OWN_TASK or how not in ("application", "nested request")
]
# Where it matters little who asks how: each who, and each how.
SOME = [*((path, "container") for path in HOLDING), *(("/holding", how) for how in WAYS[1:])]


def copying(app: Any) -> Any:
    """A middleware that gives what is inside a scope of its own."""

    async def copied(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope}, receive, send)

    return copied


# --- With the default policy


@pytest.mark.parametrize(("path", "how"), SOME)
async def test_clause_14_who_asks_keeps_what_it_was_given_and_its_container_has_the_new(
    path: str, how: str
) -> None:
    service = Asking(how)
    async with service.running():
        text = await service.ask(path)
        seen = service.seen if path == "/holding/background" else [text]
        assert seen == ["db 1 db 2"]
        await settle()
        # and not one instance more than that
        assert sorted(service.log) == ["start db 2", "start user 2", "stop db 1", "stop user 1"]


@pytest.mark.parametrize(("path", "how"), SOME)
async def test_the_same_behind_a_middleware_that_copies_the_scope(path: str, how: str) -> None:
    service = Asking(how)
    service.app.add_middleware(copying)
    async with service.running():
        text = await service.ask(path)
        seen = service.seen if path == "/holding/background" else [text]
        assert seen == ["db 1 db 2"]
        await settle()
        assert sorted(service.log) == ["start db 2", "start user 2", "stop db 1", "stop user 1"]


@POLICIES
async def test_others_are_not_let_go_for_the_request_that_asks(policy: Policy) -> None:
    service = Asking(policy=policy)
    gate = Gate()

    @service.app.get("/other")
    async def other(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        await gate.wait()
        return str(db)

    async with service.running():
        call = service.call(service.ask, path="/other")
        await gate.hold()
        admin = service.call(service.ask, path="/admin")
        await settle()
        assert admin.ended.is_set() == (policy == AVAILABILITY)
        assert "stop db 1" not in service.log
        gate.open()
        await call.ended.wait()
        await admin.ended.wait()
        assert (call.result, admin.result) == ("db 1", "db 2")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_middleware_may_ask(when: str) -> None:
    """What the route is given is alive, whether it is old or new."""
    service = Asking()
    refreshes: list[Draining] = []

    @service.app.middleware("http")
    async def refresh(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
        if when == "before":
            refreshes.append(await service.refresh())
        response = await call_next(request)
        if when == "after":
            refreshes.append(await service.refresh())
        return response

    async with service.running():
        text = await service.ask("/user")
        number = 2 if when == "before" else 1
        assert text == f"user {number}(db {number}) session(db {number}) user {number}(db {number})"
        await refreshes[0].wait()
        assert sorted(service.log) == ["start db 2", "start user 2", "stop db 1", "stop user 1"]


# --- Resource-preserving


@pytest.mark.parametrize(("path", "how"), KNOWN)
async def test_resource_preserving_is_refused_to_a_request_that_uses_the_value(
    path: str, how: str
) -> None:
    service = Asking(how, RESOURCE)
    async with service.running():
        for drain_timeout in (None, 0.01):
            service.options["drain_timeout"] = drain_timeout
            with pytest.raises(RefreshError) as caught:
                await service.ask(path)
            assert caught.value.provider is service.get_db
            kind = "WEBSOCKET" if path.startswith("/socket") else "GET"
            assert str(caught.value) == (
                f"`db` cannot be refreshed: the request that asks for it, {kind} {path}, uses the "
                "value itself, and would wait for its own end. Ask from a route that does not "
                'declare the value, or with policy="availability_preserving".'
            )
        await settle()
        assert service.log == []
        assert await service.ask("/session") == "session(db 1)"


@pytest.mark.parametrize(("path", "how"), SOME)
async def test_it_is_refused_behind_a_middleware_that_copies_the_scope(path: str, how: str) -> None:
    service = Asking(how, RESOURCE)
    service.app.add_middleware(copying)
    async with service.running():
        with pytest.raises(RefreshError, match="would wait for its own end"):
            await service.ask(path)
        await settle()
        assert service.log == []


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/admin", "container"),
        ("/admin/bare", "application"),
        *((path, how) for path in ("/admin/how", "/socket/admin") for how in WAYS),
    ],
)
async def test_resource_preserving_for_a_request_that_does_not_use_the_value(
    path: str, how: str
) -> None:
    """It lets go of what only its container could give it."""
    service = Asking(how, RESOURCE)
    async with service.running():
        assert await service.ask(path) == "db 2"
        assert service.log == ["stop user 1", "stop db 1", "start db 2", "start user 2"]


async def test_an_admin_route_behind_a_middleware_that_copies_the_scope() -> None:
    service = Asking(policy=RESOURCE)
    service.app.add_middleware(copying)
    async with service.running():
        assert await service.ask("/admin") == "db 2"
        assert await service.ask("/admin/bare") == "db 3"


async def test_resource_preserving_asked_for_by_a_middleware() -> None:
    """Around the request, which holds nothing before it gets to the router."""
    service = Asking()

    @service.app.middleware("http")
    async def refresh(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
        await service.refresh(policy=RESOURCE)
        return await call_next(request)

    async with service.running():
        assert await service.ask("/session") == "session(db 2)"


async def test_a_mounted_application_whose_middleware_copies_the_scope() -> None:
    """Only the container knows the copy."""
    service = Asking(policy=RESOURCE)
    inner = FastAPI()
    inner.add_middleware(copying)
    service.app.mount("/in", inner)

    @inner.get("/container")
    async def by_container(container: Container) -> str:
        await container.refresh(service.get_db)
        return str(container[service.get_db])

    @inner.get("/db")
    async def declare(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> None:
        pass

    @inner.get("/bare")
    async def bare() -> None:
        # with FastAPI 0.136.3 and Starlette 1.x, what is known of the route is the mount
        with pytest.raises(RefreshError, match=r"GET /in(/bare)?, may use the value itself"):
            await service.refresh(policy=RESOURCE)

    async with service.running():
        assert await service.ask("/in/container") == "db 2"
        await service.ask("/in/bare")


async def test_clause_10_who_waits_for_himself_unknown_to_us_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.live.refresh.PATIENCE", 0.01)
    service = Asking("application", RESOURCE)
    service.options["drain_timeout"] = 0.2
    async with service.running():
        # in the end it uses what was stopped
        await service.call(service.ask, path="/holding/stream").ended.wait()
        path = "GET /holding/stream"
        told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        waits = f"The old `db` is still waited for; it is used by {path}"
        stops = f"The old `db` is stopped after 0.2 seconds, though still used by {path}"
        # the first once more, if it takes long to stop
        assert told[:2] == [waits, stops]
        assert set(told) == {waits, stops}


@pytest.mark.parametrize("is_held", [True, False])
async def test_clause_10_who_waits_long_is_told_for_what(
    is_held: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.live.refresh.PATIENCE", 0.01)
    service, stopping = Asking(), Gate()
    service.at["stop user 1"] = stopping.wait
    async with service.running():
        if is_held:
            service.call(service.ask, path="/held")
            await service.gate.hold()
        draining = await service.refresh()
        await stopping.hold()
        wait = service.call(draining.wait)
        with anyio.fail_after(5):
            while "still waited for" not in caplog.text:
                await anyio.lowlevel.checkpoint()
        user = "GET /held" if is_held else "nobody, and takes its time to stop"
        assert caplog.messages[-1] == f"The old `db` is still waited for; it is used by {user}"
        service.gate.open()
        stopping.open()
        await wait.ended.wait()
        assert wait.error is None


async def test_a_task_that_outlives_the_request_which_started_it_may_ask() -> None:
    service = Asking()
    ended, results = anyio.Event(), list[Draining]()

    @service.app.get("/later")
    async def later(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")], request: Request
    ) -> None:
        async def refresh() -> None:
            await ended.wait()
            results.append(await service.refresh(policy=RESOURCE))

        request.app.state.tasks.start_soon(refresh)

    async with service.running(), anyio.create_task_group() as tasks:
        service.app.state.tasks = tasks
        await service.ask("/later")
        ended.set()
        await settle()
        assert len(results) == 1
        assert await service.ask("/session") == "session(db 2)"


# --- Requests that join a refresh which waits for them, or queue behind it


@pytest.mark.parametrize("others", [AVAILABILITY, RESOURCE])
async def test_a_request_that_is_waited_for_cannot_join_the_refresh(others: Policy) -> None:
    service = Asking()
    gate = Gate()

    @service.app.get("/join")
    async def join(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")], container: Container
    ) -> str:
        await gate.wait()
        with pytest.raises(RefreshError, match="uses the value itself"):
            await container.refresh(service.get_db, policy=others)
        return str(db)

    async with service.running():
        call = service.call(service.ask, path="/join")
        await gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        gate.open()
        await refresh.ended.wait()
        assert (refresh.error, call.result) == (None, "db 1")


@pytest.mark.parametrize("others", [AVAILABILITY, RESOURCE])
async def test_a_request_with_a_container_lets_go_when_it_joins_a_refresh(others: Policy) -> None:
    service = Asking()
    gate = Gate()

    @service.app.get("/join")
    async def join(container: Container) -> str:
        await gate.wait()
        await container.refresh(service.get_db, policy=others)
        return str(container[service.get_db])

    async with service.running():
        call = service.call(service.ask, path="/join")
        await gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        assert service.log == []
        gate.open()
        await refresh.ended.wait()
        await call.ended.wait()
        assert (refresh.error, call.error, call.result) == (None, None, "db 2")


@pytest.mark.parametrize("target", ["get_cache", "get_user"])
@POLICIES
async def test_a_request_that_is_waited_for_cannot_queue_behind_that_refresh(
    target: str, policy: Policy
) -> None:
    """Refreshes run one after the other: this one would wait for the end of the request."""
    service = Asking()
    gate = Gate()

    @service.app.get("/queue")
    async def queue(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")], container: Container
    ) -> str:
        await gate.wait()
        try:
            await container.refresh(getattr(service, target), policy=policy)
        except RefreshError:
            return "refused"
        return "refreshed"

    async with service.running():
        call = service.call(service.ask, path="/queue")
        await gate.hold()
        refresh = service.call(service.refresh, policy=RESOURCE)
        await settle()
        gate.open()
        await refresh.ended.wait()
        await call.ended.wait()
        assert (refresh.error, call.error) == (None, None)
        assert call.result in ("refused", "refreshed")
        assert await service.ask("/session") == "session(db 2)"


async def test_two_requests_that_ask_for_the_value_of_each_other() -> None:
    service = Asking()
    gate = Gate()
    ready = [anyio.Event(), anyio.Event()]

    async def swap(container: LifespanContainer, number: int) -> str:
        ready[number].set()
        await gate.wait()
        try:
            target = service.get_cache if number == 0 else service.get_db
            await container.refresh(target, policy=RESOURCE)
        except RefreshError:
            return "refused"
        return "refreshed"

    @service.app.get("/swap/db")
    async def swap_db(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")], container: Container
    ) -> str:
        return await swap(container, 0)

    @service.app.get("/swap/cache")
    async def swap_cache(
        cache: Annotated[Thing, Depends(service.get_cache, scope="lifespan")], container: Container
    ) -> str:
        return await swap(container, 1)

    async with service.running():
        calls = [service.call(service.ask, path=path) for path in ("/swap/db", "/swap/cache")]
        for event in ready:
            await event.wait()
        gate.open()
        for call in calls:
            await call.ended.wait()
            assert call.result in ("refused", "refreshed")


# --- Waiting for the end of the old


async def test_a_request_cannot_wait_for_the_end_of_a_value_that_it_uses() -> None:
    service = Asking()

    @service.app.get("/wait")
    async def wait(
        user: Annotated[Thing, Depends(service.get_user, scope="lifespan")], container: Container
    ) -> str:
        draining = await container.refresh(service.get_db)
        with pytest.raises(RefreshError) as caught:
            await draining.wait()
        assert str(caught.value) == (
            "`db` has an old value whose end cannot be awaited: the request that waits, GET /wait, "
            "uses the old value itself. Wait outside of the request, in a task that it has not "
            "started."
        )
        return str(user)

    async with service.running():
        assert await service.ask("/wait") == "user 1(db 1)"


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("is_held", [False, True])
async def test_a_request_that_does_not_use_it_may_wait(is_held: bool, copies: bool) -> None:
    service = Asking()
    if copies:
        service.app.add_middleware(copying)

    @service.app.get("/wait")
    async def wait(container: Container) -> list[str]:
        await (await container.refresh(service.get_db)).wait()
        return service.log

    async with service.running():
        if is_held:
            service.call(service.ask, path="/held")
            await service.gate.hold()
        call = service.call(service.ask, path="/wait")
        await settle()
        assert [e for e in service.log if e.startswith("stop")] == (
            ["stop user 1"] if is_held else ["stop user 1", "stop db 1"]
        )
        assert call.ended.is_set() != is_held
        service.gate.open()
        await call.ended.wait()
        assert '"stop user 1","stop db 1"' in call.result


# --- Lifespan functions and hooks that take the value


def with_lifespan(service: Service, closed: list[bool]) -> None:
    @asynccontextmanager
    async def lifespan(
        app: FastAPI, db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]
    ) -> AsyncIterator[None]:
        yield
        closed.append(db.closed)

    router: Any = service.app.router  # typed for lifespans that take the application alone
    router.lifespan_context = lifespan


async def test_a_lifespan_function_keeps_what_it_was_given() -> None:
    """Clause 8."""
    service = Asking()
    closed: list[bool] = []
    with_lifespan(service, closed)
    async with service.running():
        draining = await service.refresh()
        await settle()
        assert service.log == ["start db 2", "start user 2", "stop user 1"]
        assert await service.ask("/session") == "session(db 2)"
    await draining.wait()
    assert closed == [False]


async def test_resource_preserving_is_refused_if_a_lifespan_function_holds_the_value() -> None:
    service = Asking()
    with_lifespan(service, [])
    async with service.running():
        with pytest.raises(RefreshError) as caught:
            await service.refresh(policy=RESOURCE)
        assert str(caught.value) == (
            "`db` cannot be refreshed: `with_lifespan.<locals>.lifespan` uses the value until the "
            "application stops. Give a drain_timeout, take the value out of its parameters, or use "
            'policy="availability_preserving".'
        )
        assert service.log == []


@POLICIES
async def test_a_drain_timeout_takes_the_value_from_a_lifespan_function(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    service = Asking()
    closed: list[bool] = []
    with_lifespan(service, closed)
    async with service.running():
        await (await service.refresh(policy=policy, drain_timeout=0.01)).wait()
        [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert record.getMessage().endswith("used by `with_lifespan.<locals>.lifespan`")
    assert closed == [True]


@POLICIES
async def test_who_joins_a_refresh_needs_no_time_limit_of_his_own(policy: Policy) -> None:
    service = Asking()
    with_lifespan(service, [])
    stopping = Gate()
    service.at["stop db 1"] = stopping.wait
    async with service.running():
        first = service.call(service.refresh, policy=RESOURCE, drain_timeout=0.01)
        await stopping.hold()
        second = service.call(service.refresh, policy=policy)
        await settle()
        stopping.open()
        await first.ended.wait()
        await second.ended.wait()
        assert (first.error, second.error) == (None, None)
        assert second.result is first.result


async def test_a_hook_holds_nothing_once_it_has_run() -> None:
    service = Asking()
    seen: list[str] = []

    def note(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> None:
        seen.append(str(db))

    router: Any = service.app.router  # typed for hooks that take nothing
    router.add_event_handler("startup", note)
    router.add_event_handler("shutdown", note)
    async with service.running():
        await service.refresh(policy=RESOURCE)
    assert seen == ["db 1", "db 2"]


# --- Applications inside, and beside, each other


@POLICIES
async def test_a_request_that_has_another_application_refresh_keeps_its_own_values(
    policy: Policy,
) -> None:
    service, gate = Asking(), Gate()
    other = Asking(policy=policy)

    @service.app.get("/other")
    async def ask_other(container: Container) -> list[str]:
        before = str(container[service.get_db])
        async with client_of(other.app) as client:
            answer = await client.get("/admin")
        await gate.wait()
        return [before, answer.json(), str(container[service.get_db])]

    async with other.running(), service.running():
        call = service.call(service.ask, path="/other")
        await gate.hold()
        await service.refresh()
        gate.open()
        await call.ended.wait()
        assert (call.error, call.result) == (None, '["db 1","db 2","db 1"]')


async def test_an_application_that_gets_the_scope_of_another_one_passed_on() -> None:
    """As from a function that is mounted, and that runs the inner application by itself."""
    service, inner = Asking(), Asking(policy=RESOURCE)

    async def pass_on(scope: Any, receive: Any, send: Any) -> None:
        await inner.app(scope, receive, send)

    service.app.mount("/inner", pass_on)
    async with running(inner.app), service.running():
        assert await service.ask("/inner/admin") == "db 2"
        assert await service.ask("/session") == "session(db 1)"


async def test_a_websocket_asks_while_another_one_holds() -> None:
    service = Asking()
    async with service.running():
        holder = service.call(connect, app=service.app, path="/socket")
        await service.gate.hold()
        assert await service.ask("/socket/admin") == "db 2"
        await settle()
        assert "stop db 1" not in service.log
        service.gate.open()
        await holder.ended.wait()
        await settle()
        assert service.log[-1] == "stop db 1"
