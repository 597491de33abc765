from unittest.mock import patch

from fastapi.testclient import TestClient

from . import before


def test_read_user() -> None:
    url = "postgresql://localhost/test"
    with patch.object(before.settings, "url", url), TestClient(before.app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
