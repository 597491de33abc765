"""Clause 3: `use_cache=True` is one instance per provider and run, `use_cache=False` one per place.

A place is a parameter of a callable, or for a list of dependencies an index in the merged list of
a route that is in effect.
"""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Self

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI

numbers = count(1)
started: list[int] = []
stopped: list[int] = []
listed: list[int] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    for numbered in (started, stopped, listed):
        numbered.clear()


async def get_number() -> AsyncIterator[int]:
    number = next(numbers)
    started.append(number)
    yield number
    stopped.append(number)


OwnDep = Depends(get_number, scope="lifespan", use_cache=False)
Own = Annotated[int, OwnDep]
Shared = Annotated[int, Depends(get_number, scope="lifespan")]


def get_other() -> str:
    return "other"


def get_other_fake() -> str:
    return "fake"


@pytest.fixture(params=["none", "before start", "while running"])
def overrides(request: pytest.FixtureRequest) -> str:
    """When an override is set that has nothing to do with the test."""
    return str(request.param)


class Clients(TestClient):
    """A client of an application of which an unrelated dependency is overridden, or not."""

    def __init__(self, app: FastAPI, overrides: str) -> None:
        @app.get("/other")
        def read_other(other: Annotated[str, Depends(get_other)]) -> str:
            return other

        self.overrides = overrides
        self.application = app
        if overrides == "before start":
            app.dependency_overrides[get_other] = get_other_fake
        super().__init__(app)

    def __enter__(self) -> Self:
        super().__enter__()
        if self.overrides == "while running":
            self.application.dependency_overrides[get_other] = get_other_fake
        other = "other" if self.overrides == "none" else "fake"
        assert self.get("/other").json() == other
        return self

    def read(self, *paths: str) -> list[Any]:
        """What the paths answer; each one the same when it is asked again."""
        answers = [self.get(path).json() for path in paths]
        assert answers == [self.get(path).json() for path in paths]
        return answers


def test_use_cache_shares_one_instance(overrides: str) -> None:
    app = LifespanFastAPI()

    def get_user(number: Shared) -> int:
        return number

    @app.get("/a")
    def read_a(one: Shared, two: Shared, user: Annotated[int, Depends(get_user)]) -> list[int]:
        return [one, two, user]

    @app.get("/b")
    def read_b(number: Shared) -> list[int]:
        return [number]

    with Clients(app, overrides) as client:
        (number,) = started
        assert client.read("/a", "/b") == [[number] * 3, [number]]
    assert started == stopped


def test_an_alias_used_in_two_endpoints_and_a_websocket_gives_each_its_own(overrides: str) -> None:
    app = LifespanFastAPI()

    @app.get("/a")
    def read_a(number: Own) -> int:
        return number

    @app.get("/b")
    def read_b(number: Own) -> int:
        return number

    @app.websocket("/ws")
    async def talk(websocket: WebSocket, number: Own) -> None:
        await websocket.accept()
        await websocket.send_json(number)
        await websocket.close()

    with Clients(app, overrides) as client:
        assert len(started) == 3
        answers = client.read("/a", "/b")
        for _ in range(2):
            with client.websocket_connect("/ws") as websocket:
                assert [*answers, websocket.receive_json()] == started
    assert stopped == started[::-1]


def test_two_parameters_of_one_function_get_one_each(overrides: str) -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(one: Own, two: Own) -> list[int]:
        return [one, two]

    with Clients(app, overrides) as client:
        assert client.read("/") == [started]
        assert len(started) == 2


def test_shared_and_own_instances_of_one_provider_are_apart(overrides: str) -> None:
    app = LifespanFastAPI()

    @app.get("/a")
    def read_a(shared: Shared, own: Own) -> list[int]:
        return [shared, own]

    @app.get("/b")
    def read_b(own: Own, shared: Shared) -> list[int]:
        return [shared, own]

    with Clients(app, overrides) as client:
        shared, own_a, own_b = started
        assert client.read("/a", "/b") == [[shared, own_a], [shared, own_b]]


def test_an_endpoint_on_two_paths_is_one_callable(overrides: str) -> None:
    def read(number: Own) -> int:
        return number

    app, router = LifespanFastAPI(), APIRouter()
    app.add_api_route("/a", read)
    router.add_api_route("/b", read)
    app.include_router(router)
    app.include_router(router, prefix="/again")

    with Clients(app, overrides) as client:
        (number,) = started
        assert client.read("/a", "/b", "/again/b") == [number] * 3


def test_each_parameter_of_request_scoped_dependencies_gets_one(overrides: str) -> None:
    app, router = LifespanFastAPI(), APIRouter()

    async def get_inner(number: Own) -> int:
        return number

    def get_user(
        one: Own, two: Own, inner: Annotated[int, Depends(get_inner)]
    ) -> Iterator[list[int]]:
        yield [one, two, inner]

    @app.get("/a")
    def read_a(
        user: Annotated[list[int], Depends(get_user)], inner: Annotated[int, Depends(get_inner)]
    ) -> list[int]:
        assert inner == user[2]
        return user

    @router.get("/b")
    def read_b(user: Annotated[list[int], Depends(get_user)], number: Own) -> list[int]:
        return [*user, number]

    app.include_router(router)
    with Clients(app, overrides) as client:
        user = client.read("/a")[0]
        assert client.read("/b") == [[*user, started[-1]]]
        assert sorted(user) == started[:3]
        assert len(started) == 4


def test_a_request_scoped_dependency_below_one_without_values_gets_one(overrides: str) -> None:
    async def get_inner(number: Own) -> int:
        return number

    class Outer:
        def __init__(self, inner: Annotated[int, Depends(get_inner)]) -> None:
            self.inner = inner

    def get_outermost(outer: Annotated[Outer, Depends()], q: int = 1) -> int:
        return outer.inner

    app = LifespanFastAPI()

    @app.get("/")
    def read(number: Annotated[int, Depends(get_outermost)]) -> int:
        return number

    with Clients(app, overrides) as client:
        assert client.read("/") == started


def test_each_provider_that_takes_one_gets_its_own(overrides: str) -> None:
    def get_a(number: Own) -> int:
        return number

    def get_b(number: Own, a: Annotated[int, Depends(get_a, scope="lifespan")]) -> list[int]:
        return [number, a]

    app = LifespanFastAPI()

    @app.get("/")
    def read(
        a: Annotated[int, Depends(get_a, scope="lifespan")],
        b: Annotated[list[int], Depends(get_b, scope="lifespan")],
        own: Own,
    ) -> list[int]:
        return [a, *b, own]

    with Clients(app, overrides) as client:
        of_a, of_b, own = started
        assert client.read("/") == [[of_a, of_b, of_a, own]]


def test_an_own_instance_shares_what_it_takes_itself(overrides: str) -> None:
    def get_pair(shared: Shared, own: Own) -> list[int]:
        return [shared, own, next(numbers)]

    own_pair = Depends(get_pair, scope="lifespan", use_cache=False)
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        one: Annotated[list[int], own_pair], two: Annotated[list[int], own_pair]
    ) -> list[list[int]]:
        return [one, two]

    with Clients(app, overrides) as client:
        shared, own = started
        ((one, two),) = client.read("/")
        assert one[:2] == two[:2] == [shared, own]
        assert one[2] != two[2]


async def nothing() -> None:
    pass


async def nothing_in_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def test_each_index_in_the_merged_list_of_a_route_gets_one(overrides: str) -> None:
    app = LifespanFastAPI(dependencies=[OwnDep])
    router = APIRouter(dependencies=[OwnDep, OwnDep])
    router.add_api_route("/a", nothing, dependencies=[OwnDep])
    router.add_api_websocket_route("/ws", nothing_in_websocket)
    app.include_router(router, dependencies=[OwnDep])
    app.include_router(router, prefix="/again")

    with Clients(app, overrides) as client:
        for _ in range(2):
            assert client.read("/a", "/again/a") == [None, None]
            for path in ("/ws", "/again/ws"):
                with client.websocket_connect(path) as websocket:
                    assert websocket.receive()["type"] == "websocket.close"
        # Included here, included again, and the application's own "/other".
        assert len(started) == (5 + 4) + (4 + 3) + 1
    assert stopped == started[::-1]


def test_a_request_scoped_dependency_in_lists_is_one_callable(overrides: str) -> None:
    def note(number: Own) -> None:
        listed.append(number)

    app = LifespanFastAPI(dependencies=[Depends(note)])
    router = APIRouter(dependencies=[Depends(note)])
    router.add_api_route("/a", nothing)
    app.include_router(router)
    with Clients(app, overrides) as client:
        client.read("/a")
    assert set(listed) == set(started)
    assert len(started) == 1


@pytest.mark.skipif(
    not hasattr(fastapi.routing, "_FrontendRouteGroup"),
    reason="frontends have dependencies from 0.139.0 on",
)
def test_each_index_in_the_list_of_a_frontend_gets_one(overrides: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('"hello"')
    app = LifespanFastAPI()
    router = APIRouter(dependencies=[OwnDep, OwnDep])
    router.frontend("/site", directory=tmp_path)
    app.include_router(router)
    app.include_router(router, prefix="/again", dependencies=[OwnDep])
    with Clients(app, overrides) as client:
        assert client.read("/site/", "/again/site/") == ["hello", "hello"]
        assert len(started) == 2 + 3


def test_a_second_run_gives_every_place_its_instance_again(overrides: str) -> None:
    def get_user(number: Own) -> int:
        return number

    def get_config(number: Own) -> int:
        return number

    app, router = LifespanFastAPI(), APIRouter(dependencies=[OwnDep])

    @router.get("/")
    def read(
        one: Own,
        two: Own,
        shared: Shared,
        user: Annotated[int, Depends(get_user)],
        config: Annotated[int, Depends(get_config, scope="lifespan")],
    ) -> list[int]:
        return [one, two, shared, user, config]

    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b")
    client = Clients(app, overrides)
    runs = []
    for _ in range(2):
        started.clear()
        with client:
            a, b = client.read("/a/", "/b/")
            assert a == b
            in_lists = set(started) - set(a)
            assert len(in_lists) == 2
            assert len(started) == len(set(started)) == 2 + 5
        runs.append({*started})
    assert runs[0].isdisjoint(runs[1])


def test_an_overridden_provider_keeps_one_instance_per_place() -> None:
    fakes = count(100)

    def get_fake() -> int:
        return next(fakes)

    app = LifespanFastAPI()

    @app.get("/")
    def read(one: Own, two: Own, shared: Shared, again: Shared) -> list[int]:
        return [one, two, shared, again]

    app.dependency_overrides[get_number] = get_fake
    with Clients(app, "none") as client:
        assert client.read("/") == [[100, 101, 102, 102]]
    assert started == []


class Endpoint:
    """Equal to nothing that hashes: FastAPI takes such an endpoint."""

    __hash__ = None  # type: ignore[assignment]  # that is the point

    def __call__(self, number: Own) -> int:
        return number


def test_an_endpoint_that_cannot_be_hashed_is_a_place_too(overrides: str) -> None:
    app = LifespanFastAPI()
    app.add_api_route("/a", Endpoint())
    app.add_api_route("/b", Endpoint())
    with Clients(app, overrides) as client:
        assert client.read("/a", "/b") == started
