from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from ..database import Pool
from .main import app, get_pool


class FakePool(Pool):
    async def fetch_user(self, user_id: int) -> str:
        return "Ada"


def get_fake_pool() -> Pool:
    return FakePool("memory")


@pytest.fixture
def client() -> Iterator[TestClient]:
    app.dependency_overrides[get_pool] = get_fake_pool
    with TestClient(app) as client:
        yield client
    app.dependency_overrides.clear()


def test_read_me(client: TestClient) -> None:
    response = client.get("/me", headers={"user-id": "1"})
    assert response.json() == "Ada"
