"""Clause 8: dependencies, hooks, the application's lifespan and those of included routers."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Annotated, Any, Self, cast

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    enable_lifespan_scope,
)
from tests.recording import Provider, Value, app_with, provider

pytestmark = [
    pytest.mark.anyio,
    # Starlette deprecates lifespan functions that are plain generators
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def noting_lifespan(name: str, events: list[str], state: Mapping[str, Any] | None = None) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        events.append(f"{name} up")
        yield state
        events.append(f"{name} down")

    return lifespan


@pytest.mark.parametrize("enabled", [False, True], ids=["LifespanFastAPI", "enabled"])
async def test_everything_comes_up_in_order_and_goes_down_in_reverse(enabled: bool) -> None:
    events: list[str] = []

    async def startup() -> None:
        events.append("hook up")

    async def shutdown() -> None:
        events.append("hook down")

    lifespan = noting_lifespan("app", events)
    app = (
        enable_lifespan_scope(FastAPI(lifespan=lifespan))
        if enabled
        else LifespanFastAPI(lifespan=lifespan)
    )
    app.get("/", dependencies=[Depends(provider("pool", events), scope="lifespan")])(startup)
    app.router.on_startup.append(startup)
    app.router.on_shutdown.append(shutdown)
    inner = APIRouter(lifespan=noting_lifespan("inner router", events))
    router = APIRouter(lifespan=noting_lifespan("router", events))
    router.include_router(inner)
    app.include_router(router)
    app.include_router(APIRouter(lifespan=noting_lifespan("second router", events)))
    async with app.router.lifespan_context(app):
        up, events[:] = list(events), []
    assert up == [
        "start pool",
        "hook up",
        "app up",
        "router up",
        "inner router up",
        "second router up",
    ]
    assert events == [
        "second router down",
        "inner router down",
        "router down",
        "app down",
        "hook down",
        "stop pool",
    ]


async def test_enabling_twice_changes_nothing() -> None:
    events: list[str] = []
    app = app_with(provider("pool", events), lifespan=noting_lifespan("app", events))
    assert enable_lifespan_scope(enable_lifespan_scope(app)) is app
    async with app.router.lifespan_context(app):
        assert events == ["start pool", "app up"]
    assert events[2:] == ["app down", "stop pool"]


# --- A lifespan that declares dependencies


def lifespans_with_a_parameter(get_pool: Provider, events: list[str]) -> dict[str, Any]:
    async def asynchronous(
        app: FastAPI, pool: Annotated[Value, Depends(get_pool, scope="lifespan")]
    ) -> AsyncIterator[dict[str, str]]:
        assert isinstance(app, FastAPI)
        events.append(f"up with {pool.name}")
        yield {"pool": pool.name}
        assert pool.is_alive
        events.append(f"down with {pool.name}")

    def synchronous(
        app: FastAPI, pool: Annotated[Value, Depends(get_pool, scope="lifespan")]
    ) -> Iterator[dict[str, str]]:
        assert isinstance(app, FastAPI)
        events.append(f"up with {pool.name}")
        yield {"pool": pool.name}
        assert pool.is_alive
        events.append(f"down with {pool.name}")

    class Class:
        def __init__(
            self, app: FastAPI, pool: Annotated[Value, Depends(get_pool, scope="lifespan")]
        ) -> None:
            self.context = asynccontextmanager(asynchronous)(app, pool)

        async def __aenter__(self) -> dict[str, str]:
            return await self.context.__aenter__()

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> None:
            await self.context.__aexit__(kind, error, traceback)

    class Object:
        def __call__(
            self, app: FastAPI, pool: Annotated[Value, Depends(get_pool, scope="lifespan")]
        ) -> Any:
            return asynccontextmanager(asynchronous)(app, pool)

        def method(
            self, app: FastAPI, pool: Annotated[Value, Depends(get_pool, scope="lifespan")]
        ) -> Any:
            return asynccontextmanager(asynchronous)(app, pool)

    return {
        "decorated function": asynccontextmanager(asynchronous),
        "asynchronous generator": asynchronous,
        "synchronous generator": synchronous,
        "class": Class,
        "callable object": Object(),
        "bound method": Object().method,
    }


KINDS = list(lifespans_with_a_parameter(asynccontextmanager, []))


@pytest.mark.parametrize("of", ["application", "router", "router of a router", "both"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lifespan_may_declare_lifespan_dependencies(kind: str, of: str) -> None:
    events: list[str] = []
    lifespan = lifespans_with_a_parameter(provider("pool", events), events)[kind]
    app = LifespanFastAPI(lifespan=lifespan if of in ("application", "both") else None)
    if of != "application":
        router = APIRouter(lifespan=lifespan)
        if of == "router of a router":
            outer = APIRouter()
            outer.include_router(router)
            router = outer
        app.include_router(router)

    @app.get("/")
    async def read(request: Request) -> str:
        return str(request.state.pool)

    times = 2 if of == "both" else 1
    with TestClient(app) as client:
        assert events == ["start pool", *["up with pool"] * times]
        assert client.get("/").json() == "pool"
    assert events[1 + times :] == [*["down with pool"] * times, "stop pool"]


async def test_overrides_and_use_cache_apply_to_the_parameters_of_a_lifespan() -> None:
    events: list[str] = []
    given: list[Value] = []
    get_pool, get_fake = provider("pool", events), provider("fake", events)

    @asynccontextmanager
    async def lifespan(
        app: FastAPI,
        shared: Annotated[Value, Depends(get_pool, scope="lifespan")],
        one: Annotated[Value, Depends(get_pool, scope="lifespan", use_cache=False)],
        two: Annotated[Value, Depends(get_pool, scope="lifespan", use_cache=False)],
    ) -> AsyncIterator[None]:
        given.extend([shared, one, two])
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    async with app.router.lifespan_context(app):
        assert events == ["start pool"] * 3
        assert len({id(value) for value in given}) == 3
    app.dependency_overrides[get_pool] = get_fake
    events.clear()
    async with app.router.lifespan_context(app):
        assert [value.name for value in given[3:]] == ["fake"] * 3
        assert events == ["start fake"] * 3


async def test_a_parameter_of_a_lifespan_with_a_plain_default_is_left_alone() -> None:
    given: list[int] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI, size: int = 3) -> AsyncIterator[None]:
        given.append(size)
        yield

    app = LifespanFastAPI(lifespan=lifespan)
    async with app.router.lifespan_context(app):
        assert given == [3]


# --- State

STATES: list[list[Mapping[str, Any] | None]] = [
    [None, None, None],
    [{}, None, None],
    [{"a": 1}, None, None],
    [None, {"a": 1}, None],
    [{"a": "app", "b": "app"}, {"b": "first", "c": "first"}, {"c": "second", "d": "second"}],
    [None, {"a": "first"}, {"a": "second"}],
    [{"a": "app"}, {}, {"a": "second", "b": "second"}],
]


@pytest.mark.parametrize("depends", [False, True], ids=["without", "with dependencies"])
@pytest.mark.parametrize("states", STATES, ids=str)
def test_state_reaches_requests_by_the_rules_of_fastapi(
    states: list[Mapping[str, Any] | None], depends: bool
) -> None:
    events: list[str] = []
    needed = [Depends(provider("pool", events), scope="lifespan")] if depends else []

    def state_of(kind: type[FastAPI], dependencies: list[Any]) -> Any:
        app = kind(lifespan=noting_lifespan("app", events, states[0]))
        for index, state in enumerate(states[1:]):
            router = APIRouter(lifespan=noting_lifespan(str(index), events, state))
            app.include_router(router)

        @app.get("/", dependencies=dependencies)
        async def read(request: Request) -> list[tuple[str, Any]]:
            return [(name, str(value)) for name, value in request.state._state.items()]

        with TestClient(app) as client:
            return sorted(client.get("/").json())

    of_ours = [item for item in state_of(LifespanFastAPI, needed) if "lifespan_deps" not in item[0]]
    assert of_ours == state_of(FastAPI, [])
    if not depends:
        assert state_of(LifespanFastAPI, []) == of_ours  # no key of our own


@pytest.mark.parametrize("state", [None, {}, {"a": 1}], ids=str)
async def test_an_application_without_lifespan_dependencies_stays_what_it_is(
    state: Mapping[str, Any] | None,
) -> None:
    app = LifespanFastAPI(lifespan=noting_lifespan("app", [], state))
    app.middleware_stack = stack = app.build_middleware_stack()
    async with app.router.lifespan_context(app) as given:
        assert given == state
        assert app.middleware_stack is stack
    assert app.middleware_stack is stack


@pytest.mark.parametrize("serves", [FastAPI, LifespanFastAPI])
@pytest.mark.parametrize("state", [None, {}, {"a": 1}], ids=str)
@pytest.mark.parametrize("depends", [False, True])
async def test_a_server_that_has_no_lifespan_state(
    serves: type[FastAPI], state: Mapping[str, Any] | None, depends: bool
) -> None:
    """Our own entry does without it. With a state of the user FastAPI raises, as it does."""
    if serves is FastAPI and depends:
        return
    events: list[str] = []
    answers: list[str] = []
    app = serves(lifespan=noting_lifespan("app", [], state))
    get_pool = provider("pool", events)
    needed = [Depends(get_pool, scope="lifespan")] if depends else []

    @app.get("/", dependencies=needed)
    async def read() -> str:
        return "served"

    messages: list[str] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            return {"type": "lifespan.startup"}
        answers.append((await ask(app)).json())
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        messages.append(message["type"])

    run = app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    # Starlette takes any state but None for a state.
    if state is None or (state == {} and depends):
        await run
        assert answers == ["served"]
        assert messages == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    else:
        with pytest.raises(RuntimeError, match='does not support "state" in the lifespan scope'):
            await run
        assert messages == ["lifespan.startup.failed"]
    assert events == (["start pool", "stop pool"] if depends else [])


# --- What a lifespan does while it starts


async def test_routes_and_dependencies_that_the_lifespan_adds_are_picked_up() -> None:
    events: list[str] = []
    get_pool = provider("pool", events)
    get_model = provider("model", events, get_pool)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        events.append("up")

        @app.get("/late")
        async def read_late(model: Annotated[Value, Depends(get_model, scope="lifespan")]) -> str:
            return model.name

        router = APIRouter(dependencies=[Depends(provider("cache", events), scope="lifespan")])

        @router.get("/later")
        async def read_later(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> str:
            return pool.name

        app.include_router(router)
        yield
        events.append("down")

    app = app_with(get_pool, lifespan=lifespan)
    with TestClient(app) as client:
        assert events == ["start pool", "up", "start model", "start cache"]
        assert client.get("/late").json() == "model"
        assert client.get("/later").json() == "pool"
    assert events[4:] == ["down", "stop cache", "stop model", "stop pool"]


async def test_middleware_may_be_added_by_a_lifespan_as_in_fastapi() -> None:
    class Answering:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["added"] = True
            await self.app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.add_middleware(Answering)
        yield

    app = LifespanFastAPI(lifespan=lifespan)

    @app.get("/", dependencies=[Depends(provider("pool", []), scope="lifespan")])
    async def read(request: Request) -> bool:
        return bool(request.scope.get("added"))

    async with app.router.lifespan_context(app):
        assert (await ask(app)).json() is True


async def ask(app: FastAPI) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


async def test_the_lifespan_may_send_requests_to_its_own_application() -> None:
    answers: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answers.append((await ask(app)).json())
        yield
        answers.append((await ask(app)).json())

    app = LifespanFastAPI(lifespan=lifespan)
    get_pool = provider("pool", [])

    @app.get("/")
    async def read(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> str:
        assert pool.is_alive
        return pool.name

    with TestClient(app) as client:
        answers.append(client.get("/").json())
    assert answers == ["pool"] * 3


async def test_a_request_of_the_lifespan_that_makes_an_application_build_its_middleware() -> None:
    """Without a server, the middleware is not there yet when the lifespan sends a request."""
    answers: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answers.append((await ask(app)).json())
        yield

    app = app_with(provider("pool", []), lifespan=lifespan)
    async with app.router.lifespan_context(app):
        answers.append((await ask(app)).json())
    assert answers == [None, None]  # as read: there are values


async def test_clause_10_a_request_before_the_startup_and_one_after_the_end_fail() -> None:
    async def get_pool() -> AsyncIterator[None]:
        with pytest.raises(UninitializedLifespanDependency, match="get_pool"):
            await ask(app)
        yield
        with pytest.raises(UninitializedLifespanDependency, match="get_pool"):
            await ask(app)

    app = app_with(get_pool)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            assert (await ask(app)).status_code == 200
        with pytest.raises(UninitializedLifespanDependency, match="is not running"):
            await ask(app)


# --- A lifespan that is assigned after construction


async def test_a_lifespan_that_is_assigned_takes_the_place_of_the_applications_own() -> None:
    events: list[str] = []
    app = app_with(provider("pool", events), lifespan=noting_lifespan("old", events))
    app.router.lifespan_context = noting_lifespan("new", events)
    async with app.router.lifespan_context(app):
        assert events == ["start pool", "new up"]
    assert events[2:] == ["new down", "stop pool"]


def wrapping(name: str, events: list[str], app: FastAPI) -> None:
    """Wrap the lifespan of an application as libraries do."""
    wrapped = app.router.lifespan_context

    @asynccontextmanager
    async def wrapper(app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        events.append(f"{name} up")
        async with wrapped(app) as state:
            yield {**(state or {}), name: name}
        events.append(f"{name} down")

    app.router.lifespan_context = cast(Any, wrapper)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", [None, *KINDS])
async def test_a_wrapped_lifespan_starts_once(kind: str | None, times: int) -> None:
    events: list[str] = []
    get_pool = provider("pool", events)
    lifespans = lifespans_with_a_parameter(get_pool, events)

    async def startup() -> None:
        events.append("hook up")

    async def shutdown() -> None:
        events.append("hook down")

    app = app_with(get_pool, lifespan=lifespans[kind] if kind else None)
    app.router.on_startup.append(startup)
    app.router.on_shutdown.append(shutdown)
    wrapping("inner", events, app)
    if times == 2:
        wrapping("outer", events, app)
    app.include_router(APIRouter(lifespan=noting_lifespan("router", events, {"router": "router"})))

    @app.get("/state")
    async def read_state(request: Request) -> list[str]:
        return sorted(request.state._state)

    wrappers = [*["outer up"][: times - 1], "inner up"]
    # FastAPI has the hooks in the lifespan that is wrapped, or drops them beside a function
    own = ["hook up", *wrappers, "up with pool"] if kind else [*wrappers, "hook up"]
    up = ["start pool", *own, "router up"]
    for _ in range(2):
        with TestClient(app) as client:
            assert events == up
            state = client.get("/state").json()
            assert [name for name in state if "lifespan_deps" not in name] == sorted(
                ["inner", "router", *["outer"][: times - 1], *(["pool"] if kind else [])]
            )
        assert events[len(up) :] == [
            event.replace(" up", " down").replace("up with", "down with").replace("start", "stop")
            for event in up[::-1]
        ]
        events.clear()


# --- Other applications


async def test_including_the_router_of_another_application_starts_what_it_needs_once() -> None:
    events: list[str] = []
    get_pool = provider("pool", events)

    async def startup() -> None:
        events.append("hook up")

    other = LifespanFastAPI(lifespan=noting_lifespan("other", events))
    other.router.on_startup.append(startup)

    @other.get("/other")
    async def read_other(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> str:
        return pool.name

    app = app_with(get_pool, lifespan=noting_lifespan("app", events))
    app.include_router(other.router)
    with TestClient(app) as client:
        assert events == ["start pool", "hook up", "app up", "other up"]
        assert client.get("/other").json() == "pool"
    assert events[4:] == ["other down", "app down", "stop pool"]


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
async def test_the_lifespan_and_the_hooks_of_a_mounted_application_do_not_run(
    kind: Callable[..., FastAPI],
) -> None:
    """As in FastAPI; its dependencies are started."""
    events: list[str] = []
    get_pool = provider("pool", events)

    async def startup() -> None:
        raise AssertionError("it was called")

    mounted = kind(lifespan=noting_lifespan("mounted", events))
    mounted.router.on_startup.append(startup)

    @mounted.get("/")
    async def read(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> str:
        return pool.name

    app = LifespanFastAPI()
    app.mount("/mounted", mounted)
    with TestClient(app) as client:
        assert events == ["start pool"]
        assert client.get("/mounted/").json() == "pool"
    assert events == ["start pool", "stop pool"]


class Reporter:
    """A lifespan that is an object from the start, which Starlette takes too."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __call__(self, app: FastAPI) -> Self:
        return self

    async def __aenter__(self) -> None:
        self.events.append("up")

    async def __aexit__(self, *exc_info: object) -> None:
        self.events.append("down")


async def test_a_lifespan_may_be_an_object_that_is_its_own_context() -> None:
    events: list[str] = []
    app = app_with(provider("pool", events), lifespan=Reporter(events))
    async with app.router.lifespan_context(app):
        assert events == ["start pool", "up"]
    assert events[2:] == ["down", "stop pool"]


@pytest.mark.parametrize("suppresses", [False, True])
async def test_a_lifespan_sees_what_the_run_fails_with_and_may_suppress_it(
    suppresses: bool,
) -> None:
    """As in FastAPI. Dependencies don't see it."""
    events: list[str] = []
    seen: list[Exception] = []
    error = OSError("while serving")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        except OSError as raised:
            seen.append(raised)
            if not suppresses:
                raise

    app = app_with(provider("pool", events), lifespan=lifespan)
    raised: Exception | None = None
    try:
        async with app.router.lifespan_context(app):
            raise error
    except OSError as caught:
        raised = caught
    assert seen == [error]
    assert raised is (None if suppresses else error)
    assert events == ["start pool", "stop pool"]


async def test_a_lifespan_that_was_put_aside_runs_what_it_knew_of_and_starts_nothing() -> None:
    """Clause 10: it is not the application's any more, so requests say that nothing runs."""
    events: list[str] = []
    app = app_with(provider("pool", events), lifespan=noting_lifespan("app", events))
    aside = app.router.lifespan_context
    app.include_router(APIRouter(lifespan=noting_lifespan("router", events)))
    async with aside(app):
        with pytest.raises(UninitializedLifespanDependency, match="is not running"):
            await ask(app)
    assert events == ["app up", "app down"]
