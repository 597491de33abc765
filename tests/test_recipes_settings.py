"""docs/recipes/settings.md: settings that are read when the application starts."""

from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from pydantic import HttpUrl, SecretStr, ValidationError

from docs_src.recipes.settings import factory, main, routes, test_main
from tests.clients import running

pytestmark = pytest.mark.anyio

overrides = test_main.overrides
test_the_client_is_made_of_the_settings = test_main.test_the_client_is_made_of_the_settings
test_page_size = test_main.test_page_size
test_the_environment = test_main.test_the_environment


def test_what_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one class, everything that is wrong; and secrets aren't among it."""
    monkeypatch.setenv("SHOP_PRICES_URL", "nowhere")
    with pytest.raises(ValidationError) as caught, TestClient(main.app):
        raise AssertionError("started")
    assert {error["loc"] for error in caught.value.errors()} == {("url",), ("api_key",)}

    monkeypatch.delenv("SHOP_PRICES_URL")
    monkeypatch.setenv("SHOP_PRICES_API_KEY", "hush")
    with (
        pytest.raises(ValidationError, match="url\n  Field required") as caught,
        TestClient(main.app),
    ):
        raise AssertionError("started")
    assert "hush" not in str(caught.value)
    hushed = main.PricesSettings(url=HttpUrl("http://prices.test"), api_key=SecretStr("hush"))
    assert "hush" not in repr(hushed)


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("SHOP_PAGE_SIZE=9\nSHOP_PRICES_URL=http://file\nSHOP_PRICES_API_KEY=a")
    with TestClient(main.app) as client:
        assert client.get("/page-size").json() == 9
        monkeypatch.setenv("SHOP_PAGE_SIZE", "8")  # too late
        assert client.get("/page-size").json() == 9
    with TestClient(main.app) as client:
        assert client.get("/page-size").json() == 8  # and it wins


async def test_a_refresh_reads_one_class_and_rebuilds_what_is_made_of_it(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setenv("SHOP_PRICES_URL", "http://old")
    monkeypatch.setenv("SHOP_PRICES_API_KEY", "old")
    async with running(main.app) as client:
        container = main.app.lifespan_container
        before = container[main.Settings]
        monkeypatch.setenv("SHOP_PRICES_URL", "http://new")
        await container.refresh(main.PricesSettings)
        assert (await client.get("/prices-url")).json() == "http://new/"
        assert container[main.Settings] is before

        monkeypatch.setenv("SHOP_PRICES_URL", "nowhere")
        with pytest.raises(ValidationError):
            await container.refresh(main.PricesSettings)
        assert (await client.get("/prices-url")).json() == "http://new/"


def test_a_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    app = factory.create_app(routes.Settings(title="Test", origins=["http://front.test"]))
    assert app.title == "Test"
    with TestClient(app) as client:
        answer = client.get("/title", headers={"Origin": "http://front.test"})
        assert answer.json() == "Test"
        assert answer.headers["Access-Control-Allow-Origin"] == "http://front.test"

    monkeypatch.setenv("SHOP_TITLE", "Production")
    target = "docs_src.recipes.settings.factory:create_app"
    config = uvicorn.Config(target, factory=True, log_config=None, lifespan="on")
    config.load()
    loaded: Any = config.loaded_app
    with TestClient(loaded) as client:
        assert client.get("/title").json() == "Production"
