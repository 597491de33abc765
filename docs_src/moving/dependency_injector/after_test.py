from fastapi.testclient import TestClient

from docs_src.moving.shop import Settings

from .after import app


class TestSettings(Settings):
    __test__ = False
    url = "postgresql://localhost/test"


def test_read_user() -> None:
    app.dependency_overrides[Settings] = TestSettings
    try:
        with TestClient(app) as client:
            assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
    finally:
        app.dependency_overrides.clear()
