import pytest
from fastapi.testclient import TestClient
from pydantic import HttpUrl, SecretStr

from .main import PricesSettings, Settings, app

TEST_PRICES = PricesSettings(url=HttpUrl("http://prices.test"), api_key=SecretStr("test"))


@pytest.fixture
def overrides(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(app.dependency_overrides, PricesSettings, lambda: TEST_PRICES)
    return monkeypatch


def test_the_client_is_made_of_the_settings(overrides: pytest.MonkeyPatch) -> None:
    with TestClient(app) as client:
        assert client.get("/prices-url").json() == "http://prices.test/"


def test_page_size(overrides: pytest.MonkeyPatch) -> None:
    overrides.setitem(app.dependency_overrides, Settings, lambda: Settings(page_size=2))
    with TestClient(app) as client:
        assert client.get("/page-size").json() == 2


def test_the_environment(overrides: pytest.MonkeyPatch) -> None:
    overrides.setenv("SHOP_PAGE_SIZE", "7")
    with TestClient(app) as client:
        assert client.get("/page-size").json() == 7
