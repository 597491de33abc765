from unittest.mock import patch

from fastapi.testclient import TestClient

from docs_src.moving.shop import Pool

from . import before


def test_read_user() -> None:
    pool = Pool("postgresql://localhost/test")
    with patch.object(before, "pool", pool), TestClient(before.app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
