from collections.abc import AsyncIterator

import pytest
from httpx import ASGITransport, AsyncClient

from .main import app

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def anyio_client(anyio_backend: str) -> AsyncIterator[AsyncClient]:
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_users(anyio_client: AsyncClient) -> None:
    assert (await anyio_client.get("/users")).json() == ["Ada", "Grace"]


async def test_reviews(anyio_client: AsyncClient) -> None:
    answer = await anyio_client.get("/reviews/1", params={"text": "good"})
    assert answer.json() == "Grace is neutral"
