from unittest.mock import patch

from fastapi.testclient import TestClient

from docs_src.moving.shop import Settings

from .before import app


def test_read_user() -> None:
    url = "postgresql://localhost/test"
    with patch.object(Settings, "url", url), TestClient(app) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
