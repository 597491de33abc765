import pytest
from asgi_lifespan import LifespanManager
from httpx import ASGITransport, AsyncClient

from .main import app


@pytest.mark.anyio
async def test_read_me() -> None:
    async with LifespanManager(app) as manager:
        transport = ASGITransport(app=manager.app)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/me", headers={"user-id": "1"})
    assert response.json() == "user 1 of postgresql://localhost/shop"
