from fastapi.testclient import TestClient

from .app import Pool, app, get_pool


def get_broken_pool() -> Pool:
    raise ConnectionError("no database at localhost")


with TestClient(app) as client:
    app.dependency_overrides[get_pool] = get_broken_pool
    client.get("/users/1")
