import os
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi.testclient import TestClient
from redis.asyncio import Redis

from .main import app, get_redis


async def get_test_redis() -> AsyncIterator[Redis]:
    url = os.environ["TEST_REDIS_URL"]
    async with Redis.from_url(url, decode_responses=True) as redis:
        await redis.flushdb()
        yield redis


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setitem(app.dependency_overrides, get_redis, get_test_redis)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("attempt", [1, 2])
def test_visits_are_counted(client: TestClient, attempt: int) -> None:
    assert client.post("/visits/home").json() == 1
    assert client.post("/visits/home").json() == 2
