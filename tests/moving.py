"""The examples of "Moving here", and what an application must do before the move as after it.

Imported by tests/test_moving.py, and by scripts/moving_here/, which runs the same checks with the
other libraries, in an environment without most of what the tests need.
"""

import asyncio
import importlib
import sys
from types import ModuleType
from typing import Any

from fastapi.testclient import TestClient

URL = "postgresql://localhost/shop"
TEST_URL = "postgresql://localhost/test"
# Those of FastAPI alone, which tests/test_moving.py runs before and after.
OF_FASTAPI = ("app_state", "module_globals", "on_event")
# Those of other libraries, named as their distributions are, but for the hyphens.
OF_LIBRARIES = ("dependency_injector", "dishka", "svcs", "wireup")
# Of the latter, and of the one that isn't about requests.
MOMENTS = [(name, when) for name in OF_LIBRARIES for when in ("before", "during", "after")]
MOMENTS += [("fastapi_injectable", when) for when in ("before", "after")]


def load(name: str) -> ModuleType:
    """Import a module of docs_src/moving/ as if for the first time, and what it imports there."""
    for module in list(sys.modules):
        if module.startswith("docs_src.moving."):
            del sys.modules[module]
    return importlib.import_module(f"docs_src.moving.{name}")


def shop() -> Any:
    """What the module that was loaded last has imported."""
    return importlib.import_module("docs_src.moving.shop")


def log() -> list[str]:
    """What has happened since the last `load`."""
    lines: list[str] = shop().log
    return lines


def check(name: str) -> None:
    """Check one of these modules: the same requests, the same answers, the same clean-up."""
    CHECKS.get(name.partition(".")[0], check_sessions)(load(name))


def check_test(name: str) -> None:
    """Run the test that the page shows of it, which replaces something."""
    (test,) = (f for n, f in vars(load(f"{name}_test")).items() if n.startswith("test_"))
    test()


def failing(name: str, error: Exception | None = None) -> list[str]:
    """Let a request fail, and say what happened."""
    example = load(name)

    async def fetch_user(session: object, user_id: int) -> str:
        raise error or LookupError

    shop().Session.fetch_user = fetch_user
    with TestClient(example.app, raise_server_exceptions=False) as client:
        assert client.get("/users/1").is_error
    return log()


def with_failing_commit(name: str) -> int:
    """Let a transaction fail when it is committed, and say which status the client gets."""
    example = load(name)

    async def end(session: object, what: str) -> None:
        raise ConnectionError

    shop().Session.end = end
    with TestClient(example.app, raise_server_exceptions=False) as client:
        return client.get("/users/1").status_code


def check_sessions(example: ModuleType) -> None:
    with TestClient(example.app) as client:
        assert client.get("/database").json() == URL
        assert client.get("/users/1").json() == f"user 1 of {URL}"
        assert client.get("/users/2").json() == f"user 2 of {URL}"
    one = ["begin", "commit"]
    assert log() == ["open the pool", *one, *one, "close the pool"]


def check_app_state(example: ModuleType) -> None:
    with TestClient(example.app) as client:
        answer = client.get("/users/1")
        assert answer.json() == f"user 1 of {URL}"
        assert answer.headers["database"] == URL
        assert client.get("/prices").json() == 1
        assert client.post("/prices").status_code == 204
        assert client.get("/prices").json() == 2
    assert log() == ["open the pool", "load prices 1", "load prices 2", "close the pool"]


def check_module_globals(example: ModuleType) -> None:
    with TestClient(example.app) as client:
        assert client.get("/users/1").json() == f"user 1 of {URL}"
        assert client.get("/prices").json() == 1
        assert client.get("/prices").json() == 1
        assert client.post("/prices").status_code == 204
        assert client.get("/prices").json() == 2


def check_on_event(example: ModuleType) -> None:
    with TestClient(example.app) as client:
        assert client.get("/users/1").json() == f"user 1 of {URL}"
        assert client.get("/prices").json() == 1
    lines = ["open the pool", "load prices 1", "serving", "save prices 1", "close the pool"]
    assert log() == lines


def check_fastapi_injectable(example: ModuleType) -> None:
    users = asyncio.run(example.work([1, 2]))
    assert users == [f"user {number} of {URL}" for number in (1, 2)]
    assert example.log[:3] == ["open the pool", "begin", "commit"]
    assert example.log[-1] == "close the pool"


CHECKS = {
    "fastapi_injectable": check_fastapi_injectable,
    "app_state": check_app_state,
    "module_globals": check_module_globals,
    "on_event": check_on_event,
}
