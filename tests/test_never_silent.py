"""Clause 10: where values are not there, a request fails with an error that says what to do."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import WebSocketDenialResponse

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    enable_lifespan_scope,
    get_container,
)
from fastapi_lifespan_deps.exceptions import location_of
from tests.clients import client_of, running

calls: list[str] = []


async def get_secret() -> AsyncIterator[str]:
    calls.append("get_secret")
    yield "the-secret-value"


Secret = Annotated[str, Depends(get_secret, scope="lifespan")]


async def get_session(secret: Secret) -> str:
    return secret


PATHS = ["/value", "/session", "/list", "/container"]


def add_routes(app: FastAPI | APIRouter) -> None:
    """A route for each way to need a value."""

    @app.get("/value")
    async def read_value(secret: Secret) -> str:
        return secret

    @app.get("/session")
    def read_session(session: Annotated[str, Depends(get_session)]) -> str:
        return session

    @app.get("/list", dependencies=[Depends(get_secret, scope="lifespan")])
    async def read_list() -> str:
        return "read"

    @app.get("/container")
    async def read_container(
        container: Annotated[LifespanContainer, Depends(get_container)],
    ) -> str:
        return container[get_secret]

    @app.websocket("/socket")
    async def talk(websocket: WebSocket, secret: Secret) -> None:
        await websocket.accept()
        await websocket.send_text(secret)
        await websocket.close()


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def plain(debug: bool = False) -> FastAPI:
    app = FastAPI(debug=debug)
    add_routes(app)
    return app


def never_started(debug: bool = False) -> LifespanFastAPI:
    app = LifespanFastAPI(debug=debug)
    add_routes(app)
    return app


def enabled_but_never_started(debug: bool = False) -> FastAPI:
    return enable_lifespan_scope(plain(debug))


def ended(debug: bool = False) -> FastAPI:
    app = never_started(debug)
    with TestClient(app) as client:
        assert client.get("/value").json() == "the-secret-value"
    calls.clear()
    return app


def with_a_failed_startup(debug: bool = False) -> FastAPI:
    app = never_started(debug)

    def fails(secret: Secret) -> None:
        raise ValueError("no")

    @app.get("/fails")
    async def read_fails(value: Annotated[None, Depends(fails, scope="lifespan")]) -> None: ...

    with pytest.raises(ValueError, match="no"), TestClient(app):
        pass
    calls.clear()
    return app


PLAIN = r"a plain FastAPI, .* Make it a LifespanFastAPI, or call enable_lifespan_scope\(app\)"
NOT_RUNNING = r"the application is not running\. .* write `with TestClient\(app\) as client:`"

NOT_STARTED = pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(plain, PLAIN, id="plain"),
        pytest.param(never_started, NOT_RUNNING, id="never started"),
        pytest.param(enabled_but_never_started, NOT_RUNNING, id="enabled"),
        pytest.param(ended, NOT_RUNNING, id="ended"),
        pytest.param(with_a_failed_startup, NOT_RUNNING, id="failed"),
    ],
)


@NOT_STARTED
def test_the_error_names_the_provider_and_says_what_to_do(
    make: Callable[[], FastAPI], message: str
) -> None:
    client = TestClient(make())
    for path in PATHS:
        with pytest.raises(UninitializedLifespanDependency, match=message) as caught:
            client.get(path)
        expected = get_container if path == "/container" else get_secret
        assert caught.value.provider is expected
        assert f"`{expected.__name__}` (" in str(caught.value)
    with (
        pytest.raises(UninitializedLifespanDependency, match=message),
        client.websocket_connect("/socket"),
    ):
        pass
    assert calls == []


@NOT_STARTED
@pytest.mark.parametrize("debug", [False, True])
def test_details_stay_out_of_the_response(
    make: Callable[[bool], FastAPI], message: str, debug: bool
) -> None:
    client = TestClient(make(debug), raise_server_exceptions=False)
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 500
        if debug:
            assert "UninitializedLifespanDependency" in answer.text
        else:
            assert answer.text == "Internal Server Error"
    assert calls == []


def test_the_whole_message() -> None:
    with pytest.raises(UninitializedLifespanDependency) as caught:
        TestClient(plain()).get("/value")
    assert str(caught.value) == (
        f"There is no value of `get_secret` ({location_of(get_secret)}): the application"
        ' is a plain FastAPI, which does not know scope="lifespan". Make it a LifespanFastAPI, or'
        " call enable_lifespan_scope(app) before it starts."
    )


def test_a_running_plain_application_fails_too() -> None:
    with TestClient(plain()) as client:
        for path in PATHS:
            with pytest.raises(UninitializedLifespanDependency, match=PLAIN):
                client.get(path)
    assert calls == []


@pytest.mark.parametrize("parent", ["FastAPI", "Starlette"])
@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
def test_an_application_that_is_mounted_in_one_that_knows_nothing(
    parent: str, kind: type[FastAPI]
) -> None:
    """The lifespan of a mounted application never runs: it is the parent that has to know."""
    child = kind()
    add_routes(child)
    app = Starlette(routes=[Mount("/child", child)]) if parent == "Starlette" else FastAPI()
    if isinstance(app, FastAPI):
        app.mount("/child", child)
    with TestClient(app) as client:
        for path in PATHS:
            with pytest.raises(UninitializedLifespanDependency) as caught:
                client.get(f"/child{path}")
            if kind is LifespanFastAPI:
                assert "mounted" in str(caught.value)
    assert calls == []


def other_provider() -> str:
    calls.append("other_provider")
    return "other"


@pytest.mark.parametrize("included", [False, True])
def test_a_route_that_is_added_while_serving(included: bool) -> None:
    """A provider that has started is given; a new one, or a place of its own, is refused."""
    app, router = LifespanFastAPI(), APIRouter()
    add_routes(router)
    app.include_router(router)
    late = router if included else app

    with TestClient(app) as client:

        @late.get("/late")
        async def read_late(secret: Secret) -> str:
            return secret

        @late.get("/late-session")
        async def read_late_session(session: Annotated[str, Depends(get_session)]) -> str:
            return session

        @late.get("/new")
        async def read_new(
            value: Annotated[str, Depends(other_provider, scope="lifespan")],
        ) -> str:
            return value

        @late.get("/own")
        async def read_own(
            value: Annotated[str, Depends(get_secret, scope="lifespan", use_cache=False)],
        ) -> str:
            return value

        if client.get("/late").status_code == 404:
            pytest.skip("this FastAPI does not serve routes added to an included router")
        for path in ("/late", "/late-session", *PATHS):
            assert client.get(path).json() in ("the-secret-value", "read")
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "the-secret-value"
        with pytest.raises(
            UninitializedLifespanDependency,
            match=r"`other_provider` .* nothing asked for it when the application started",
        ):
            client.get("/new")
        with pytest.raises(UninitializedLifespanDependency, match="its place is not known here"):
            client.get("/own")
    assert calls == ["get_secret"]


def test_a_late_route_of_an_application_that_had_no_lifespan_dependencies() -> None:
    app = LifespanFastAPI()
    with TestClient(app) as client:
        add_routes(app)
        for path in PATHS:
            with pytest.raises(UninitializedLifespanDependency) as caught:
                client.get(path)
            assert "when the application started" in str(caught.value)
            assert "event loop" not in str(caught.value)
    assert calls == []


@pytest.mark.parametrize("state", ["in the scope", "not in the scope"])
@pytest.mark.parametrize("mounted", [None, FastAPI, LifespanFastAPI])
def test_another_event_loop(state: str, mounted: type[FastAPI] | None) -> None:
    """Values belong to the loop that runs the lifespan; a request from another one is refused."""
    app, prefix = never_started(), ""
    if mounted is not None:
        child, prefix = mounted(), "/child"
        add_routes(child)
        app.mount(prefix, child)
    lifespan_state: dict[str, Any] = {}
    outcomes: list[Any] = []

    async def send(path: str) -> httpx.Response:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if state == "in the scope":
                scope["state"] = lifespan_state.copy()
            await app(scope, receive, send)

        transport = httpx.ASGITransport(asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(prefix + path)

    def other_thread() -> None:
        for path in PATHS:
            try:
                outcomes.append(asyncio.run(send(path)))
            except UninitializedLifespanDependency as error:
                outcomes.append(str(error))

    async def main() -> None:
        async with app.router.lifespan_context(app) as found:
            lifespan_state.update(found or {})
            assert (await send("/value")).json() == "the-secret-value"
            thread = threading.Thread(target=other_thread)
            thread.start()
            await asyncio.to_thread(thread.join, 30)
            assert (await send("/session")).json() == "the-secret-value"

    asyncio.run(main())
    assert len(outcomes) == len(PATHS)
    for outcome in outcomes:
        assert "the application was started in another event loop" in outcome
        assert "Send requests in the event loop" in outcome
    assert calls == ["get_secret"]


@pytest.mark.anyio
async def test_a_run_that_has_ended_while_another_one_goes_on() -> None:
    """A request that still comes with the ended run's state is not given dead values."""
    app = never_started()
    async with client_of(app) as client, app.router.lifespan_context(app):
        async with app.router.lifespan_context(app) as state:
            ended_state = dict(state or {})
        assert calls == ["get_secret"] * 2
        assert (await client.get("/value")).json() == "the-secret-value"

        async def late(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": ended_state}, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(late), base_url="http://test"
        ) as other:
            for overridden in (False, True):
                if overridden:
                    app.dependency_overrides[get_secret] = other_provider
                for path in PATHS:
                    with pytest.raises(UninitializedLifespanDependency):
                        await other.get(path)
        assert "other_provider" not in calls
        app.dependency_overrides.clear()
        assert (await client.get("/value")).json() == "the-secret-value"


def test_a_failed_fake_stays_out_of_the_response() -> None:
    """Clause 9: as anywhere else, no per-request call and no details."""
    app = never_started()

    def fails() -> str:
        calls.append("fails")
        raise ValueError("the password is 1234")

    with TestClient(app, raise_server_exceptions=False) as client:
        app.dependency_overrides[get_secret] = fails
        for path in PATHS:
            answer = client.get(path)
            assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        with (
            pytest.raises(UninitializedLifespanDependency, match="it failed to start") as caught,
            client.websocket_connect("/socket"),
        ):
            pass
        assert isinstance(caught.value.__cause__, ValueError)
        assert "1234" not in str(caught.value)
    assert calls == ["get_secret", "fails"]


@pytest.mark.anyio
async def test_a_running_application_gives_every_way_its_value() -> None:
    """What the failures above are compared with."""
    async with running(never_started()) as client:
        for path in PATHS:
            assert (await client.get(path)).json() in ("the-secret-value", "read")
    assert calls == ["get_secret"]


def test_an_application_that_is_mounted_while_the_parent_serves_gets_no_override_of_it() -> None:
    """Clause 9: the parent's overrides don't reach it, and nothing else was started for it."""
    app = LifespanFastAPI()
    add_routes(app)
    late = FastAPI()
    add_routes(late)
    with TestClient(app) as client:
        app.dependency_overrides[get_secret] = lambda: "fake of the parent"
        app.mount("/late", late)
        assert client.get("/value").json() == "fake of the parent"
        with pytest.raises(UninitializedLifespanDependency, match="nothing asked for it"):
            client.get("/late/value")


def test_middleware_may_be_built_anew_while_serving() -> None:
    """As instrumentation does that is added to an application which runs."""
    app = LifespanFastAPI()
    add_routes(app)
    with TestClient(app) as client:
        before = client.get("/value").json()
        app.middleware_stack = app.build_middleware_stack()
        assert client.get("/value").json() == before


def test_a_websocket_that_is_refused_after_the_application_has_stopped() -> None:
    """Its 503 is the application's own, not that of a value which is being refreshed."""
    app = LifespanFastAPI()
    add_routes(app)

    @app.websocket("/full")
    async def refuse(websocket: WebSocket) -> None:
        raise HTTPException(503, "full")

    for client in (TestClient(app), TestClient(app)):
        with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/full"):
            pass
        assert caught.value.status_code == 503
        with client:  # so that the next one comes after a run
            pass
