"""pytest-asyncio's fixtures: they are set up in one task and torn down in another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import anyio
import anyio.abc
import httpx
import pytest
import pytest_asyncio
from asgi_lifespan import LifespanManager

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from tests.clients import client_of

events: list[str] = []
app = LifespanFastAPI()


async def get_tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Hold a task group: only the task that entered it may leave it."""
    events.append("start")
    async with anyio.create_task_group() as tasks:
        yield tasks
    events.append("stop")


@app.get("/")
async def read_root(
    tasks: Annotated[anyio.abc.TaskGroup, Depends(get_tasks, scope="lifespan")],
) -> int:
    return id(tasks)


async def life(lifespan: AbstractAsyncContextManager[Any]) -> AsyncIterator[httpx.AsyncClient]:
    """What both fixtures do, with a check of the tear-down, which is not seen by a test."""
    events.clear()
    task = asyncio.current_task()
    async with lifespan, client_of(app) as client:
        yield client
    assert asyncio.current_task() is not task
    assert events == ["start", "stop"]


@pytest_asyncio.fixture(params=[app.router.lifespan_context, LifespanManager])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    async for client in life(request.param(app)):
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client_of_module() -> AsyncIterator[httpx.AsyncClient]:
    async for client in life(app.router.lifespan_context(app)):
        yield client


@pytest.mark.asyncio
async def test_a_fixture_runs_the_app_for_one_test(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).json() == (await client.get("/")).json()
    assert events == ["start"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("test", [1, 2])
async def test_a_fixture_runs_the_app_for_several_tests(
    client_of_module: httpx.AsyncClient, test: int
) -> None:
    assert (await client_of_module.get("/")).status_code == 200
    assert events == ["start"]
