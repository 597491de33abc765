from fastapi.testclient import TestClient

from .conftest import Override
from .users import Users, get_users


def test_with_other_users(client: TestClient, override: Override) -> None:
    override(get_users, lambda: Users(["Alan"]))
    assert client.get("/users").json() == ["Alan"]
    assert client.get("/reviews/0", params={"text": "good"}).json() == "Alan is neutral"


def test_with_the_users_of_the_session(client: TestClient) -> None:
    assert client.get("/users").json() == ["Ada", "Grace"]
    assert client.get("/reviews/0", params={"text": "good"}).json() == "Ada is neutral"
