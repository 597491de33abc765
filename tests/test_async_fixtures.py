"""Clause 7: pytest plugins enter and leave an asynchronous fixture, in one task or in two."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import httpx
import pytest
import pytest_asyncio

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_value() -> AsyncIterator[str]:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield "value"
        group.cancel_scope.cancel()


@asynccontextmanager
async def running() -> AsyncIterator[httpx.AsyncClient]:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(value: Annotated[str, Depends(get_value, scope="lifespan")]) -> str:
        return value

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest_asyncio.fixture
async def pytest_asyncio_client() -> AsyncIterator[httpx.AsyncClient]:
    async with running() as client:
        yield client


@pytest.fixture
async def anyio_client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running() as client:
        yield client


@pytest.mark.asyncio
async def test_a_run_in_a_fixture_of_pytest_asyncio(
    pytest_asyncio_client: httpx.AsyncClient,
) -> None:
    assert (await pytest_asyncio_client.get("/")).json() == "value"


@pytest.mark.anyio
async def test_a_run_in_a_fixture_of_anyio(anyio_client: httpx.AsyncClient) -> None:
    assert (await anyio_client.get("/")).json() == "value"
