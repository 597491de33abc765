import svcs
from fastapi.testclient import TestClient

from docs_src.moving.shop import Pool

from .before import app


def test_read_user() -> None:
    with TestClient(app) as client:
        registry = svcs.fastapi.get_registry(client)
        registry.register_value(Pool, Pool("postgresql://localhost/test"))
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
