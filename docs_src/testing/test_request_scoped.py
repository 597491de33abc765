from fastapi.testclient import TestClient

from .main import PoolDep, app, get_user_id


def get_first_user_id(pool: PoolDep) -> int:
    assert pool.is_open
    return 1


def test_request_scoped_override_takes_the_pool() -> None:
    app.dependency_overrides[get_user_id] = get_first_user_id
    try:
        with TestClient(app) as client:
            assert client.get("/me").json() == "user 1 of postgresql://localhost/shop"
    finally:
        app.dependency_overrides.clear()
