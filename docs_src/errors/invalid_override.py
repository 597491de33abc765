from fastapi.testclient import TestClient

from .app import Pool, PoolDep, app, get_pool


def get_logged_pool(pool: PoolDep) -> Pool:  # means the override itself
    return pool


with TestClient(app) as client:
    app.dependency_overrides[get_pool] = get_logged_pool
    client.get("/users/1")
