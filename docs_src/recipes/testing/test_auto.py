from collections.abc import AsyncIterator

import pytest
from httpx import ASGITransport, AsyncClient

from .main import app


@pytest.fixture(scope="session")
async def session_client() -> AsyncIterator[AsyncClient]:
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_users(session_client: AsyncClient) -> None:
    assert (await session_client.get("/users")).json() == ["Ada", "Grace"]
