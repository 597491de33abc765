from fastapi.testclient import TestClient

from docs_src.moving.shop import Pool

from .before import app, container


def test_read_user() -> None:
    pool = Pool("postgresql://localhost/test")
    with container.override({Pool: pool}), TestClient(app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
