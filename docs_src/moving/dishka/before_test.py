from dishka import Provider, Scope, provide
from fastapi.testclient import TestClient

from docs_src.moving.shop import Settings

from .before import create_app


class TestSettings(Settings):
    __test__ = False
    url = "postgresql://localhost/test"


class TestProvider(Provider):
    __test__ = False
    settings = provide(TestSettings, provides=Settings, scope=Scope.APP)


def test_read_user() -> None:
    with TestClient(create_app(TestProvider())) as client:
        assert client.get("/users/1").json() == "user 1 of postgresql://localhost/test"
