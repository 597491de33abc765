"""Clause 10: dependencies that others solve, on a request of their own or without one."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Request
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


async def solve(app: FastAPI | None, function: Callable[..., Awaitable[Any]]) -> Any:
    """As FastStream's plugin and fastapi-injectable do it."""
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
            dependant=get_dependant(path="", call=function),
            async_exit_stack=stack,
            embed_body_fields=False,
        )
        return await function(**solved.values)


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
