from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from .main import app, get_prices

service = FastAPI()  # stands for the other one


@service.get("/items/{item}")
async def read_item(item: str) -> dict[str, float]:
    return {"price": {"tea": 4.5}[item]}


async def get_test_prices() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://prices") as client:
        yield client


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setitem(app.dependency_overrides, get_prices, get_test_prices)
    with TestClient(app) as client:
        yield client


def test_price(client: TestClient) -> None:
    assert client.get("/prices/tea").json() == 4.5


def test_the_service_fails(client: TestClient) -> None:
    assert client.get("/prices/coffee").status_code == 502
