"""Clause 1: what any route can reach is started once per run, and every request sees it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, Request, Response, Security, WebSocket
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_lifespan_deps import Depends, LifespanFastAPI, enable_lifespan_scope

has_route_tree = pytest.mark.skipif(
    not hasattr(fastapi.routing, "iter_route_contexts"),
    reason="up to 0.136.3 include_router copies the routes that are there, and no mounts",
)
has_frontend_dependencies = pytest.mark.skipif(
    not hasattr(fastapi.routing, "_FrontendRouteGroup"),
    reason="frontends have dependencies from 0.139.0 on",
)

started: list[object] = []
seen: list[object] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    started.clear()
    seen.clear()


def get_thing() -> object:
    started.append(object())
    return started[-1]


ThingDep = Depends(get_thing, scope="lifespan")
Thing = Annotated[object, ThingDep]


async def see(thing: Thing) -> None:
    seen.append(thing)


async def see_in_websocket(websocket: WebSocket, thing: Thing) -> None:
    await websocket.accept()
    seen.append(thing)
    await websocket.close()


async def nothing() -> None:
    pass


async def nothing_in_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


See = Depends(see)


def router_with(path: str = "/see", **options: Any) -> APIRouter:
    router = APIRouter(**options)
    router.add_api_route(path, see)
    return router


def app_with(app: FastAPI, path: str = "/see") -> FastAPI:
    app.add_api_route(path, see)
    return app


def every_method(app: FastAPI) -> str:
    methods = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"]
    for method in methods:
        app.add_api_route(f"/{method}", see, methods=[method])
    return " ".join(f"{method}:/{method}" for method in methods)


def one_route_of_several_methods(app: FastAPI) -> str:
    app.add_api_route("/see", see, methods=["GET", "POST"])
    return "/see POST:/see"


def websockets(app: FastAPI) -> str:
    router = APIRouter()
    for include in (app, router):
        include.add_api_websocket_route("/ws", see_in_websocket)
    app.include_router(router, prefix="/included")
    return "WS:/ws WS:/included/ws"


def requests_and_websockets(app: FastAPI) -> str:
    app.add_api_route("/see", see)
    app.add_api_websocket_route("/ws", see_in_websocket)
    return "/see WS:/ws /see"


def nested_routers(app: FastAPI) -> str:
    inner, middle = router_with(prefix="/inner"), router_with(prefix="/middle")
    inner.add_api_websocket_route("/ws", see_in_websocket)
    middle.include_router(inner)
    app.include_router(middle, prefix="/outer")
    return "/outer/middle/see /outer/middle/inner/see WS:/outer/middle/inner/ws"


def router_included_twice(app: FastAPI) -> str:
    router = router_with()
    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b")
    return "/a/see /b/see"


def route_added_after_another_include(app: FastAPI) -> str:
    app.include_router(router_with(), prefix="/a")
    app.add_api_route("/late", see)
    return "/a/see /late"


def route_added_after_its_router_was_included(app: FastAPI) -> str:
    router, inner = APIRouter(), APIRouter()
    router.include_router(inner, prefix="/inner")
    app.include_router(router)
    router.add_api_route("/late", see)
    inner.add_api_route("/late", see)
    inner.add_api_websocket_route("/ws", see_in_websocket)
    return "/late /inner/late WS:/inner/ws"


def custom_route_class(app: FastAPI) -> str:
    class Timed(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def timed(request: Request) -> Response:
                response: Response = await handle(request)
                response.headers["X-Timed"] = "yes"
                return response

            return timed

    app.router.route_class = Timed
    app.add_api_route("/see", see)
    app.include_router(router_with(route_class=Timed), prefix="/included")
    return "/see /included/see"


def dependency_of_a_dependency(app: FastAPI) -> str:
    async def outer(inner: Annotated[None, See]) -> None:
        pass

    def outermost(outer: Annotated[None, Depends(outer)], thing: Thing) -> Iterator[None]:
        seen.append(thing)
        yield

    @app.get("/nested")
    @app.get("/nested-too")
    def read(outermost: Annotated[None, Depends(outermost)]) -> None:
        pass

    return "/nested /nested-too"


def security(app: FastAPI) -> str:
    def check(scopes: SecurityScopes, thing: Thing) -> None:
        assert scopes.scopes == ["read"]
        seen.append(thing)

    @app.get("/secure")
    def read(user: Annotated[None, Security(check, scopes=["read"])]) -> None:
        pass

    return "/secure"


def listed_request_dependencies(app: FastAPI) -> str:
    app.add_api_route("/route", nothing, dependencies=[See])
    app.add_api_websocket_route("/ws", nothing_in_websocket, dependencies=[See])
    router = APIRouter(dependencies=[See])
    router.add_api_route("/router", nothing)
    app.include_router(router)
    router = APIRouter()
    router.add_api_route("/include", nothing)
    app.include_router(router, dependencies=[See])
    return "/route WS:/ws /router /include"


def mounted_plain_app(app: FastAPI) -> str:
    app.add_api_route("/see", see)
    app.mount("/sub", app_with(FastAPI()))
    return "/see /sub/see"


def mounted_lifespan_app(app: FastAPI) -> str:
    app.mount("/sub", app_with(LifespanFastAPI()))
    return "/sub/see"


def app_mounted_twice(app: FastAPI) -> str:
    sub = app_with(FastAPI())
    app.mount("/a", sub)
    app.mount("/b", sub)
    return "/a/see /b/see"


def app_mounted_in_mounted_app(app: FastAPI) -> str:
    sub, deeper = app_with(FastAPI()), FastAPI()
    deeper.include_router(router_with(), prefix="/included")
    sub.mount("/deeper", deeper)
    app.mount("/sub", sub)
    return "/sub/see /sub/deeper/included/see"


def app_mounted_in_included_router(app: FastAPI) -> str:
    router = APIRouter()
    router.mount("/sub", app_with(FastAPI()))
    app.include_router(router, prefix="/included")
    return "/included/sub/see"


def app_mounted_behind_middleware(app: FastAPI) -> str:
    app.mount("/a", CORSMiddleware(CORSMiddleware(app_with(FastAPI()))))
    cors = Middleware(CORSMiddleware)
    app.routes.append(Mount("/b", app_with(FastAPI()), middleware=[cors]))
    return "/a/see /b/see"


def app_mounted_by_starlette_routes(app: FastAPI) -> str:
    routes = [Mount("/sub", app_with(FastAPI())), APIRoute("/see", see)]
    app.routes.append(Mount("/list", routes=routes))
    app.mount("/router", Router([Mount("/sub", app_with(FastAPI()))]))
    app.mount("/starlette", Starlette(routes=[Mount("/sub", app_with(FastAPI()))]))
    return "/list/sub/see /list/see /router/sub/see /starlette/sub/see"


def mounted_router(app: FastAPI) -> str:
    router = router_with()
    router.include_router(router_with(), prefix="/inner")
    app.mount("/router", router)
    return "/router/see /router/inner/see"


def host(app: FastAPI) -> str:
    app.routes.append(Host("testserver", app_with(FastAPI())))
    return "/see"


REACHED = [
    every_method,
    one_route_of_several_methods,
    websockets,
    requests_and_websockets,
    nested_routers,
    router_included_twice,
    route_added_after_another_include,
    pytest.param(route_added_after_its_router_was_included, marks=has_route_tree),
    custom_route_class,
    dependency_of_a_dependency,
    security,
    listed_request_dependencies,
    mounted_plain_app,
    mounted_lifespan_app,
    app_mounted_twice,
    app_mounted_in_mounted_app,
    pytest.param(app_mounted_in_included_router, marks=has_route_tree),
    app_mounted_behind_middleware,
    app_mounted_by_starlette_routes,
    mounted_router,
    host,
]


def visit(client: TestClient, requests: str) -> int:
    """Send each of `METHOD:/path` and return their number; without a method, it is GET."""
    for request in requests.split():
        method, _, path = request.rpartition(":")
        if method == "WS":
            with client.websocket_connect(path) as websocket:
                assert websocket.receive()["type"] == "websocket.close"
        else:
            response = client.request(method or "GET", path)
            assert response.status_code == 200, (request, response.text)
    return len(requests.split())


@pytest.mark.parametrize("add", REACHED)
def test_a_dependency_is_started_once_before_serving_and_shared_by_all(
    add: Callable[[FastAPI], str],
) -> None:
    app = LifespanFastAPI()
    requests = add(app)
    with TestClient(app) as client:
        (thing,) = started
        sent = visit(client, requests) + visit(client, requests)
        assert started == [thing]
    assert len(seen) >= sent
    assert all(one is thing for one in seen)


class MyFastAPI(FastAPI):
    pass


class MyRouter(APIRouter):
    def greet(self) -> str:
        return "hello"


def app_with_its_own_router_class() -> FastAPI:
    app = FastAPI()
    app.router.__class__ = MyRouter
    return app


@pytest.mark.parametrize("create", [FastAPI, MyFastAPI, app_with_its_own_router_class])
@pytest.mark.parametrize("when", ["before the routes", "after the routes", "before and after"])
def test_an_existing_application_gets_the_scope_wherever_it_is_enabled(
    create: Callable[[], FastAPI], when: str
) -> None:
    app = create()
    router_class = type(app.router)
    if "before" in when:
        assert enable_lifespan_scope(app) is app
    requests = nested_routers(app)
    if "after" in when:
        assert enable_lifespan_scope(app) is app
    assert enable_lifespan_scope(app) is app
    assert isinstance(app.router, router_class)
    with TestClient(app) as client:
        (thing,) = started
        visit(client, requests)
    assert seen == [thing] * 3


def test_a_custom_router_keeps_its_methods() -> None:
    app = enable_lifespan_scope(app_with_its_own_router_class())
    assert isinstance(app.router, MyRouter)
    assert app.router.greet() == "hello"


def listed_by_app() -> tuple[FastAPI, str]:
    app = LifespanFastAPI(dependencies=[ThingDep])
    app.add_api_route("/route", nothing)
    app.add_api_websocket_route("/ws", nothing_in_websocket)
    return app, "/route WS:/ws"


def listed_by_router() -> tuple[FastAPI, str]:
    app, router = LifespanFastAPI(), APIRouter(dependencies=[ThingDep])
    router.add_api_route("/route", nothing)
    router.add_api_websocket_route("/ws", nothing_in_websocket)
    app.include_router(router)
    return app, "/route WS:/ws"


def listed_by_include() -> tuple[FastAPI, str]:
    app, router = LifespanFastAPI(), APIRouter()
    router.add_api_route("/route", nothing)
    router.add_api_websocket_route("/ws", nothing_in_websocket)
    app.include_router(router, dependencies=[ThingDep])
    return app, "/route WS:/ws"


def listed_by_route() -> tuple[FastAPI, str]:
    app = LifespanFastAPI()
    app.add_api_route("/route", nothing, dependencies=[ThingDep])
    return app, "/route"


def listed_by_websocket_route() -> tuple[FastAPI, str]:
    app = LifespanFastAPI()
    app.add_api_websocket_route("/ws", nothing_in_websocket, dependencies=[ThingDep])
    return app, "WS:/ws"


def listed_everywhere() -> tuple[FastAPI, str]:
    app, router = LifespanFastAPI(dependencies=[ThingDep]), APIRouter(dependencies=[ThingDep])
    router.add_api_route("/route", see, dependencies=[ThingDep, See])
    app.include_router(router, dependencies=[ThingDep])
    return app, "/route"


def listed_by_mounted_app() -> tuple[FastAPI, str]:
    app, sub = LifespanFastAPI(), FastAPI(dependencies=[ThingDep])
    sub.add_api_route("/route", nothing)
    app.mount("/sub", sub)
    return app, "/sub/route"


@pytest.mark.parametrize(
    "build",
    [
        listed_by_app,
        listed_by_router,
        listed_by_include,
        listed_by_route,
        listed_by_websocket_route,
        listed_everywhere,
        listed_by_mounted_app,
    ],
)
def test_what_a_list_of_dependencies_holds_is_started_once(
    build: Callable[[], tuple[FastAPI, str]],
) -> None:
    app, requests = build()
    with TestClient(app) as client:
        assert len(started) == 1
        visit(client, requests)
    assert len(started) == 1
    assert all(one is started[0] for one in seen)


@has_frontend_dependencies
@pytest.mark.parametrize("dependency", [ThingDep, See], ids=["lifespan", "request"])
@pytest.mark.parametrize("place", ["app", "router", "include", "mounted app"])
def test_the_dependencies_of_a_frontend_are_started_once(
    place: str, dependency: Any, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("hello")
    lists = {where: [dependency] if where == place else [] for where in ("app", "router")}
    app = LifespanFastAPI(dependencies=lists["app"])
    router = APIRouter(dependencies=lists["router"])
    sub = FastAPI(dependencies=[dependency] if place == "mounted app" else [])
    for part in (app, router, sub):
        part.frontend("/", directory=tmp_path)
    app.mount("/sub", sub)
    include = [dependency] if place == "include" else []
    app.include_router(router, prefix="/included", dependencies=include)

    paths = {"app": "/", "mounted app": "/sub/"}
    with TestClient(app) as client:
        (thing,) = started
        for _ in range(2):
            response = client.get(paths.get(place, "/included/"))
            assert (response.status_code, response.text) == (200, "hello")
    assert started == [thing]
    assert seen == ([thing, thing] if dependency is See else [])


def test_dependencies_start_in_the_order_of_the_routes() -> None:
    order: list[str] = []

    def noting(name: str) -> Any:
        def provider() -> None:
            order.append(name)

        return Depends(provider, scope="lifespan")

    second = noting("second")
    app, sub = LifespanFastAPI(dependencies=[noting("first")]), FastAPI()
    router = APIRouter(dependencies=[noting("fourth")])

    @app.get("/second")
    def read_second(
        second: Annotated[None, second], third: Annotated[None, noting("third")]
    ) -> None:
        pass

    @router.get("/fifth")
    def read_fifth(
        fifth: Annotated[None, noting("fifth")], second: Annotated[None, second]
    ) -> None:
        pass

    @sub.get("/sixth")
    def read_sixth(sixth: Annotated[None, noting("sixth")]) -> None:
        pass

    app.include_router(router)
    app.mount("/sub", sub)
    with TestClient(app):
        assert order == ["first", "second", "third", "fourth", "fifth", "sixth"]


def test_routes_that_the_lifespan_function_adds_are_started_before_serving() -> None:
    async def dependency_added(thing: Thing) -> None:
        seen.append(thing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert len(started) == 1
        app.add_api_route("/late", see)
        app.add_api_route("/list", nothing, dependencies=[Depends(dependency_added)])
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    app.add_api_route("/see", see)
    with TestClient(app) as client:
        (thing,) = started
        visit(client, "/see /late /list")
    assert started == [thing]
    assert seen == [thing] * 3


@has_route_tree
def test_routes_that_the_lifespan_function_adds_to_an_included_router_start_nothing_twice() -> None:
    """FastAPI rebuilds what it keeps for the router's other routes, their lists included."""
    router = APIRouter(dependencies=[Depends(get_thing, scope="lifespan", use_cache=False)])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        router.add_api_route("/late", nothing)
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    router.add_api_route("/early", nothing)
    app.include_router(router)
    with TestClient(app) as client:
        assert len(started) == 2
        visit(client, "/early /late")


def test_hooks_and_the_lifespan_function_share_what_routes_are_given() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI, thing: Thing, other: int = 1) -> AsyncIterator[None]:
        seen.append(thing)
        yield

    async def hook(thing: Thing, see: Annotated[None, See] = None) -> None:
        seen.append(thing)

    app = LifespanFastAPI(lifespan=lifespan)
    add: Any = app.router.add_event_handler  # FastAPI types it for hooks without parameters
    add("startup", hook)
    add("shutdown", hook)
    app.add_api_route("/see", see)
    with TestClient(app) as client:
        (thing,) = started
        visit(client, "/see")
    assert started == [thing]
    assert seen == [thing] * 4


def test_what_is_no_application_is_passed_over() -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("bare")(scope, receive, send)

    class Around:
        """Middleware, a Flask application, an admin panel that knows its host: it has an `app`."""

        def __init__(self, app: object) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await bare(scope, receive, send)

    def plain(request: Request) -> Response:
        return PlainTextResponse("plain")

    app = LifespanFastAPI()
    mounted: dict[str, ASGIApp] = {
        "/bare": bare,
        "/around-bare": Around(bare),
        "/around-nothing": Around(None),
        "/around-the-app": Around(app),
    }
    for path, asgi in mounted.items():
        app.mount(path, asgi)
    app.routes.append(Route("/plain", plain))
    app.add_api_route("/see", see)
    with TestClient(app) as client:
        visit(client, "/see /plain /bare /around-bare /around-nothing /around-the-app")
    assert seen == started
    assert len(started) == 1


def test_what_an_override_of_a_request_scoped_dependency_needs_is_started() -> None:
    class Settings:
        pass

    async def get_user() -> str:
        raise AssertionError

    async def get_name(thing: Thing) -> str:
        seen.append(thing)
        return "jo"

    async def get_fake_user(
        name: Annotated[str, Depends(get_name)],
        settings: Annotated[Settings, Depends()],
        thing: Thing,
        q: str = "",
    ) -> str:
        seen.append(thing)
        return name

    app = LifespanFastAPI()

    @app.get("/user")
    def read(user: Annotated[str, Depends(get_user)]) -> str:
        return user

    app.dependency_overrides[get_user] = get_fake_user
    with TestClient(app) as client:
        (thing,) = started
        assert client.get("/user").json() == "jo"
    assert started == [thing]
    assert seen == [thing, thing]


def test_a_request_scoped_override_that_depends_on_what_it_replaces_does_not_hang_the_start() -> (
    None
):
    """FastAPI recurses without end when a request needs it; that is FastAPI's to say."""

    async def get_user() -> str:
        raise AssertionError

    async def get_fake_user(user: Annotated[str, Depends(get_user)]) -> str:
        raise AssertionError

    app = LifespanFastAPI()
    app.add_api_route("/see", see)

    @app.get("/user")
    def read(user: Annotated[str, Depends(get_user)]) -> str:
        raise AssertionError

    app.dependency_overrides[get_user] = get_fake_user
    with TestClient(app) as client:
        visit(client, "/see")
        with pytest.raises(RecursionError):
            client.get("/user")


def test_a_mounted_router_takes_values_of_the_application_around_it() -> None:
    """Its routes have nobody's overrides: FastAPI gives them no `dependency_overrides_provider`."""

    def get_fake() -> object:
        return "fake"

    app = LifespanFastAPI()
    app.add_api_route("/see", see)
    app.mount("/router", router_with())
    app.dependency_overrides[get_thing] = get_fake
    with TestClient(app) as client:
        visit(client, "/see /router/see")
    assert seen == ["fake", *started]
    assert len(started) == 1


def test_applications_share_nothing() -> None:
    first, second = app_with(LifespanFastAPI()), app_with(LifespanFastAPI())
    with TestClient(first) as one, TestClient(second) as two:
        visit(one, "/see")
        visit(two, "/see")
    assert len(started) == 2
    assert seen == started


def test_a_router_that_serves_requests_in_its_own_way_goes_on_doing_so() -> None:
    class GreetingRouter(APIRouter):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["greeting"] = "hello"
            await super().__call__(scope, receive, send)

    app = FastAPI()
    app.router.__class__ = GreetingRouter
    enable_lifespan_scope(app)

    @app.get("/")
    async def greet(request: Request, thing: Thing) -> str:
        return f"{request.scope['greeting']} {thing is started[0]}"

    with TestClient(app) as client:
        assert client.get("/").json() == "hello True"
