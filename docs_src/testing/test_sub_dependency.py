from fastapi.testclient import TestClient

from .main import Settings, app, get_settings


class TestSettings(Settings):
    __test__ = False
    url = "postgresql://localhost/test"


def test_pool_is_made_from_the_test_settings() -> None:
    app.dependency_overrides[get_settings] = TestSettings
    try:
        with TestClient(app) as client:
            response = client.get("/me", headers={"user-id": "1"})
    finally:
        app.dependency_overrides.clear()
    assert response.json() == "user 1 of postgresql://localhost/test"
