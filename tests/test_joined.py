"""Clause 1: a mounted application whose lifespan the parent's enters joins the parent's run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Mount

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    LifespanNotRunning,
    enable_lifespan_scope,
)

pytestmark = pytest.mark.anyio

log: list[str] = []


class Db:
    def __init__(self, name: str = "db") -> None:
        self.name = name
        self.tables: list[str] = []


async def get_db() -> AsyncIterator[Db]:
    log.append("start")
    yield Db()
    log.append("stop")


async def get_fake() -> AsyncIterator[Db]:
    log.append("start fake")
    yield Db("fake")
    log.append("stop fake")


DbDep = Annotated[Db, Depends(get_db, scope="lifespan")]


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@asynccontextmanager
async def create_tables(app: FastAPI, db: DbDep) -> AsyncIterator[None]:
    db.tables.append("users")
    log.append(f"created in {db.name}")
    yield
    log.append(f"left {db.name}")


def make_admin(kind: Callable[..., Any] = LifespanFastAPI, **options: Any) -> Any:
    admin = kind(lifespan=create_tables, **options)

    async def read_tables(db: DbDep) -> list[str]:
        return db.tables

    admin.get("/tables")(read_tables)
    return admin


def enabled(**options: Any) -> FastAPI:
    return enable_lifespan_scope(FastAPI(**options))


@asynccontextmanager
async def lifespans_of_mounted(app: FastAPI) -> AsyncIterator[None]:
    """The workaround that everybody uses."""
    async with AsyncExitStack() as stack:
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, FastAPI):
                await stack.enter_async_context(route.app.router.lifespan_context(route.app))
        yield


@pytest.mark.parametrize("outer", [FastAPI, LifespanFastAPI, enabled])
@pytest.mark.parametrize("inner", [LifespanFastAPI, enabled])
def test_k12_there_is_one_instance(outer: Callable[..., FastAPI], inner: Any) -> None:
    app = outer(lifespan=lifespans_of_mounted)
    app.mount("/admin", make_admin(inner))
    for _ in range(2):
        log.clear()
        with TestClient(app) as client:
            assert client.get("/admin/tables").json() == ["users"]
        assert log == ["start", "created in db", "left db", "stop"]


def test_k12_what_only_its_lifespan_function_declares_is_started_too() -> None:
    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/admin", LifespanFastAPI(lifespan=create_tables))
    with TestClient(app):
        assert log == ["start", "created in db"]
    assert log[2:] == ["left db", "stop"]


def test_k12_its_hooks_get_what_its_routes_get() -> None:
    admin = make_admin(FastAPI)
    enable_lifespan_scope(admin)

    async def up(db: DbDep) -> None:
        db.tables.append("by a hook")

    async def down(db: DbDep) -> None:
        log.append(f"down {db.tables}")

    admin.router.on_startup.append(up)
    admin.router.on_shutdown.append(down)
    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/admin", admin)
    with TestClient(app) as client:
        assert client.get("/admin/tables").json() == ["by a hook", "users"]
    assert log[-3:] == ["left db", "down ['by a hook', 'users']", "stop"]


def test_k12_its_own_overrides_hold_for_it() -> None:
    app = LifespanFastAPI(lifespan=lifespans_of_mounted)

    @app.get("/tables")
    async def read_tables(db: DbDep) -> list[str]:
        return db.tables

    admin = make_admin()
    admin.dependency_overrides[get_db] = get_fake
    app.mount("/admin", admin)
    with TestClient(app) as client:
        assert client.get("/admin/tables").json() == ["users"]
        assert client.get("/tables").json() == []
    assert log == [
        *("start", "start fake", "created in fake"),
        *("left fake", "stop fake", "stop"),
    ]


def test_k12_what_is_mounted_in_what_is_mounted_joins_too() -> None:
    middle, app = (LifespanFastAPI(lifespan=lifespans_of_mounted) for _ in range(2))
    middle.mount("/admin", make_admin())
    app.mount("/middle", middle)
    with TestClient(app) as client:
        assert client.get("/middle/admin/tables").json() == ["users"]
    assert log == ["start", "created in db", "left db", "stop"]


def test_k12_a_hook_may_enter_it() -> None:
    app, admin, stack = LifespanFastAPI(), make_admin(), AsyncExitStack()
    app.mount("/admin", admin)

    async def up() -> None:
        await stack.enter_async_context(admin.router.lifespan_context(admin))

    app.router.on_startup.append(up)
    app.router.on_shutdown.append(stack.aclose)
    with TestClient(app) as client:
        assert client.get("/admin/tables").json() == ["users"]
    assert log == ["start", "created in db", "left db", "stop"]


TWICE = ["start", "start", "created in db", "left db", "stop", "stop"]


def test_k12_entered_by_a_provider_it_is_a_run_of_its_own() -> None:
    admin = make_admin()

    async def run_admin() -> AsyncIterator[None]:
        async with admin.router.lifespan_context(admin):
            yield

    app = LifespanFastAPI(dependencies=[Depends(run_admin, scope="lifespan")])
    app.mount("/admin", admin)
    with TestClient(app) as client:
        assert client.get("/admin/tables").json() == []
    assert sorted(log) == sorted(TWICE)


def test_k12_what_is_not_mounted_is_a_run_of_its_own() -> None:
    admin = make_admin()

    @asynccontextmanager
    async def lifespan(app: FastAPI, db: DbDep) -> AsyncIterator[None]:
        async with admin.router.lifespan_context(admin):
            yield

    with TestClient(LifespanFastAPI(lifespan=lifespan)):
        pass
    assert log == TWICE


def test_k12_a_task_that_the_lifespan_function_starts_is_not_taken_for_it() -> None:
    admin = make_admin()

    async def serve_admin(task_status: Any) -> None:
        async with admin.router.lifespan_context(admin):
            task_status.started()
            await anyio.sleep_forever()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda task_status: serve_admin(task_status))
            yield
            tasks.cancel_scope.cancel()

    app = LifespanFastAPI(lifespan=lifespan)
    app.mount("/admin", admin)
    with TestClient(app) as client:
        assert client.get("/admin/tables").json() == []
    assert [one for one in log if one.startswith("st")] == ["start", "start", "stop", "stop"]


def test_k12_while_the_parent_stops_it_is_a_run_of_its_own() -> None:
    admin = make_admin()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        async with admin.router.lifespan_context(admin):
            pass

    app = LifespanFastAPI(lifespan=lifespan)
    app.mount("/admin", admin)
    with TestClient(app):
        pass
    assert log == TWICE


async def test_k12_its_container_is_the_parents_with_its_own_overrides() -> None:
    admin = make_admin()
    admin.dependency_overrides[get_db] = get_fake
    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/admin", admin)
    app.get("/")(_read)
    async with app.router.lifespan_context(app):
        assert admin.lifespan_container[get_db].name == "fake"
        assert app.lifespan_container[get_db].name == "db"
        await admin.lifespan_container.refresh(get_db)
        assert log.count("start fake") == 2
    with pytest.raises(LifespanNotRunning):
        _ = admin.lifespan_container


async def _read(db: DbDep) -> None: ...


def test_k12_what_it_adds_while_it_starts_is_started() -> None:
    @asynccontextmanager
    async def add_route(app: FastAPI) -> AsyncIterator[None]:
        app.get("/late")(read_late)
        yield

    async def read_late(db: DbDep) -> str:
        return db.name

    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/admin", LifespanFastAPI(lifespan=add_route))
    with TestClient(app) as client:
        assert client.get("/admin/late").json() == "db"


def test_k12_its_failure_fails_the_start_and_everything_is_left() -> None:
    @asynccontextmanager
    async def fail(app: FastAPI, db: DbDep) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/admin", make_admin())
    app.mount("/failing", LifespanFastAPI(lifespan=fail))
    with pytest.raises(ZeroDivisionError), TestClient(app):
        pass
    assert log == ["start", "created in db", "stop"]


def test_k12_mounted_twice_it_is_entered_twice() -> None:
    """As in FastAPI, whose workaround does so."""
    admin = make_admin()
    app = LifespanFastAPI(lifespan=lifespans_of_mounted)
    app.mount("/one", admin)
    app.mount("/two", admin)
    with TestClient(app) as client:
        assert client.get("/two/tables").json() == ["users", "users"]
        assert admin.router.lifespan_runs.have_values
    assert log.count("start") == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_k12_in_another_event_loop_it_is_a_run_of_its_own() -> None:
    admin = make_admin()

    async def run_admin() -> None:
        async with admin.router.lifespan_context(admin):
            pass

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(asyncio.run, run_admin())
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    app.mount("/admin", admin)
    async with app.router.lifespan_context(app):
        assert log == ["start", "start", "created in db", "left db", "stop"]
