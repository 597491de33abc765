from fastapi.testclient import TestClient

from docs_src.moving.shop import Settings

from .before import app, container


class TestSettings(Settings):
    __test__ = False
    url = "postgresql://localhost/test"


def test_read_user() -> None:
    with container.settings.override(TestSettings()), TestClient(app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
