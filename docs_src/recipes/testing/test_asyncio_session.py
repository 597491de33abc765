from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient

from .main import app

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_client() -> AsyncIterator[AsyncClient]:
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_users(shared_client: AsyncClient) -> None:
    assert (await shared_client.get("/users")).json() == ["Ada", "Grace"]


async def test_reviews(shared_client: AsyncClient) -> None:
    answer = await shared_client.get("/reviews/1", params={"text": "good"})
    assert answer.json() == "Grace is neutral"
