"""Clause 11: `fastapi.Depends(fn, scope="lifespan")` means the same as ours in our applications."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    LifespanDependencyError,
    LifespanFastAPI,
)

numbers = count(1)
started: list[int] = []
stopped: list[int] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    started.clear()
    stopped.clear()


def get_number() -> Iterator[int]:
    number = next(numbers)
    started.append(number)
    yield number
    stopped.append(number)


def stock(dependency: Callable[..., Any], **options: Any) -> Any:
    """FastAPI's own declaration; type checkers know that it has no such scope."""
    return fastapi.Depends(dependency, scope="lifespan", **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


Stock = Annotated[int, stock(get_number)]
StockOwn = Annotated[int, stock(get_number, use_cache=False)]
Ours = Annotated[int, Depends(get_number, scope="lifespan")]


async def get_user(number: Stock) -> int:
    return number


def get_pair(number: Stock, ours: Ours) -> tuple[int, int]:
    return number, ours


def get_scaled(number: Stock, scale: int = 10) -> int:
    started.append(number * scale)
    return started[-1]


def test_parameters_of_both_kinds_share_one_instance() -> None:
    app, router = LifespanFastAPI(), APIRouter()

    @app.get("/both")
    def read_both(stock: Stock, ours: Ours) -> list[int]:
        return [stock, ours]

    @router.get("/user")
    async def read_user(user: Annotated[int, fastapi.Depends(get_user)]) -> list[int]:
        return [user]

    @router.websocket("/ws")
    async def talk(websocket: WebSocket, number: Stock) -> None:
        await websocket.accept()
        await websocket.send_json([number])
        await websocket.close()

    app.include_router(router, prefix="/included")
    with TestClient(app) as client:
        (number,) = started
        for _ in range(2):
            assert client.get("/both").json() == [number, number]
            assert client.get("/included/user").json() == [number]
            with client.websocket_connect("/included/ws") as websocket:
                assert websocket.receive_json() == [number]
        assert stopped == []
    assert started == stopped == [number]


def test_providers_of_both_kinds_share_what_they_take() -> None:
    def get_all(pair: Annotated[Any, stock(get_pair)], number: Ours) -> list[int]:
        return [*pair, number]

    app = LifespanFastAPI()

    @app.get("/stock")
    def read_stock(all: Annotated[list[int], stock(get_all)]) -> list[int]:
        return all

    @app.get("/ours")
    def read_ours(all: Annotated[list[int], Depends(get_all, scope="lifespan")]) -> list[int]:
        return all

    with TestClient(app) as client:
        (number,) = started
        assert client.get("/stock").json() == client.get("/ours").json() == [number] * 3


@pytest.mark.parametrize("place", ["app", "router", "include", "route", "websocket"])
def test_a_list_of_dependencies_starts_it_once(place: str) -> None:
    lists: dict[str, list[Any]] = {place: [stock(get_number), fastapi.Depends(get_user)]}
    app, router = (
        LifespanFastAPI(dependencies=lists.get("app")),
        APIRouter(dependencies=lists.get("router")),
    )

    @router.get("/", dependencies=lists.get("route"))
    async def read() -> None:
        pass

    @router.websocket("/ws", dependencies=lists.get("websocket"))
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app.include_router(router, prefix="/a", dependencies=lists.get("include"))
    with TestClient(app) as client:
        (number,) = started
        for _ in range(2):
            assert client.get("/a/").status_code == 200
            with client.websocket_connect("/a/ws") as websocket:
                assert websocket.receive()["type"] == "websocket.close"
    assert started == stopped == [number]


@pytest.mark.skipif(
    not hasattr(fastapi.routing, "_FrontendRouteGroup"),
    reason="frontends have dependencies from 0.139.0 on",
)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("provider", [get_number, get_scaled])
def test_a_frontend_starts_it(
    provider: Callable[..., Any], use_cache: bool, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("hello")
    dependency = stock(provider, use_cache=use_cache)
    app, router = LifespanFastAPI(dependencies=[dependency]), APIRouter()
    app.frontend("/", directory=tmp_path)
    router.frontend("/site", directory=tmp_path)
    app.include_router(router, prefix="/a", dependencies=[dependency])
    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/").text == client.get("/a/site/").text == "hello"
    # without the cache: one for the first frontend, two for the second
    places = 1 if use_cache else 3
    assert len(started) == places + (provider is get_scaled)


def test_use_cache_false_gives_one_per_place() -> None:
    """FastAPI drops `use_cache` from what it makes of a list; the list itself still has it."""
    app = LifespanFastAPI(dependencies=[stock(get_number, use_cache=False)])

    def get_two(one: StockOwn, two: StockOwn) -> list[int]:
        return [one, two]

    def get_one(one: StockOwn) -> list[int]:
        return [one]

    @app.get("/a")
    def read_a(
        one: StockOwn,
        shared: Stock,
        two: Annotated[list[int], fastapi.Depends(get_two)],
        three: Annotated[list[int], stock(get_one)],
    ) -> list[int]:
        return [one, shared, *two, *three]

    @app.get("/b")
    def read_b(one: StockOwn) -> list[int]:
        return [one]

    with TestClient(app) as client:
        answers = client.get("/a").json() + client.get("/b").json()
        assert answers == client.get("/a").json() + client.get("/b").json()
        in_lists = set(started) - set(answers)
        assert (len(set(answers)), len(in_lists), len(started)) == (6, 2, 8)


def test_it_can_be_overridden() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(stock: Stock, user: Annotated[int, fastapi.Depends(get_user)]) -> list[int]:
        return [stock, user]

    with TestClient(app) as client:
        (number,) = started
        app.dependency_overrides[get_user] = lambda: 7
        assert client.get("/").json() == [number, 7]
        app.dependency_overrides = {get_number: lambda: 0}
        assert client.get("/").json() == [0, 0]
        app.dependency_overrides = {}
        assert client.get("/").json() == [number, number]


def test_it_works_in_a_mounted_plain_application() -> None:
    app, sub = LifespanFastAPI(), FastAPI()

    @sub.get("/")
    def read(number: Stock) -> int:
        return number

    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert [client.get("/sub/").json()] == started


class Query:
    def __init__(self, q: int) -> None:
        self.q = q


def takes_a_dependency_of_a_request(user: Annotated[int, fastapi.Depends(get_user)]) -> int:
    return user


def takes_a_query(q: int) -> int:
    return q


def takes_the_request(request: Request) -> str:
    return request.method


def add_route(app: FastAPI, dependency: Any) -> None:
    @app.get("/items/{item_id}")
    def read_item(item_id: int, value: Annotated[Any, dependency]) -> None:
        pass


def add_websocket(app: FastAPI, dependency: Any) -> None:
    @app.websocket("/ws")
    async def talk(websocket: WebSocket, value: Annotated[Any, dependency]) -> None:
        pass


def add_list(app: FastAPI, dependency: Any) -> None:
    router = APIRouter()

    @router.api_route("/list", methods=["PUT", "DELETE"])
    async def write() -> None:
        pass

    app.include_router(router, prefix="/included", dependencies=[dependency])


def add_mounted(app: FastAPI, dependency: Any) -> None:
    sub = FastAPI()
    add_route(sub, dependency)
    app.mount("/sub", sub)


def add_sub_dependency(app: FastAPI, dependency: Any) -> None:
    def get_settings(value: Annotated[Any, dependency]) -> None:
        pass

    @app.post("/settings")
    def write_settings(settings: Annotated[Any, fastapi.Depends(get_settings)]) -> None:
        pass


@pytest.mark.parametrize(
    ("add", "path"),
    [
        (add_route, ["GET /items/{item_id}", "read_item", "value"]),
        (add_websocket, ["WEBSOCKET /ws", "talk", "value"]),
        (add_list, ["DELETE PUT /included/list", "write", "dependencies[0]"]),
        (add_mounted, ["GET /sub/items/{item_id}", "read_item", "value"]),
        (add_sub_dependency, ["POST /settings", "write_settings", "settings", "value"]),
    ],
)
@pytest.mark.parametrize(
    ("provider", "culprit"),
    [
        (takes_a_dependency_of_a_request, "user"),
        (takes_a_query, "q: int"),
        (takes_the_request, "request: "),
    ],
)
def test_what_belongs_to_a_request_is_found_at_startup_with_the_route(
    add: Callable[[FastAPI, Any], None],
    path: list[str],
    provider: Callable[..., Any],
    culprit: str,
) -> None:
    app = LifespanFastAPI()
    add(app, stock(provider))
    with pytest.raises(DependencyScopeError) as caught, TestClient(app):
        pass
    rest = str(caught.value)
    for part in [*path, provider.__name__, culprit]:
        assert part in rest, (part, str(caught.value))
        rest = rest[rest.index(part) :]
    assert caught.value.provider is provider


@pytest.mark.skipif(
    not hasattr(fastapi.routing, "_FrontendRouteGroup"),
    reason="frontends have dependencies from 0.139.0 on",
)
@pytest.mark.parametrize(("prefix", "label"), [("", "frontend\n"), ("/a", "/a frontend\n")])
def test_the_message_names_a_frontend(prefix: str, label: str, tmp_path: Path) -> None:
    app, router = LifespanFastAPI(), APIRouter(dependencies=[stock(takes_a_query)])
    router.frontend("/", directory=tmp_path)
    app.include_router(router, prefix=prefix)
    with pytest.raises(DependencyScopeError) as caught, TestClient(app):
        pass
    assert f"\n\n  {label}" in str(caught.value)


def test_an_invalid_declaration_starts_nothing() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(number: Stock, value: Annotated[int, stock(takes_a_query)]) -> None:
        pass

    with pytest.raises(LifespanDependencyError), TestClient(app):
        pass
    assert started == []
