"""Clause 1: what `dependencies=[...]` lists is started, though no path operation takes it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, routing
from fastapi import Depends as FastAPIDepends
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    LifespanFastAPI,
    enable_lifespan_scope,
    get_container,
)
from tests.recording import provider

is_tree = hasattr(routing, "iter_route_contexts")
needs_tree = pytest.mark.skipif(not is_tree, reason="FastAPI 0.137.2 and later")


def listed(get_value: Any, **options: Any) -> list[Any]:
    return [Depends(get_value, scope="lifespan", **options)]


def of_the_application(get_value: Any) -> FastAPI:
    return LifespanFastAPI(dependencies=listed(get_value))


def of_an_enabled_application(get_value: Any) -> FastAPI:
    return enable_lifespan_scope(FastAPI(dependencies=listed(get_value)))


def of_an_include(get_value: Any) -> FastAPI:
    app = LifespanFastAPI()
    app.include_router(APIRouter(), prefix="/x", dependencies=listed(get_value))
    return app


def of_an_included_router(get_value: Any) -> FastAPI:
    app = LifespanFastAPI()
    app.include_router(APIRouter(dependencies=listed(get_value)), prefix="/x")
    return app


def of_a_deep_router(get_value: Any) -> FastAPI:
    app, outer = LifespanFastAPI(), APIRouter()
    outer.include_router(APIRouter(dependencies=listed(get_value)), prefix="/inner")
    app.include_router(outer, prefix="/outer")
    return app


def of_a_deep_include(get_value: Any) -> FastAPI:
    app, outer = LifespanFastAPI(), APIRouter()
    outer.include_router(APIRouter(), prefix="/inner", dependencies=listed(get_value))
    app.include_router(outer, prefix="/outer")
    return app


def of_a_mounted_application(get_value: Any) -> FastAPI:
    app = LifespanFastAPI()
    app.mount("/child", FastAPI(dependencies=listed(get_value)))
    return app


def of_fastapi(get_value: Any) -> FastAPI:
    return LifespanFastAPI(dependencies=[FastAPIDepends(get_value, scope="lifespan")])  # type: ignore[arg-type]


MAKE = pytest.mark.parametrize(
    "make",
    [
        of_the_application,
        of_an_enabled_application,
        of_an_include,
        of_an_included_router,
        pytest.param(of_a_deep_router, marks=needs_tree),
        pytest.param(of_a_deep_include, marks=needs_tree),
        of_a_mounted_application,
        of_fastapi,
    ],
)


@MAKE
@pytest.mark.parametrize("others", ["nothing", "a mount", "a Starlette route"])
def test_it_is_started_without_a_path_operation(
    make: Callable[[Any], FastAPI], others: str
) -> None:
    events: list[str] = []
    get_value = provider("value", events)
    app = make(get_value)

    async def handle(request: Any) -> PlainTextResponse:
        return PlainTextResponse("handled")

    if others == "a mount":
        app.mount("/others", Starlette(routes=[Route("/", handle)]))
    elif others == "a Starlette route":
        app.router.routes.append(Route("/others/", handle))
    with TestClient(app) as client:
        assert events == ["start value"]
        if others != "nothing":
            assert client.get("/others/").text == "handled"
    assert events == ["start value", "stop value"]


@MAKE
def test_a_path_operation_that_takes_it_shares_it(make: Callable[[Any], FastAPI]) -> None:
    events: list[str] = []
    get_value = provider("value", events)
    app = make(get_value)

    @app.get("/value")
    async def read(value: Annotated[Any, Depends(get_value, scope="lifespan")]) -> None: ...

    with TestClient(app) as client:
        assert client.get("/value").status_code == 200
        assert events == ["start value"]


def test_a_route_that_is_added_later_finds_it() -> None:
    events: list[str] = []
    get_value = provider("value", events)
    app = of_the_application(get_value)
    with TestClient(app) as client:

        @app.get("/late")
        async def late() -> str:
            return "late"

        assert client.get("/late").json() == "late"
    assert events == ["start value", "stop value"]


@pytest.mark.parametrize("has_route", [False, True])
def test_clause_3_each_entry_of_a_list_has_its_own_without_use_cache(has_route: bool) -> None:
    events: list[str] = []
    get_value = provider("value", events)
    own = listed(get_value, use_cache=False)
    app = LifespanFastAPI(dependencies=[*own, *listed(get_value, use_cache=False)])
    if has_route:
        app.get("/")(lambda: None)
    for _ in range(2):
        with TestClient(app):
            assert events == ["start value"] * 2
        events.clear()


@pytest.mark.parametrize("use_cache", [False, True])
def test_an_entry_whose_first_route_is_added_by_the_lifespan_is_started_once(
    use_cache: bool,
) -> None:
    events: list[str] = []
    entry = listed(provider("value", events), use_cache=use_cache)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.get("/")(lambda: None)
        yield

    with TestClient(LifespanFastAPI(dependencies=entry, lifespan=lifespan)) as client:
        assert client.get("/").status_code == 200
    assert events == ["start value", "stop value"]


def test_the_order_is_that_of_the_routes_and_then_of_the_lists() -> None:
    events: list[str] = []
    first, second, third = (provider(name, events) for name in ("first", "second", "third"))
    app = LifespanFastAPI(dependencies=listed(first))
    router = APIRouter(dependencies=listed(third))
    app.include_router(router, prefix="/x", dependencies=listed(second))
    with TestClient(app):
        assert events == ["start first", "start second", "start third"]


def test_an_override_applies_to_it() -> None:
    events: list[str] = []
    get_value = provider("value", events)
    app = of_the_application(get_value)
    app.dependency_overrides[get_value] = provider("fake", events)
    with TestClient(app):
        assert events == ["start fake"]


def test_the_container_has_it() -> None:
    async def get_value() -> str:
        return "value"

    app = of_the_application(get_value)

    async def handle(request: Any) -> PlainTextResponse:
        return PlainTextResponse((await get_container(request))[get_value])

    app.router.routes.append(Route("/", handle))
    with TestClient(app) as client:
        assert client.get("/").text == "value"


def test_what_asks_for_a_request_fails_the_startup() -> None:
    async def get_user(name: str) -> str:
        return name

    app = of_the_application(get_user)
    with pytest.raises(DependencyScopeError) as raised, TestClient(app):
        pass
    assert "dependencies of the application" in str(raised.value)
    assert "dependencies[0]" in str(raised.value)


def test_a_dependency_of_requests_is_left_to_them() -> None:
    called: list[str] = []

    def get_session() -> None:
        called.append("session")

    with TestClient(LifespanFastAPI(dependencies=[FastAPIDepends(get_session)])):
        pass
    assert called == []
