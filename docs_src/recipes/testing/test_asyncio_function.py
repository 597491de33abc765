from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient

from .main import app


@pytest_asyncio.fixture
async def fresh_client() -> AsyncIterator[AsyncClient]:
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.mark.asyncio
async def test_users(fresh_client: AsyncClient) -> None:
    assert (await fresh_client.get("/users")).json() == ["Ada", "Grace"]
