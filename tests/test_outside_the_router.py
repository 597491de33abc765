"""Clause 10: dependencies that others solve, on a request of their own or without one."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    Depends,
    InvalidLifespanDependency,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)
from fastapi_lifespan_deps.declare.params import lifespan_marker

pytestmark = pytest.mark.anyio


class Db:
    def __init__(self, name: str = "db") -> None:
        self.name = name


async def get_db() -> AsyncIterator[Db]:
    yield Db()


DbDep = Annotated[Db, Depends(get_db, scope="lifespan")]


async def get_session(db: DbDep) -> Any:
    return db


async def handle(db: DbDep, session: Annotated[Any, Depends(get_session)]) -> Any:
    assert session is db
    return db


async def handle_container(
    container: Annotated[LifespanContainer, Depends(get_container)],
) -> Any:
    return container[get_db]


def make_app() -> LifespanFastAPI:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(db: DbDep) -> str:
        return db.name

    return app


async def solve(app: FastAPI | None, function: Any) -> Any:
    """As FastStream's plugin and fastapi-injectable do it."""
    is_dependant = isinstance(function, Dependant)
    dependant = function if is_dependant else get_dependant(path="", call=function)
    async with AsyncExitStack() as stack:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [],
            "query_string": b"",
            "fastapi_inner_astack": stack,
            "fastapi_function_astack": stack,
        }
        if app is not None:
            scope["app"] = app
        solved = await solve_dependencies(
            request=Request(scope),
            dependant=dependant,
            async_exit_stack=stack,
            embed_body_fields=False,
        )
        call: Any = dependant.call
        if inspect.iscoroutinefunction(call):
            return await call(**solved.values)
        return await anyio.to_thread.run_sync(lambda: call(**solved.values))


async def test_k11_what_another_solver_asks_for_is_the_current_value() -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        first = await solve(app, handle)
        assert first is app.lifespan_container[get_db]
        assert await solve(app, handle_container) is first

        await app.lifespan_container.refresh(get_db)
        second = await solve(app, handle)
        assert second is app.lifespan_container[get_db]
        assert second is not first

        app.dependency_overrides[get_db] = lambda: Db("fake")
        assert (await solve(app, handle)).name == "fake"


async def test_k11_the_container_of_another_solver_follows_overrides() -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        app.dependency_overrides[get_db] = lambda: Db("fake")
        assert (await solve(app, handle_container)).name == "fake"
        app.dependency_overrides.clear()
        assert (await solve(app, handle_container)).name == "db"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_k11_the_dependant_of_a_route_may_be_solved_by_another_solver(
    in_thread: bool,
) -> None:
    app = LifespanFastAPI()

    def get_name(db: DbDep) -> str:
        return db.name

    async def read(db: DbDep, name: Annotated[str, Depends(get_name)]) -> str:
        return f"{db.name} {name}"

    def read_in_thread(db: DbDep, name: Annotated[str, Depends(get_name)]) -> str:
        return f"{db.name} {name}"

    app.get("/")(read_in_thread if in_thread else read)
    route: Any = app.routes[-1]
    async with app.router.lifespan_context(app):
        assert await solve(app, route.dependant) == "db db"
    with pytest.raises(UninitializedLifespanDependency, match="the application is not running"):
        await solve(app, route.dependant)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_k11_in_a_thread_of_nobodys_there_is_no_value() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(db: DbDep) -> str:
        return db.name

    route: Any = app.routes[-1]
    async with app.router.lifespan_context(app):
        call, name = route.dependant.call, route.dependant.http_connection_param_name
        request = Request({"type": "http", "app": app})
        assert call(**{name: request}) == "db"
        with pytest.raises(UninitializedLifespanDependency, match="another event loop"):
            await asyncio.get_running_loop().run_in_executor(None, lambda: call(**{name: request}))


def undeclared() -> None: ...


async def handle_undeclared(value: Annotated[Any, Depends(undeclared, scope="lifespan")]) -> None:
    raise AssertionError


async def test_k11_where_there_is_no_value_the_true_reason_is_told() -> None:
    app = make_app()
    with pytest.raises(UninitializedLifespanDependency, match="the application is not running"):
        await solve(app, handle)
    async with app.router.lifespan_context(app):
        with pytest.raises(UninitializedLifespanDependency, match="nothing asked for it"):
            await solve(app, handle_undeclared)
        with pytest.raises(UninitializedLifespanDependency, match="names no application") as caught:
            await solve(None, handle)
        assert "`app.lifespan_container[get_db]`" in str(caught.value)
        with pytest.raises(UninitializedLifespanDependency, match="is a plain FastAPI"):
            await solve(FastAPI(), handle)
    with pytest.raises(UninitializedLifespanDependency, match="the application is not running"):
        await solve(app, handle)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_k11_in_another_event_loop_there_is_no_value() -> None:
    app = make_app()

    def elsewhere() -> None:
        with pytest.raises(UninitializedLifespanDependency, match="in another event loop"):
            asyncio.run(solve(app, handle))

    async with app.router.lifespan_context(app):
        await asyncio.to_thread(elsewhere)


async def test_k11_a_declaration_that_is_called_without_a_request_says_whom_to_ask() -> None:
    """As taskiq does it, where nobody gave it a connection."""
    marker = lifespan_marker(Depends(get_db, scope="lifespan"), None)
    assert marker is not None
    with pytest.raises(UninitializedLifespanDependency, match="without a request") as caught:
        await marker()
    assert "`app.lifespan_container[get_db]`" in str(caught.value)


async def test_k11_a_declaration_that_is_taken_for_the_value_says_whom_to_ask() -> None:
    async def every_hour(db: Any = Depends(get_db, scope="lifespan")) -> None:
        db.execute("...")

    with pytest.raises(AttributeError, match="declaration of `get_db`, not its value") as caught:
        await every_hour()
    assert "`app.lifespan_container[get_db]`" in str(caught.value)
    assert not hasattr(Depends(scope="lifespan"), "execute")


def repeat_every(function: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """As in fastapi-utils: a hook that calls the function again and again, with nothing."""

    @functools.wraps(function)
    async def wrapped() -> None:
        await function()

    return wrapped


def test_k11_a_hook_whose_wrapper_takes_no_arguments_fails_the_start() -> None:
    async def clean_up(db: DbDep) -> None:
        raise AssertionError

    app = make_app()
    app.router.on_startup.append(repeat_every(clean_up))
    with pytest.raises(InvalidLifespanDependency) as caught, TestClient(app):
        pass
    message = str(caught.value)
    assert "clean_up` declares `db`, and what wraps it takes no such argument" in message
    assert "`app.lifespan_container`" in message


async def test_k11_a_container_on_a_request_without_an_application_says_whom_to_ask() -> None:
    with pytest.raises(UninitializedLifespanDependency) as caught:
        await solve(None, handle_container)
    assert str(caught.value).endswith("ask the running application: `app.lifespan_container`.")
