"""What "Moving here" shows and says, as far as it needs no other library.

scripts/moving runs what does, with the same checks before and after.
"""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from threading import Barrier, Thread
from typing import Annotated, Any

import anyio
import fastapi
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.testclient import TestClient
from starlette.middleware.base import RequestResponseEndpoint

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    LifespanFastAPI,
    LifespanNotRunning,
    UninitializedLifespanDependency,
    View,
    get_container,
)
from tests.clients import PATIENCE, running
from tests.moving import (
    OF_FASTAPI,
    OF_LIBRARIES,
    TEST_URL,
    URL,
    check,
    check_test,
    failing,
    load,
    log,
    shop,
    with_failing_commit,
)

EXAMPLES = [
    *(f"{name}.{when}" for name in OF_FASTAPI for when in ("before", "after")),
    *(f"{name}.after" for name in (*OF_LIBRARIES, "fastapi_injectable")),
]

hooks_are_deprecated = pytest.mark.filterwarnings(
    "ignore:[\\s\\S]*on_event is deprecated:DeprecationWarning",
    # Starlette before 1.0 warns, and says that hooks are ignored. Here they aren't.
    "ignore:The on_startup and on_shutdown parameters are deprecated:DeprecationWarning",
)


@hooks_are_deprecated
@pytest.mark.parametrize("name", EXAMPLES)
def test_same_requests(name: str) -> None:
    check(name)


@hooks_are_deprecated
@pytest.mark.parametrize("name", EXAMPLES)
def test_tests_that_are_shown(name: str) -> None:
    check_test(name)


@pytest.mark.parametrize("name", OF_LIBRARIES)
@pytest.mark.parametrize("error", [None, HTTPException(404)])
def test_an_error_is_rolled_back(name: str, error: Exception | None) -> None:
    lines = failing(f"{name}.after", error)
    assert lines == ["open the pool", "begin", "roll back", "close the pool"]


@pytest.mark.parametrize(
    ("name", "status"),
    [("dependency_injector", 500), ("dishka", 200), ("svcs", 200), ("wireup", 500)],
)
def test_whether_a_commit_that_fails_comes_before_the_response(name: str, status: int) -> None:
    assert with_failing_commit(f"{name}.after") == status


@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_nothing_is_served_without_a_start(name: str) -> None:
    with pytest.raises(UninitializedLifespanDependency):
        TestClient(load(f"{name}.after").app).get("/users/1")


# lifespan and app.state


def test_without_a_start_the_state_is_empty() -> None:
    client = TestClient(load("app_state.before").app)
    with pytest.raises(AttributeError, match="has no attribute 'pool'"):
        client.get("/users/1")
    with pytest.raises(UninitializedLifespanDependency):
        TestClient(load("app_state.after").app).get("/users/1")


def test_an_override_does_not_reach_the_lifespan_function() -> None:
    app: FastAPI = load("app_state.before").app

    def read_pool(request: Request) -> Any:
        return request.app.state.pool

    @app.get("/pool")
    async def read_url(pool: Annotated[Any, fastapi.Depends(read_pool)]) -> Any:
        return pool.url

    app.dependency_overrides[read_pool] = lambda: shop().Pool(TEST_URL)
    with TestClient(app) as client:
        assert log() == ["open the pool", "load prices 1"]
        assert client.get("/pool").json() == TEST_URL


def test_middleware_sees_what_its_own_request_has_refreshed() -> None:
    example = load("app_state.after")
    app: FastAPI = example.app
    seen = []

    @app.middleware("http")
    async def look(request: Request, call_next: RequestResponseEndpoint) -> Response:
        container = await get_container(request)
        seen.append(container[example.load_prices].version)
        response = await call_next(request)
        seen.append(container[example.load_prices].version)
        return response

    with TestClient(app) as client:
        client.post("/prices")
    assert seen == [1, 2]


# Globals and lru_cache


def test_a_global_is_made_by_the_import_and_never_closed() -> None:
    app = load("module_globals.before").app
    assert log() == ["open the pool"]
    with TestClient(app):
        pass
    assert log() == ["open the pool"]
    app = load("module_globals.after").app
    assert log() == []
    with TestClient(app):
        pass
    assert log() == ["open the pool", "load prices 1", "close the pool"]


def test_a_cache_outlives_the_run() -> None:
    for when, versions in (("before", [1, 1]), ("after", [1, 2])):
        app = load(f"module_globals.{when}").app
        seen = []
        for _ in versions:
            with TestClient(app) as client:
                seen.append(client.get("/prices").json())
        assert seen == versions


def test_a_cache_may_be_filled_by_several_threads() -> None:
    both = Barrier(2)
    made: list[object] = []

    @lru_cache
    def make() -> None:
        both.wait(timeout=30)
        made.append(object())

    threads = [Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2


def test_a_cache_that_stays_gives_the_same_object_to_direct_calls_and_after_a_refresh() -> None:
    @lru_cache
    def load_prices() -> object:
        return object()

    app = LifespanFastAPI()

    @app.post("/")
    async def refresh(
        prices: Annotated[object, Depends(load_prices, scope="lifespan")],
        container: Annotated[View, Depends(get_container)],
    ) -> list[bool]:
        await container.refresh(load_prices)
        return [one is load_prices() for one in (prices, container[load_prices])]

    with TestClient(app) as client:
        assert client.post("/").json() == [True, True]


# on_event


@hooks_are_deprecated
def test_hooks_of_an_included_router_run_once() -> None:
    seen: list[str] = []
    router = APIRouter()
    router.on_event("startup")(partial(seen.append, "router"))
    app = LifespanFastAPI()
    app.include_router(router)
    app.router.add_event_handler("startup", partial(seen.append, "added"))
    with TestClient(app):
        pass
    assert sorted(seen) == ["added", "router"]


@hooks_are_deprecated
def test_shutdown_hooks_run_in_the_order_of_their_registration() -> None:
    app = FastAPI()
    seen: list[str] = []
    for name in ("first", "second"):
        app.on_event("shutdown")(partial(seen.append, name))
    with TestClient(app):
        pass
    assert seen == ["first", "second"]


@hooks_are_deprecated
@pytest.mark.parametrize("when", ["startup", "shutdown"])
def test_a_hook_that_fails_keeps_others_from_running(when: str) -> None:
    app = FastAPI()
    seen: list[str] = []

    def fail() -> None:
        raise ConnectionError

    app.on_event(when)(fail)
    app.on_event("shutdown")(partial(seen.append, "closed"))
    with pytest.raises(ConnectionError), TestClient(app):
        pass
    assert seen == []


@hooks_are_deprecated
def test_on_event_goes_on_and_may_declare() -> None:
    example = load("on_event.after")
    app: FastAPI = example.app
    pool = Depends(example.open_pool, scope="lifespan")
    seen = []

    async def announce(pool: Annotated[Any, pool]) -> None:
        seen.append(pool.is_open)

    app.on_event("startup")(announce)
    with TestClient(app):
        assert seen == [True]


# A gradual move


def test_gradual() -> None:
    app = load("gradual.main").app
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/users/1").json() == f"user 1 of {URL}"
            assert client.get("/database").json() == URL
        assert app.state.pool is None
    assert log() == ["open the pool", "close the pool"] * 2


def test_gradual_with_an_override() -> None:
    example = load("gradual.main")
    example.app.dependency_overrides[example.get_pool] = lambda: shop().Pool(TEST_URL)
    with TestClient(example.app) as client:
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
        assert client.get("/database").json() == TEST_URL


async def test_gradual_with_a_refresh(anyio_backend: str) -> None:
    example = load("gradual.main")
    app = example.app
    async with running(app):
        old = app.state.pool
        await (await app.lifespan_container.refresh(example.get_pool)).wait()
        assert not old.is_open
        assert app.state.pool.is_open


async def test_gradual_with_a_refresh_under_a_request(anyio_backend: str) -> None:
    example = load("gradual.main")
    app: FastAPI = example.app
    has_begun, may_end = anyio.Event(), anyio.Event()
    answers = []

    @app.get("/long")
    async def read_long(request: Request) -> bool:
        pool = request.app.state.pool
        has_begun.set()
        await may_end.wait()
        return bool(pool.is_open)

    async def ask() -> None:
        answers.append((await client.get("/long")).json())

    with anyio.fail_after(PATIENCE):
        async with running(app) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await has_begun.wait()
            draining = await example.app.lifespan_container.refresh(example.get_pool)
            may_end.set()
            await draining.wait()
    assert answers == [True]


async def test_gradual_with_a_lifespan_function_and_a_refresh(anyio_backend: str) -> None:
    app = load("gradual.lifespan").app
    get_pool = importlib.import_module("docs_src.moving.gradual.main").get_pool
    async with running(app):
        first = app.state.pool
        await app.lifespan_container.refresh(get_pool)
        await anyio.wait_all_tasks_blocked()
        assert app.lifespan_container[get_pool] is not first
        assert app.state.pool is first
        assert first.is_open


async def test_gradual_with_a_refresh_that_fails(anyio_backend: str) -> None:
    example = load("gradual.main")
    starts = iter([None, ConnectionError()])
    kept = Depends(example.keep_in_state, scope="lifespan")

    def connect(kept: Annotated[None, kept]) -> None:
        if error := next(starts):
            raise error

    example.app.get("/other", dependencies=[Depends(connect, scope="lifespan")])(list)
    async with running(example.app):
        old = example.app.state.pool
        with pytest.raises(ConnectionError):
            await example.app.lifespan_container.refresh(example.get_pool)
        await anyio.wait_all_tasks_blocked()  # what was made anew stops
        assert example.app.state.pool is old
        assert old.is_open


async def test_gradual_with_an_override_that_goes(anyio_backend: str) -> None:
    example = load("gradual.main")
    stopped = anyio.Event()

    async def get_fake() -> AsyncIterator[Any]:
        yield shop().Pool(TEST_URL)
        stopped.set()

    async with running(example.app) as client:
        example.app.dependency_overrides[example.get_pool] = get_fake
        assert (await client.get("/database")).json() == TEST_URL
        example.app.dependency_overrides.clear()
        await client.get("/users/1")
        with anyio.fail_after(PATIENCE):
            await stopped.wait()
        assert (await client.get("/database")).json() == URL


def test_gradual_with_a_lifespan_function() -> None:
    example = load("gradual.lifespan")
    with TestClient(example.app) as client:
        assert client.get("/database").json() == URL
        assert log() == ["open the pool", "load prices 1"]


def test_gradual_by_a_request_dependency() -> None:
    app = load("gradual.reading").app
    app.state.pool = shop().Pool(URL)
    with TestClient(app) as client:
        assert client.get("/users/1").json() == f"user 1 of {URL}"


def test_what_a_lifespan_function_sets_is_not_there_yet() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pool = "a pool"
        yield

    async def get_pool(app: FastAPI) -> Any:
        return app.state.pool

    app = LifespanFastAPI(lifespan=lifespan, dependencies=[Depends(get_pool, scope="lifespan")])
    with pytest.raises(AttributeError, match="has no attribute 'pool'"), TestClient(app):
        raise AssertionError("started")


def test_a_lifespan_dependency_does_not_read_the_request() -> None:
    example = load("gradual.reading")
    app = LifespanFastAPI()
    with pytest.raises(DependencyScopeError, match="request"):

        @app.get("/")
        async def read(
            pool: Annotated[Any, Depends(example.get_pool, scope="lifespan")],
        ) -> None: ...


def test_assigning_the_state_does_not_reach_what_has_moved() -> None:
    app = load("gradual.main").app
    with TestClient(app) as client:
        app.state.pool = shop().Pool(TEST_URL)
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {URL}"


def test_a_lifespan_function_that_closes_what_a_dependency_owns() -> None:
    pool = Depends(load("gradual.main").get_pool, scope="lifespan")

    @asynccontextmanager
    async def lifespan(app: FastAPI, pool: Annotated[Any, pool]) -> AsyncIterator[None]:
        yield
        await pool.close()

    app = LifespanFastAPI(lifespan=lifespan)
    with TestClient(app):
        pass
    assert log() == ["open the pool", "close the pool", "close the pool"]


# fastapi-injectable


async def test_after_fastapi_injectable(anyio_backend: str) -> None:
    example = load("fastapi_injectable.after")
    users = [f"user {number} of postgresql://localhost/shop" for number in (1, 2)]
    assert await example.work([1, 2]) == users
    one = ["begin", "commit"]
    assert example.log == ["open the pool", *one, *one, "close the pool"]
    example.container.dependency_overrides[example.get_pool] = lambda: importlib.import_module(
        "docs_src.database"
    ).Pool("fake")
    assert await example.work([1]) == ["user 1 of fake"]


def test_command_after_fastapi_injectable(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("fastapi_injectable.after")
    example.show_url()
    assert capsys.readouterr().out == "postgresql://localhost/shop\n"
    assert example.log == ["open the pool", "begin", "commit", "close the pool"]
    with example.container.sync() as running, running.enter(example.get_transaction) as entered:
        assert entered is running[example.get_pool]
        assert example.log[4:] == ["open the pool", "begin"]
    assert example.log[6:] == ["commit", "close the pool"]


async def test_errors_after_fastapi_injectable(anyio_backend: str) -> None:
    example = load("fastapi_injectable.after")

    async def get_swallowing(
        transaction: Annotated[Any, Depends(example.get_transaction)],
    ) -> AsyncIterator[None]:
        with suppress(KeyError):
            yield

    async def fails(swallowing: Annotated[None, Depends(get_swallowing)]) -> None:
        raise KeyError

    async with example.container:
        with pytest.raises(KeyError):
            await example.container.call(fails)
        assert example.log == ["open the pool", "begin", "roll back"]
        await example.handle(1)
    assert example.log[-1] == "close the pool"
    with pytest.raises(LifespanNotRunning):
        await example.handle(1)


def test_what_belongs_to_a_request_is_refused_after_fastapi_injectable() -> None:
    example = load("fastapi_injectable.after")

    def get_tenant(tenant: Annotated[str, fastapi.Header()] = "none") -> str:
        return tenant

    def get_tasks(tasks: BackgroundTasks) -> BackgroundTasks:
        return tasks

    for provider in (get_tenant, get_tasks):

        async def handle(value: Annotated[Any, Depends(provider)]) -> None: ...

        with pytest.raises(DependencyScopeError):
            example.container.inject(handle)
