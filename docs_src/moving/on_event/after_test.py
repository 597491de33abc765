from fastapi.testclient import TestClient

from docs_src.moving.shop import Pool

from .after import app, open_pool


def test_read_user() -> None:
    app.dependency_overrides[open_pool] = lambda: Pool("postgresql://localhost/test")
    try:
        with TestClient(app) as client:
            assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
    finally:
        app.dependency_overrides.clear()
