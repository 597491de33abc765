from fastapi.testclient import TestClient

from .main import app, get_pool
from .test_fixture import get_fake_pool


def test_override_while_the_application_runs() -> None:
    with TestClient(app, headers={"user-id": "1"}) as client:
        assert client.get("/me").json() == "user 1 of postgresql://localhost/shop"

        app.dependency_overrides[get_pool] = get_fake_pool
        assert client.get("/me").json() == "Ada"

        del app.dependency_overrides[get_pool]
        assert client.get("/me").json() == "user 1 of postgresql://localhost/shop"
