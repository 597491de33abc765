import pytest
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import LifespanContainer, LifespanFastAPI, lifespan_graph

from . import users
from .main import app
from .users import UsersDep, get_users, rename


def test_one_router() -> None:
    small = LifespanFastAPI()
    small.include_router(users.router)
    assert [node.provider for node in lifespan_graph(small).nodes] == [get_users]
    with TestClient(small) as client:
        assert client.get("/users").json() == ["Ada", "Grace"]


@pytest.mark.anyio
async def test_one_provider() -> None:
    async with LifespanContainer(get_users) as container:
        assert container[get_users].names == ["Ada", "Grace"]


@pytest.mark.anyio
async def test_one_function() -> None:
    async with LifespanContainer(handlers=[rename]) as container:
        await container.call(rename, 0, "Alan")


def read_names(users: UsersDep) -> list[str]:
    return users.names


def test_one_function_with_the_overrides_of_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(app.dependency_overrides, get_users, lambda: users.Users(["Alan"]))
    container = LifespanContainer.for_app(app, routes=False)
    assert container.run(read_names) == ["Alan"]
