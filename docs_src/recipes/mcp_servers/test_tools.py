from collections.abc import AsyncIterator

import pytest
from mcp import Client

from .main import Shelf, app, get_shelf, stock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setitem(app.dependency_overrides, get_shelf, Shelf)
    async with app.router.lifespan_context(app), Client(stock) as client:
        yield client


async def test_take(client: Client) -> None:
    taken = await client.call_tool("take", {"item": "tea"})
    assert taken.structured_content == {"result": 2}
    counted = await client.call_tool("count", {"item": "tea"})
    assert counted.structured_content == {"result": 2}


async def test_nothing_is_left(client: Client) -> None:
    for _ in range(3):
        await client.call_tool("take", {"item": "tea"})
    refused = await client.call_tool("take", {"item": "tea"})
    assert refused.is_error
    counted = await client.call_tool("count", {"item": "tea"})
    assert counted.structured_content == {"result": 0}
