"""Clause 9: overrides that change while the application runs."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import fastapi
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)
from tests.clients import Gate, Thing, client_of, listen, provider, running, settle

pytestmark = pytest.mark.anyio


class Service:
    """An application with a database, a user of it, and a cache that has to do with neither."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.get_db = get_db = provider("db", self.log)
        self.get_cache = get_cache = provider("cache", self.log)

        async def get_user(
            db: Annotated[Thing, Depends(get_db, scope="lifespan")],
        ) -> AsyncIterator[Thing]:
            self.log.append(f"start user of {db}")
            yield Thing("user", db)
            self.log.append(f"stop user of {db}")

        async def get_session(db: Annotated[Thing, Depends(get_db, scope="lifespan")]) -> Thing:
            return Thing("session", db)

        self.get_user, self.get_session = get_user, get_session
        self.app = app = LifespanFastAPI()
        self.gate = Gate()

        uses_db = Depends(get_db, scope="lifespan")
        uses_user = Depends(get_user, scope="lifespan")
        uses_session = Depends(get_session)

        @app.get("/user")
        async def read_user(
            user: Annotated[Thing, uses_user], session: Annotated[Thing, uses_session]
        ) -> str:
            return f"{user} {session}"

        @app.get("/cache")
        async def read_cache(cache: Annotated[Thing, Depends(get_cache, scope="lifespan")]) -> str:
            return str(cache)

        @app.get("/held")
        async def read_held(db: Annotated[Thing, uses_db]) -> str:
            before = str(db)
            await self.gate.wait()
            return f"{before} {db}"

        @app.get("/stream")
        async def stream(db: Annotated[Thing, uses_db]) -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                yield f"{db} "
                await self.gate.wait()
                yield str(db)

            return StreamingResponse(chunks())

        @app.get("/background")
        async def background(db: Annotated[Thing, uses_db], tasks: BackgroundTasks) -> str:
            async def work() -> None:
                await self.gate.wait()
                self.log.append(f"background with {db}")

            tasks.add_task(work)
            return str(db)

        @app.websocket("/socket")
        async def socket(websocket: WebSocket, db: Annotated[Thing, uses_db]) -> None:
            await websocket.accept()
            await websocket.send_text(str(db))
            await self.gate.wait()
            await websocket.send_text(str(db))
            await websocket.close()

    @property
    def overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        return self.app.dependency_overrides

    def fake(self, name: str) -> Callable[..., Any]:
        return provider(name, self.log)

    async def started(self, action: Callable[[], Any]) -> list[str]:
        """What starts and stops because of `action` and the request after it."""
        self.log.clear()
        action()
        async with client_of(self.app) as client:
            await client.get("/user")
        await settle()
        return self.log.copy()


async def test_set_replaced_and_removed() -> None:
    service = Service()
    async with running(service.app) as client:
        assert service.log == ["start db", "start user of db", "start cache"]
        assert (await client.get("/user")).json() == "user(db) session(db)"

        changes = await service.started(
            lambda: service.overrides.update({service.get_db: service.fake("one")})
        )
        assert changes == ["start one", "start user of one"]
        assert (await client.get("/user")).json() == "user(one) session(one)"

        changes = await service.started(
            lambda: service.overrides.update({service.get_db: service.fake("two")})
        )
        assert changes == ["start two", "start user of two", "stop user of one", "stop one"]
        assert (await client.get("/user")).json() == "user(two) session(two)"

        changes = await service.started(lambda: service.overrides.pop(service.get_db))
        assert changes == ["stop user of two", "stop two"]
        assert (await client.get("/user")).json() == "user(db) session(db)"
        service.log.clear()
    assert service.log == ["stop cache", "stop user of db", "stop db"]


@pytest.mark.parametrize("how", ["removed", "cleared", "assigned", "none"])
async def test_every_way_to_change_the_dict_is_seen(how: str) -> None:
    service = Service()
    service.gate.open()
    async with running(service.app) as client:
        fakes = {service.get_db: service.fake("fake")}
        if how == "assigned":
            service.app.dependency_overrides = fakes
        else:
            service.overrides.update(fakes)
        assert (await client.get("/held")).json() == "fake fake"
        if how == "removed":
            del service.overrides[service.get_db]
        elif how == "cleared":
            service.overrides.clear()
        else:
            service.app.dependency_overrides = {} if how == "assigned" else None  # type: ignore[assignment] # FastAPI takes it
        assert (await client.get("/held")).json() == "db db"
        await settle()
        assert service.log.count("stop fake") == 1
        assert "stop db" not in service.log


async def test_the_same_fake_may_come_again() -> None:
    service = Service()
    fake = service.fake("fake")
    async with running(service.app) as client:
        for _ in range(3):
            service.overrides[service.get_db] = fake
            assert (await client.get("/user")).json() == "user(fake) session(fake)"
            service.overrides.clear()
            assert (await client.get("/user")).json() == "user(db) session(db)"
            await settle()
    assert service.log.count("start fake") == service.log.count("stop fake") == 3
    assert service.log.count("start db") == 1


async def test_an_override_that_changes_nothing_starts_nothing() -> None:
    service = Service()
    async with running(service.app) as client:
        service.log.clear()
        service.overrides[service.get_db] = service.get_db
        service.overrides[lambda: None] = service.fake("unused")
        assert (await client.get("/user")).json() == "user(db) session(db)"
        await settle()
        assert service.log == []


async def test_an_original_that_an_override_kept_from_starting_starts_when_it_goes() -> None:
    service = Service()
    service.overrides[service.get_db] = service.fake("fake")
    async with running(service.app) as client:
        changes = await service.started(service.overrides.clear)
        assert changes == ["start db", "start user of db", "stop user of fake", "stop fake"]
        assert (await client.get("/user")).json() == "user(db) session(db)"


async def test_concurrent_first_requests_start_a_fake_once() -> None:
    service = Service()
    gate = Gate()

    async def fake() -> AsyncIterator[Thing]:
        service.log.append("start fake")
        await gate.wait()
        yield Thing("fake")
        service.log.append("stop fake")

    answers: list[str] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/user")).json())

    async with running(service.app) as client:
        service.overrides[service.get_db] = fake
        service.log.clear()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, client)
            await gate.hold()
            await settle()
            assert answers == []
            gate.open()
        assert answers == ["user(fake) session(fake)"] * 20
        assert service.log == ["start fake", "start user of fake"]
    assert service.log.count("stop fake") == 1


async def test_requests_that_arrived_before_go_on_while_a_fake_starts() -> None:
    service = Service()
    gate = Gate()

    async def fake() -> Thing:
        await gate.wait()
        return Thing("fake")

    answers: dict[str, str] = {}

    async def ask(client: httpx.AsyncClient, name: str, path: str) -> None:
        answers[name] = (await client.get(path)).json()

    async with running(service.app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, client, "early", "/held")
        await service.gate.hold()
        service.overrides[service.get_db] = fake
        tasks.start_soon(ask, client, "late", "/user")
        await gate.hold()
        service.gate.open()
        await settle()
        assert answers == {"early": "db db"}
        gate.open()
    assert answers == {"early": "db db", "late": "user(fake) session(fake)"}


@pytest.mark.parametrize("path", ["/held", "/stream", "/background", "/socket"])
async def test_a_fake_stops_when_its_last_request_has_ended(path: str) -> None:
    service = Service()
    answers: list[str] = []

    async def ask(client: httpx.AsyncClient) -> None:
        if path == "/socket":
            await listen(service.app, path, answers)
        else:
            answers.append((await client.get(path)).text.strip('"'))

    async with running(service.app) as client:
        service.overrides[service.get_db] = service.fake("fake")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client)
            tasks.start_soon(ask, client)
            await settle()
            changes = await service.started(service.overrides.clear)
            # Its user is not held by these requests.
            assert changes == ["stop user of fake"]
            service.gate.open()
        await settle()
        # Code after the `yield` of a fake runs once.
        assert service.log.count("stop fake") == 1
        assert service.log[-1] == "stop fake"
    expected = {
        "/held": ["fake fake"] * 2,
        "/stream": ["fake fake"] * 2,
        "/background": ["fake"] * 2,
        "/socket": ["fake"] * 4,
    }
    assert answers == expected[path]
    assert service.log.count("background with fake") == (2 if path == "/background" else 0)
    assert service.log.count("stop fake") == 1


async def test_a_fake_stops_after_what_depends_on_it_even_when_they_are_dropped_in_turn() -> None:
    """Clause 6: code after `yield` runs with the things it depends on still alive."""
    service = Service()
    leaving = Gate()
    alive: list[bool] = []

    async def fake_user(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> AsyncIterator[Thing]:
        yield Thing("fake user", db)
        await leaving.wait()
        alive.append(not db.closed)

    async with running(service.app) as client, anyio.create_task_group() as tasks:
        service.overrides.update(
            {service.get_db: service.fake("fake"), service.get_user: fake_user}
        )
        tasks.start_soon(client.get, "/held")
        await service.gate.hold()
        service.overrides.clear()
        await client.get("/cache")
        await leaving.hold()  # the fake user is not held by the request, and stops
        service.gate.open()
        await settle()  # the request ends: nobody needs the fake database any more
        leaving.open()
    assert alive == [True]
    assert service.log.count("stop fake") == 1


async def test_a_fake_that_sends_a_request_while_it_starts_gets_the_values_before() -> None:
    """It would wait for itself if the request waited for the overrides that are set."""
    service = Service()
    answers: list[str] = []

    async def fake() -> Thing:
        async with client_of(service.app) as client:
            answers.append((await client.get("/user")).json())
        return Thing("fake")

    with anyio.fail_after(10):
        async with running(service.app) as client:
            service.overrides[service.get_db] = fake
            assert (await client.get("/user")).json() == "user(fake) session(fake)"
    assert answers == ["user(db) session(db)"]


async def test_request_scoped_overrides_that_need_lifespan_dependencies() -> None:
    service = Service()
    get_extra = service.fake("extra")

    async def inner(cache: Annotated[Thing, Depends(service.get_cache, scope="lifespan")]) -> Thing:
        raise AssertionError("inner is overridden")

    def fake_inner(extra: Annotated[Thing, Depends(get_extra, scope="lifespan")]) -> Thing:
        return Thing("inner", extra)

    def fake_session(
        request: Request,
        inner: Annotated[Thing, Depends(inner)],
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> Iterator[Thing]:
        yield Thing("fake", inner, db)

    async with running(service.app) as client:
        service.overrides.update({service.get_session: fake_session, inner: fake_inner})
        changes = await service.started(lambda: None)
        assert changes == ["start extra"]
        assert (await client.get("/user")).json() == "user(db) fake(inner(extra), db)"
        service.overrides[service.get_db] = service.fake("two")
        assert (await client.get("/user")).json() == "user(two) fake(inner(extra), two)"
        changes = await service.started(service.overrides.clear)
        assert changes == ["stop user of two", "stop two", "stop extra"]


class Broken(Exception):
    pass


def fails() -> Thing:
    raise Broken("no such database")


def asks_for_a_request(request: Request) -> Thing:
    raise AssertionError("called")


def unreadable(value: "fails.no_such_name") -> Thing:  # type: ignore[name-defined]
    raise AssertionError("called")


class Unhashable:
    __hash__ = None  # type: ignore[assignment]  # FastAPI takes it as an override

    def __call__(self) -> Thing:
        return Thing("unhashable")


BAD: dict[str, tuple[Any, type[BaseException]]] = {
    "fails": (fails, Broken),
    "asks for a request": (asks_for_a_request, DependencyScopeError),
    "not callable": (Thing("a value"), Exception),
    "unreadable": (unreadable, Exception),
}


@pytest.mark.parametrize(("fake", "cause"), BAD.values(), ids=BAD)
async def test_a_fake_that_cannot_start_fails_the_requests_that_need_it_and_no_others(
    fake: Any, cause: type[BaseException]
) -> None:
    service = Service()
    async with running(service.app) as client:
        service.overrides[service.get_db] = fake
        for _ in range(2):
            assert (await client.get("/cache")).json() == "cache"
            for path in ("/user", "/held"):
                with pytest.raises(UninitializedLifespanDependency) as caught:
                    await client.get(path)
                assert isinstance(caught.value.__cause__, cause)
            async with client_of(service.app, raises=False) as outside:
                answer = await outside.get("/user")
                assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        # It is well again when the fake is replaced, and when it is removed.
        service.overrides[service.get_db] = service.fake("fake")
        assert (await client.get("/user")).json() == "user(fake) session(fake)"
        service.overrides[service.get_db] = fake
        with pytest.raises(UninitializedLifespanDependency):
            await client.get("/user")
        service.overrides.clear()
        assert (await client.get("/user")).json() == "user(db) session(db)"
    assert service.log.count("start db") == 1
    assert service.log.count("stop fake") == 1


async def test_an_unhashable_fake_fails_no_request_that_does_not_need_it() -> None:
    service = Service()
    async with running(service.app) as client:
        service.overrides[service.get_db] = Unhashable()
        assert (await client.get("/cache")).json() == "cache"


async def test_a_wrong_request_scoped_override_fails_no_request_that_does_not_need_it() -> None:
    service = Service()
    value: Any = Thing("a value")
    async with running(service.app) as client:
        service.overrides[service.get_session] = value
        for _ in range(2):
            assert (await client.get("/cache")).json() == "cache"
            with pytest.raises(Exception, match="callable"):
                await client.get("/user")
        service.overrides.clear()
        assert (await client.get("/user")).json() == "user(db) session(db)"


async def test_a_request_scoped_override_that_declares_with_the_depends_of_fastapi() -> None:
    """Clause 10: never a call for each request."""
    service = Service()
    stock: Any = fastapi.Depends

    async def fake_session(db: Annotated[Thing, stock(service.get_db, scope="lifespan")]) -> Thing:
        return Thing("fake", db)

    async with running(service.app) as client:
        service.overrides[service.get_session] = fake_session
        for _ in range(2):
            assert (await client.get("/user")).json() == "user(db) fake(db)"
    assert service.log.count("start db") == 1


async def test_a_failed_start_is_logged_once_and_said_to_every_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service()
    async with running(service.app) as client:
        service.overrides[service.get_db] = fails
        with caplog.at_level(logging.ERROR, "fastapi_lifespan_deps"):
            for _ in range(3):
                with pytest.raises(UninitializedLifespanDependency, match="it failed to start"):
                    await client.get("/held")
        [record] = caplog.records
        assert record.getMessage() == "`fails` failed to start"


async def test_a_failing_override_for_some_dependents_leaves_the_others_alone() -> None:
    """Only what is built on the fake is missing; the rest of the same change is in force."""
    service = Service()
    async with running(service.app) as client:
        service.overrides.update(
            {service.get_user: fails, service.get_cache: service.fake("fake cache")}
        )
        assert (await client.get("/cache")).json() == "fake cache"
        with pytest.raises(UninitializedLifespanDependency) as caught:
            await client.get("/user")
        assert caught.value.provider is service.get_user


async def test_a_cycle_that_an_override_closes_fails_the_requests_that_need_it() -> None:
    service = Service()

    def fake(user: Annotated[Thing, Depends(service.get_user, scope="lifespan")]) -> Thing:
        return user

    async with running(service.app) as client:
        service.overrides[service.get_db] = fake
        for path in ("/user", "/held"):
            with pytest.raises(UninitializedLifespanDependency) as caught:
                await client.get(path)
            assert isinstance(caught.value.__cause__, DependencyCycleError)
            assert "depends on itself" in str(caught.value.__cause__)
            assert (await client.get("/cache")).json() == "cache"
        service.overrides.clear()
        assert (await client.get("/user")).json() == "user(db) session(db)"


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
async def test_overrides_of_a_mounted_application_while_running(kind: type[FastAPI]) -> None:
    service = Service()
    child = kind()

    @child.get("/db")
    async def read(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        return str(db)

    service.app.mount("/child", child)
    async with running(service.app) as client:

        async def answers() -> list[str]:
            return [(await client.get(path)).json() for path in ("/user", "/child/db")]

        assert await answers() == ["user(db) session(db)", "db"]
        child.dependency_overrides[service.get_db] = service.fake("of the child")
        assert await answers() == ["user(db) session(db)", "of the child"]
        child.dependency_overrides.clear()
        service.overrides[service.get_db] = service.fake("of the parent")
        assert await answers() == ["user(of the parent) session(of the parent)", "db"]
        shared = service.fake("shared")
        child.dependency_overrides[service.get_db] = service.overrides[service.get_db] = shared
        assert await answers() == ["user(shared) session(shared)", "shared"]
        assert service.log.count("start shared") == 1
    for name in ("db", "of the child", "of the parent", "shared"):
        assert service.log.count(f"start {name}") == service.log.count(f"stop {name}") == 1


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_request_that_is_cancelled_while_its_override_starts(in_thread: bool) -> None:
    """What it had started is not lost, and never started a second time beside the first."""
    service = Service()
    gate, release, left = Gate(), threading.Event(), threading.Event()
    living: list[str] = []

    async def slow() -> AsyncIterator[Thing]:
        await gate.wait()
        living.append("fake")
        assert living == ["fake"]
        yield Thing("fake")
        living.remove("fake")
        left.set()

    def slow_in_thread() -> Iterator[Thing]:
        anyio.from_thread.run_sync(gate.reached.set)
        assert release.wait(timeout=30)
        living.append("fake")
        assert living == ["fake"]
        yield Thing("fake")
        living.remove("fake")
        left.set()

    async with running(service.app) as client:
        service.overrides[service.get_db] = slow_in_thread if in_thread else slow
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/user")
            await gate.hold()
            tasks.cancel_scope.cancel()
            release.set()
        gate.open()
        assert (await client.get("/user")).json() == "user(fake) session(fake)"
        assert living == ["fake"]
        await service.started(service.overrides.clear)
        assert await anyio.to_thread.run_sync(left.wait, 30)
        assert living == []


async def test_what_a_cancelled_request_has_started_stops_when_its_override_is_gone() -> None:
    service = Service()
    gate = Gate()

    async def slow_user(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> Thing:
        await gate.wait()
        return Thing("slow", db)

    async with running(service.app) as client:
        service.overrides.update(
            {service.get_db: service.fake("fake"), service.get_user: slow_user}
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/user")
            await gate.hold()
            tasks.cancel_scope.cancel()
        service.overrides.clear()
        assert (await client.get("/user")).json() == "user(db) session(db)"
        await settle()
        assert service.log.count("start fake") == service.log.count("stop fake") == 1


async def test_other_requests_get_the_fake_when_the_one_that_started_it_is_cancelled() -> None:
    service = Service()
    gates = [Gate(), Gate()]

    async def slow() -> Thing:
        gate = gates.pop(0)
        await gate.wait()
        return Thing("fake")

    first, answers = gates[0], list[str]()

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append((await client.get("/user")).json())

    async with running(service.app) as client, anyio.create_task_group() as others:
        service.overrides[service.get_db] = slow
        gates[1].open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/user")
            await first.hold()
            for _ in range(3):
                others.start_soon(ask, client)
            await settle()
            first.reached = anyio.Event()
            tasks.cancel_scope.cancel()
        first.open()
    assert answers == ["user(fake) session(fake)"] * 3


@asynccontextmanager
async def entered(
    app: LifespanFastAPI, leave: Gate, *, raises: bool = True
) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application in another task, which leaves when the gate is open."""
    ready = anyio.Event()

    async def run() -> None:
        async with app.router.lifespan_context(app):
            ready.set()
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await ready.wait()
        async with client_of(app, raises=raises) as client:
            yield client


@pytest.mark.parametrize("blocked", ["first fake", "second fake"])
async def test_a_shutdown_while_overrides_start_stops_everything(blocked: str) -> None:
    """Clause 6. A fake may still be starting for a request that the server has given up."""
    service = Service()
    leave, starting, stopping = Gate(), Gate(), Gate()

    async def get_slow_to_stop() -> AsyncIterator[Thing]:
        service.log.append("start slow")
        yield Thing("slow")
        await stopping.wait()
        service.log.append("stop slow")

    @service.app.get("/slow")
    async def read(slow: Annotated[Thing, Depends(get_slow_to_stop, scope="lifespan")]) -> None: ...

    async def fake(name: str) -> AsyncIterator[Thing]:
        service.log.append(f"start {name}")
        try:
            if name == blocked:
                await starting.wait()
            yield Thing(name)
        finally:
            service.log.append(f"stop {name}")

    with anyio.fail_after(10):
        async with entered(service.app, leave, raises=False) as client:
            service.overrides[service.get_db] = partial(fake, "first fake")
            service.overrides[service.get_cache] = partial(fake, "second fake")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.get, "/user")
                await starting.hold()
                leave.open()
                await stopping.hold()
                await settle()
                stopping.open()
    starts = [line.removeprefix("start ") for line in service.log if line.startswith("start ")]
    stops = [line.removeprefix("stop ") for line in service.log if line.startswith("stop ")]
    assert sorted(starts) == sorted(stops)


async def test_an_override_that_changes_during_the_shutdown_starts_nothing() -> None:
    """Requests may still come from the code after the `yield` of the user's lifespan."""
    service = Service()

    async def get_last(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
    ) -> AsyncIterator[Thing]:
        yield Thing("last", db)
        service.overrides[service.get_db] = service.fake("late")
        async with client_of(service.app) as client:
            with pytest.raises(UninitializedLifespanDependency):
                await client.get("/user")

    @service.app.get("/last")
    async def read(last: Annotated[Thing, Depends(get_last, scope="lifespan")]) -> None: ...

    with anyio.fail_after(10):
        async with running(service.app):
            pass
    assert "start late" not in service.log


async def test_a_request_that_outlives_the_run_ends_in_peace() -> None:
    """Clause 6: stopping does not wait for pinned requests, and they do not mind."""
    service = Service()
    leave = Gate()
    answers: list[str] = []

    async def ask(client: httpx.AsyncClient, path: str) -> None:
        answers.append((await client.get(path)).text)

    service.gate.open()
    held = Gate()

    @service.app.get("/outlives")
    async def read(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> bool:
        await held.wait()
        return db.closed

    async with anyio.create_task_group() as tasks:
        async with entered(service.app, leave) as client:
            service.overrides[service.get_db] = service.fake("fake")
            tasks.start_soon(ask, client, "/outlives")
            await held.hold()
            service.overrides.clear()
            assert (await client.get("/user")).json() == "user(db) session(db)"
            leave.open()
        assert service.log.count("stop fake") == 1
        held.open()
    assert answers == ["true"]


async def test_the_lifespan_function_keeps_the_fake_that_it_was_given() -> None:
    """Clause 8: what it declares is alive until it has left."""
    service = Service()
    after: list[str] = []

    @asynccontextmanager
    async def lifespan(
        app: FastAPI, db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]
    ) -> AsyncIterator[None]:
        yield
        after.append(f"{db.name} {db.closed}")

    router: Any = service.app.router  # typed for lifespans that take the application alone
    router.lifespan_context = lifespan
    service.overrides[service.get_db] = service.fake("fake")
    async with running(service.app) as client:
        service.overrides.clear()
        assert (await client.get("/user")).json() == "user(db) session(db)"
        await settle()
    assert after == ["fake False"]
    assert service.log.count("stop fake") == 1


async def test_a_shutdown_hook_gets_what_is_in_force_at_the_end() -> None:
    service = Service()
    seen: list[str] = []

    def on_shutdown(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> None:
        seen.append(str(db))

    router: Any = service.app.router  # typed for hooks that take nothing
    router.add_event_handler("shutdown", on_shutdown)
    async with running(service.app) as client:
        service.overrides[service.get_db] = service.fake("fake")
        await client.get("/cache")
    assert seen == ["fake"]


async def test_an_application_without_lifespan_dependencies_says_why_an_override_has_none() -> None:
    """Clause 10: such an application runs as a stock one, so an override comes too late."""
    service = Service()
    app = LifespanFastAPI()

    async def get_session() -> str:
        return "original"

    async def fake(db: Annotated[Thing, Depends(service.get_db, scope="lifespan")]) -> str:
        return str(db)

    @app.get("/")
    async def read(session: Annotated[str, Depends(get_session)]) -> str:
        return session

    async with running(app) as client:
        app.dependency_overrides[get_session] = fake
        with pytest.raises(UninitializedLifespanDependency) as caught:
            await client.get("/")
    assert caught.value.provider is service.get_db
    assert "event loop" not in str(caught.value)
    assert "when the application started" in str(caught.value)


@pytest.mark.parametrize("scope", ["lifespan", "request"])
async def test_overrides_switch_under_load(scope: str) -> None:
    """Clauses 9 and 14: no request fails or mixes two fakes, and nothing is left at the end."""
    app = LifespanFastAPI()
    living: set[Thing] = set()
    started: list[Thing] = []

    def make(name: str) -> Callable[..., AsyncIterator[Thing]]:
        async def provide() -> AsyncIterator[Thing]:
            await anyio.lowlevel.checkpoint()  # given up here if the override is gone by now
            thing = Thing(name)
            living.add(thing)
            started.append(thing)
            yield thing
            await anyio.lowlevel.checkpoint()
            thing.closed = True
            living.remove(thing)

        return provide

    get_model = make("original")

    async def get_service(
        model: Annotated[Thing, Depends(get_model, scope="lifespan")],
    ) -> AsyncIterator[Thing]:
        thing = Thing("service", model)
        living.add(thing)
        yield thing
        str(thing)  # the model is alive
        living.remove(thing)

    async def get_session(model: Annotated[Thing, Depends(get_model, scope="lifespan")]) -> Thing:
        await anyio.lowlevel.checkpoint()
        return model

    uses_session = Depends(get_session)
    uses_service = Depends(get_service, scope="lifespan")

    def fake_session(model: Annotated[Thing, Depends(get_model, scope="lifespan")]) -> Thing:
        return model

    @app.get("/read")
    async def read(
        session: Annotated[Thing, uses_session], service: Annotated[Thing, uses_service]
    ) -> bool:
        await anyio.lowlevel.checkpoint()
        return str(service) == f"service({session})"

    @app.get("/stream")
    async def stream(
        service: Annotated[Thing, uses_service], session: Annotated[Thing, uses_session]
    ) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            for _ in range(3):
                assert str(service) == f"service({session})"
                await anyio.lowlevel.checkpoint()
            yield "true"

        return StreamingResponse(chunks())

    done = anyio.Event()
    answered = 0

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        nonlocal answered
        while not done.is_set():
            path = "/stream" if number % 2 else "/read"
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (200, "true")
            answered += 1

    async with running(app) as client:
        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(ask, client, number)
            for number in range(100):
                before = answered
                if number % 3 == 2:
                    app.dependency_overrides.clear()
                elif scope == "lifespan":
                    app.dependency_overrides[get_model] = make(f"fake {number}")
                else:
                    fake = make(f"fake {number}")
                    app.dependency_overrides = {get_model: fake, get_session: fake_session}
                while answered < before + 3:
                    await anyio.lowlevel.checkpoint()
            app.dependency_overrides.clear()
            done.set()
        assert (await client.get("/read")).json() is True
        await settle()
        assert {thing.name for thing in living} == {"original", "service"}
        assert len(living) == 2
    assert living == set()
    assert all(thing.closed for thing in started)
    assert len(started) <= 68


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fake_whose_start_is_cancelled_by_itself_fails_no_other_request() -> None:
    service = Service()

    async def cancels_itself() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    async with running(service.app) as client:
        service.overrides[service.get_db] = cancels_itself
        assert (await client.get("/cache")).json() == "cache"
        with pytest.raises(UninitializedLifespanDependency, match="failed to start"):
            await client.get("/user")


async def test_a_router_that_is_mounted_by_itself_has_no_overrides_as_in_fastapi() -> None:
    """Clause 9: neither for its parameters nor for the container, nor on a late route."""
    service = Service()
    router = APIRouter()

    async def read(
        db: Annotated[Thing, Depends(service.get_db, scope="lifespan")],
        container: Annotated[LifespanContainer, Depends(get_container)],
    ) -> list[str]:
        return [str(db), str(container[service.get_db])]

    router.get("/")(read)
    service.app.mount("/router", router)
    async with running(service.app) as client:
        service.overrides[service.get_db] = service.fake("fake")
        assert (await client.get("/router/")).json() == ["db", "db"]
        router.get("/late")(read)
        assert (await client.get("/router/late")).json() == ["db", "db"]
