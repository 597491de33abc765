"""One task owns a value from entry to exit (clause 7), and what happens when the value dies."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, cast

import anyio
import anyio.lowlevel
import httpx
import pytest
from fastapi import FastAPI

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    UninitializedLifespanDependency,
)
from tests.recording import app_with

pytestmark = pytest.mark.anyio

Kill = Callable[[], None]
Dead = Callable[[], Awaitable[None]]
variable: ContextVar[str] = ContextVar("variable", default="outside")


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture(name="dead")
def fixture_dead(caplog: pytest.LogCaptureFixture) -> Dead:
    """Wait until a dependency has ended by itself."""

    async def until_dead() -> None:
        with anyio.fail_after(10):
            while "ended by itself" not in caplog.text:
                await anyio.lowlevel.checkpoint()

    return until_dead


# --- What a dependency may hold across its yield


async def task_group() -> AsyncIterator[Kill]:
    async def fail(event: anyio.Event) -> None:
        await event.wait()
        raise OSError("the connection was lost")

    event = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(fail, event)
        yield event.set
        group.cancel_scope.cancel()


async def deadline() -> AsyncIterator[Kill]:
    with anyio.fail_after(3600) as scope:
        yield lambda: setattr(scope, "deadline", -1e9)


async def cancel_scope() -> AsyncIterator[Kill]:
    with anyio.CancelScope() as scope:
        yield scope.cancel


async def many_scopes() -> AsyncIterator[Kill]:
    async with anyio.create_task_group():
        with anyio.fail_after(3600), anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as inner:
                inner.start_soon(anyio.sleep_forever)
                yield inner.cancel_scope.cancel
                inner.cancel_scope.cancel()


async def asyncio_task_group() -> AsyncIterator[Kill]:
    async def fail(event: asyncio.Event) -> None:
        await event.wait()
        raise OSError("the connection was lost")

    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fail(event))
        yield event.set
        task.cancel()


async def asyncio_timeout() -> AsyncIterator[Kill]:
    async with asyncio.timeout(3600) as timeout:
        yield lambda: timeout.reschedule(0)


async def context_variable() -> AsyncIterator[None]:
    token = variable.set("inside")
    yield
    assert variable.get() == "inside"
    variable.reset(token)


def context_variable_in_threads() -> Iterator[None]:
    token = variable.set("inside")
    yield
    assert variable.get() == "inside"
    variable.reset(token)


@contextmanager
def decorated_generator() -> Iterator[None]:
    yield from context_variable_in_threads()


@asynccontextmanager
async def decorated_async_generator() -> AsyncIterator[Kill]:
    async with anyio.create_task_group() as group:
        yield group.cancel_scope.cancel
        group.cancel_scope.cancel()


holds_any = pytest.mark.parametrize(
    ("provider", "anyio_backend"),
    [
        *[
            (provider, backend)
            for provider in (
                task_group,
                deadline,
                cancel_scope,
                many_scopes,
                context_variable,
                context_variable_in_threads,
                decorated_generator,
                decorated_async_generator,
            )
            for backend in ("asyncio", "trio")
        ],
        (asyncio_task_group, "asyncio"),
        (asyncio_timeout, "asyncio"),
    ],
)


@holds_any
async def test_clause_7_a_dependency_may_hold_scopes_across_its_yield(provider: Any) -> None:
    app = app_with(provider)
    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 200
        assert variable.get() == "outside"


@holds_any
async def test_clause_7_a_run_may_be_entered_in_one_task_and_left_in_another(
    provider: Any,
) -> None:
    app = app_with(provider, task_group)
    lifespan = app.router.lifespan_context(app)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(lifespan.__aenter__)
        async with anyio.create_task_group() as group:
            group.start_soon(lifespan.__aexit__, None, None, None)


async def test_clause_7_one_task_enters_and_exits_a_dependency_and_no_other_shares_it() -> None:
    tasks: list[int] = []

    async def first() -> AsyncIterator[None]:
        tasks.append(anyio.get_current_task().id)
        yield
        tasks.append(anyio.get_current_task().id)

    async def second(_: Annotated[None, Depends(first, scope="lifespan")]) -> AsyncIterator[None]:
        tasks.append(anyio.get_current_task().id)
        yield
        tasks.append(anyio.get_current_task().id)

    app = app_with(second)
    async with app.router.lifespan_context(app):
        pass
    assert tasks == tasks[::-1]
    assert len({*tasks, anyio.get_current_task().id}) == 3


async def test_a_dependency_sees_the_context_of_whoever_starts_the_application() -> None:
    seen: list[str] = []

    async def get_first() -> None:
        seen.append(variable.get())

    def get_second() -> None:
        seen.append(variable.get())

    app = app_with(get_first, get_second)
    token = variable.set("at the start")
    async with app.router.lifespan_context(app):
        assert seen == ["at the start", "at the start"]
    variable.reset(token)


async def test_a_dependency_starts_when_the_scopes_of_its_start_fail_as_they_should() -> None:
    """A scope that the provider opened and cancelled itself is no cancellation of the run."""

    async def get_value() -> AsyncIterator[str]:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        try:
            with anyio.fail_after(0):
                await anyio.sleep_forever()
        except TimeoutError:
            yield "a fallback"

    app = LifespanFastAPI()

    @app.get("/")
    async def read(value: Annotated[str, Depends(get_value, scope="lifespan")]) -> str:
        return value

    async with client_of(app) as client:
        assert (await client.get("/")).json() == "a fallback"


# --- A dependency that dies while serving

dies = pytest.mark.parametrize(
    ("provider", "expected", "anyio_backend"),
    [
        *[
            (provider, expected, backend)
            for provider, expected in (
                (task_group, ExceptionGroup),
                (deadline, TimeoutError),
                (cancel_scope, None),
                (many_scopes, None),
            )
            for backend in ("asyncio", "trio")
        ],
        (asyncio_task_group, ExceptionGroup, "asyncio"),
        (asyncio_timeout, TimeoutError, "asyncio"),
    ],
)


def mortal_app(provider: Any) -> LifespanFastAPI:
    app = LifespanFastAPI()

    async def dependent(kill: Annotated[Kill, Depends(provider, scope="lifespan")]) -> Kill:
        return kill

    @app.get("/value")
    async def read_value(value: Annotated[Kill, Depends(provider, scope="lifespan")]) -> str:
        return "alive"

    @app.get("/dependent")
    async def read_dependent(value: Annotated[Kill, Depends(dependent, scope="lifespan")]) -> str:
        return "alive"

    @app.get("/kill")
    async def kill(value: Annotated[Kill, Depends(provider, scope="lifespan")]) -> None:
        value()

    @app.get("/other")
    async def read_other(
        value: Annotated[None, Depends(context_variable, scope="lifespan")],
    ) -> str:
        return "alive"

    return app


def raising(error: type[BaseException] | None) -> AbstractAsyncContextManager[None]:
    """What leaving the run of an application raises after one of its dependencies has died."""

    @asynccontextmanager
    async def expecting() -> AsyncIterator[None]:
        if error is None:
            yield
        else:
            with pytest.raises(error):
                yield

    return expecting()


@dies
async def test_requests_that_need_a_dead_dependency_fail_and_the_others_go_on(
    provider: Any,
    expected: type[BaseException] | None,
    dead: Dead,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = mortal_app(provider)
    async with raising(expected), client_of(app) as client:
        assert (await client.get("/value")).json() == "alive"
        await client.get("/kill")
        await dead()
        for _ in range(2):
            with pytest.raises(UninitializedLifespanDependency, match="ended by itself") as refused:
                await client.get("/value")
            assert f"`{provider.__qualname__}`" in str(refused.value)
            assert refused.value.provider is provider
            assert isinstance(refused.value.__cause__, expected or type(None))
        assert (await client.get("/other")).json() == "alive"

    logged = [record for record in caplog.records if record.name == "fastapi_lifespan_deps"]
    assert [record.getMessage() for record in logged] == [
        f"`{provider.__qualname__}` ended by itself while serving"
    ]
    assert logged[0].levelno == logging.ERROR


@dies
async def test_clause_10_what_depends_on_a_dead_dependency_is_not_given_to_requests_either(
    provider: Any, expected: type[BaseException] | None, dead: Dead
) -> None:
    app = mortal_app(provider)
    async with raising(expected), client_of(app) as client:
        assert (await client.get("/dependent")).json() == "alive"
        await client.get("/kill")
        await dead()
        with pytest.raises(UninitializedLifespanDependency, match="ended by itself"):
            await client.get("/dependent")


async def test_clause_10_nothing_is_started_on_top_of_a_dead_dependency(
    dead: Dead,
) -> None:
    given: list[object] = []

    async def fake(kill: Annotated[Kill, Depends(cancel_scope, scope="lifespan")]) -> None:
        given.append(kill)

    app = mortal_app(cancel_scope)
    async with client_of(app) as client:
        await client.get("/kill")
        await dead()
        app.dependency_overrides[context_variable] = fake
        with pytest.raises(UninitializedLifespanDependency):
            await client.get("/other")
    assert given == []


async def test_a_dependency_that_dies_while_the_application_starts_fails_the_startup(
    dead: Dead,
) -> None:
    given: list[object] = []

    async def late(kill: Annotated[Kill, Depends(cancel_scope, scope="lifespan")]) -> None:
        given.append(kill)

    async def startup(kill: Annotated[Kill, Depends(cancel_scope, scope="lifespan")]) -> None:
        kill()
        await dead()
        app.get("/late", dependencies=[Depends(late, scope="lifespan")])(startup_done)

    async def startup_done() -> None: ...

    app = LifespanFastAPI()
    app.router.add_event_handler("startup", cast(Any, startup))
    with pytest.raises(UninitializedLifespanDependency, match="cancel_scope"):
        async with app.router.lifespan_context(app):
            pass
    assert given == []


async def test_code_after_yield_does_not_run_again_at_shutdown_when_the_dependency_has_died(
    dead: Dead,
) -> None:
    ends: list[str] = []

    async def get_value() -> AsyncIterator[Kill]:
        with anyio.CancelScope() as scope:
            try:
                yield scope.cancel
            finally:
                ends.append("end")

    app = mortal_app(get_value)
    async with client_of(app) as client:
        await client.get("/kill")
        await dead()
        assert ends == ["end"]
    assert ends == ["end"]


async def test_a_hook_that_needs_a_dead_dependency_fails_and_the_rest_is_stopped(
    dead: Dead,
) -> None:
    async def shutdown(kill: Annotated[Kill, Depends(cancel_scope, scope="lifespan")]) -> None:
        raise AssertionError("it was called with a dead value")

    app = mortal_app(cancel_scope)
    app.router.add_event_handler("shutdown", cast(Any, shutdown))
    with pytest.raises(UninitializedLifespanDependency, match="ended by itself"):
        async with client_of(app) as client:
            await client.get("/kill")
            await dead()


async def test_each_step_is_logged_for_those_who_wait_for_a_dependency_that_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def get_pool() -> AsyncIterator[str]:
        yield "pool"

    app = LifespanFastAPI()
    app.get("/", dependencies=[Depends(get_pool, scope="lifespan")])(lambda: None)
    with caplog.at_level(logging.DEBUG, "fastapi_lifespan_deps"):
        async with app.router.lifespan_context(app):
            pass
    name = get_pool.__qualname__
    steps = [record for record in caplog.records if record.levelno == logging.DEBUG]
    logged = [record.getMessage() for record in steps if name in record.getMessage()]
    assert logged == [f"{step} `{name}`" for step in ("Starting", "Started", "Stopping", "Stopped")]


async def test_a_fake_runs_in_the_context_of_the_application_not_of_a_request() -> None:
    request_id: ContextVar[str] = ContextVar("request_id", default="none")

    async def get_value() -> str:
        return request_id.get()

    async def fake() -> str:
        return f"fake of {request_id.get()}"

    app = LifespanFastAPI()

    @app.get("/")
    async def read(value: Annotated[str, Depends(get_value, scope="lifespan")]) -> str:
        return value

    async with client_of(app) as client:
        request_id.set("request 1")
        app.dependency_overrides[get_value] = fake
        assert (await client.get("/")).json() == "fake of none"


async def test_a_graph_with_many_ways_is_walked_in_few_steps() -> None:
    """25 layers of diamonds have 2 ** 25 ways through them."""

    def layer(below: Any) -> Any:
        async def get_layer(
            left: Annotated[Any, Depends(below, scope="lifespan")],
            right: Annotated[Any, Depends(below, scope="lifespan")],
        ) -> Any:
            return left

        return get_layer

    async def get_kill() -> AsyncIterator[Kill]:
        with anyio.CancelScope() as scope:
            yield scope.cancel

    top: Any = get_kill
    for _ in range(25):
        top = layer(top)
    app = LifespanFastAPI()

    @app.get("/")
    async def read(kill: Annotated[Kill, Depends(top, scope="lifespan")]) -> None:
        kill()

    with anyio.fail_after(10):
        async with client_of(app) as client:
            await client.get("/")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(UninitializedLifespanDependency, match="get_kill"):
                await client.get("/")


async def test_a_synchronous_exit_that_raises_a_cancellation_ends_all_the_same() -> None:
    stopped: list[str] = []

    def get() -> Iterator[None]:
        yield
        stopped.append("once")
        raise asyncio.CancelledError

    app = LifespanFastAPI()
    app.get("/", dependencies=[Depends(get, scope="lifespan")])(lambda: None)
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        async with app.router.lifespan_context(app):
            pass
    assert stopped == ["once"]
