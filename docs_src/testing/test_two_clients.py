from fastapi.testclient import TestClient

from ..use_cache import app


def test_two_clients_are_two_runs() -> None:
    with TestClient(app) as first, TestClient(app) as second:
        assert first.post("/orders").json() == {"own": 1, "shared": 1}
        assert first.post("/orders").json() == {"own": 2, "shared": 2}
        assert second.post("/orders").json() == {"own": 1, "shared": 1}
