"""Clause 8: startup and shutdown hooks, each once, with lifespan dependencies as parameters."""

import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import anyio.lowlevel
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import DependencyScopeError, Depends, LifespanFastAPI
from tests.recording import Value, app_with, provider

pytestmark = [
    pytest.mark.anyio,
    # Starlette before 1.0: hooks as arguments; all: on_event
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `lifespan` parameter cannot be used with:UserWarning"),
]


def noting(events: list[str], name: str) -> Callable[[], Any]:
    async def hook() -> None:
        events.append(name)

    return hook


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


def given_to_the_constructor(events: list[str]) -> FastAPI:
    return LifespanFastAPI(on_startup=[noting(events, "up")], on_shutdown=[noting(events, "down")])


def given_to_the_constructor_beside_a_lifespan(events: list[str]) -> FastAPI:
    hooks: Any = {"on_startup": [noting(events, "up")], "on_shutdown": [noting(events, "down")]}
    return LifespanFastAPI(lifespan=lifespan, **hooks)


def added_to_the_router(events: list[str]) -> FastAPI:
    app = LifespanFastAPI()
    app.router.add_event_handler("startup", noting(events, "up"))
    app.router.add_event_handler("shutdown", noting(events, "down"))
    return app


def added_to_the_router_beside_a_lifespan(events: list[str]) -> FastAPI:
    app = LifespanFastAPI(lifespan=lifespan)
    app.router.add_event_handler("startup", noting(events, "up"))
    app.router.add_event_handler("shutdown", noting(events, "down"))
    return app


def by_on_event(events: list[str]) -> FastAPI:
    app = LifespanFastAPI()
    app.on_event("startup")(noting(events, "up"))
    app.on_event("shutdown")(noting(events, "down"))
    return app


def of_included_routers(events: list[str], depth: int = 1, times: int = 1) -> FastAPI:
    app = LifespanFastAPI()
    router = hooked_router(events)
    for _ in range(depth - 1):
        outer = APIRouter()
        outer.include_router(router)
        router = outer
    for index in range(times):
        app.include_router(router, prefix=f"/{index}")
    return app


def of_a_router_beside_its_lifespan(events: list[str]) -> FastAPI:
    app = LifespanFastAPI(lifespan=lifespan)
    router = APIRouter(lifespan=lifespan)
    router.add_event_handler("startup", noting(events, "up"))
    router.add_event_handler("shutdown", noting(events, "down"))
    app.include_router(router)
    return app


def added_to_a_router_after_it_was_included(events: list[str]) -> FastAPI:
    app = LifespanFastAPI(lifespan=lifespan)
    router = APIRouter()
    app.include_router(router)
    router.add_event_handler("startup", noting(events, "up"))
    router.add_event_handler("shutdown", noting(events, "down"))
    return app


def hooked_router(events: list[str]) -> APIRouter:
    return APIRouter(on_startup=[noting(events, "up")], on_shutdown=[noting(events, "down")])


@pytest.mark.parametrize("depends", [False, True], ids=["stock", "with dependencies"])
@pytest.mark.parametrize(
    "make",
    [
        given_to_the_constructor,
        given_to_the_constructor_beside_a_lifespan,
        added_to_the_router,
        added_to_the_router_beside_a_lifespan,
        by_on_event,
        of_a_router_beside_its_lifespan,
        added_to_a_router_after_it_was_included,
        *[
            functools.partial(of_included_routers, depth=depth, times=times)
            for depth in (1, 2, 3)
            for times in (1, 2)
        ],
    ],
    ids=lambda make: getattr(make, "__name__", None) or f"included {make.keywords}",
)
def test_each_hook_runs_exactly_once(make: Callable[[list[str]], FastAPI], depends: bool) -> None:
    events: list[str] = []
    app = make(events)
    if depends:
        app.get("/", dependencies=[Depends(provider("pool", events), scope="lifespan")])(noting)
    for _ in range(2):  # and once more in the next run
        with TestClient(app):
            assert events == (["start pool", "up"] if depends else ["up"])
        assert events[-2:] == (["down", "stop pool"] if depends else ["up", "down"])
        events.clear()


async def test_hooks_run_in_their_order_the_applications_before_those_of_later_routers() -> None:
    events: list[str] = []
    app = LifespanFastAPI(on_startup=[noting(events, "first"), noting(events, "second")])
    router = APIRouter()
    app.include_router(router)
    router.on_startup.append(noting(events, "third"))
    async with app.router.lifespan_context(app):
        assert events == ["first", "second", "third"]


async def test_a_hook_that_is_registered_twice_runs_once() -> None:
    events: list[str] = []
    hook = noting(events, "up")
    app = LifespanFastAPI(on_startup=[hook, hook])
    app.include_router(APIRouter(on_startup=[hook]))
    async with app.router.lifespan_context(app):
        assert events == ["up"]


class Hooks:
    """Hooks of many kinds, each of which takes the value of `provider` if there is one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.threads: set[int] = set()
        self.provider = provider("pool", self.events)

    def note(self, value: Value | None) -> None:
        self.threads.add(threading.get_ident())
        self.events.append("up" if value is None else f"up with {value.name}")

    def of_kind(self, kind: str, depends: bool) -> Callable[..., Any]:
        pool: Any = Annotated[Value, Depends(self.provider, scope="lifespan")]
        annotation: Any = pool if depends else None

        async def asynchronous(value: Any = None) -> None:
            await anyio.lowlevel.checkpoint()
            self.note(value)

        def synchronous(value: Any = None) -> None:
            self.note(value)

        async def with_more(more: str, value: Any = None) -> None:
            assert more == "more"
            self.note(value)

        class Instance:
            async def __call__(self, value: Any = None) -> None:
                await asynchronous(value)

            async def method(self, value: Any = None) -> None:
                await asynchronous(value)

            def synchronous_method(self, value: Any = None) -> None:
                synchronous(value)

        for function in (
            asynchronous,
            synchronous,
            with_more,
            Instance.__call__,
            Instance.method,
            Instance.synchronous_method,
        ):
            function.__annotations__["value"] = annotation

        hooks: dict[str, Callable[..., Any]] = {
            "asynchronous": asynchronous,
            "synchronous": synchronous,
            "partial": functools.partial(with_more, "more"),
            "bound method": Instance().method,
            "synchronous bound method": Instance().synchronous_method,
            "callable object": Instance(),
            "synchronous function around an asynchronous one": synchronously(asynchronous, self),
        }
        return hooks[kind]


def synchronously(function: Callable[..., Any], hooks: Hooks) -> Callable[..., None]:
    """A decorator that makes a synchronous function of an asynchronous one."""

    @functools.wraps(function)
    def wrapper(value: Any = None) -> None:
        hooks.note(value)

    return wrapper


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("depends", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "asynchronous",
        "synchronous",
        "partial",
        "bound method",
        "synchronous bound method",
        "callable object",
        "synchronous function around an asynchronous one",
    ],
)
async def test_hooks_may_be_of_any_kind_and_run_in_the_thread_of_the_event_loop(
    kind: str, depends: bool, included: bool
) -> None:
    hooks = Hooks()
    hook = hooks.of_kind(kind, depends)
    app = LifespanFastAPI()
    router = APIRouter() if included else app.router
    router.add_event_handler("startup", hook)
    router.add_event_handler("shutdown", hook)
    if included:
        app.include_router(router)
    async with app.router.lifespan_context(app):
        assert hooks.events == (["start pool", "up with pool"] if depends else ["up"])
    assert hooks.events[2:] == (["up with pool", "stop pool"] if depends else [])
    assert hooks.events.count("up") == (0 if depends else 2)
    assert hooks.threads == {threading.get_ident()}


async def test_a_hook_gets_the_instance_that_requests_get_and_overrides_apply_to_it() -> None:
    events: list[str] = []
    given: list[Value] = []
    get_pool, get_fake = provider("pool", events), provider("fake", events)

    async def startup(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> None:
        given.append(pool)

    app = LifespanFastAPI(on_startup=[startup])

    @app.get("/")
    async def read(pool: Annotated[Value, Depends(get_pool, scope="lifespan")]) -> str:
        given.append(pool)
        return pool.name

    with TestClient(app) as client:
        assert client.get("/").json() == "pool"
    assert given[0] is given[1]

    app.dependency_overrides[get_pool] = get_fake
    with TestClient(app) as client:
        assert client.get("/").json() == "fake"
    assert given[2] is given[3]
    assert events == ["start pool", "stop pool", "start fake", "stop fake"]


async def test_clause_3_each_hook_has_its_own_instance_without_use_cache() -> None:
    events: list[str] = []
    given: list[Value] = []
    get_pool = provider("pool", events)

    async def startup(
        one: Annotated[Value, Depends(get_pool, scope="lifespan", use_cache=False)],
        two: Annotated[Value, Depends(get_pool, scope="lifespan", use_cache=False)],
    ) -> None:
        given.extend([one, two])

    async def shutdown(
        three: Annotated[Value, Depends(get_pool, scope="lifespan", use_cache=False)],
    ) -> None:
        given.append(three)

    app = LifespanFastAPI(on_startup=[startup], on_shutdown=[shutdown])
    async with app.router.lifespan_context(app):
        assert events == ["start pool"] * 3
    assert len({id(value) for value in given}) == 3
    assert events[3:] == ["stop pool"] * 3


async def test_clause_4_a_hook_whose_dependency_needs_a_request_fails_the_startup() -> None:
    async def get_user(name: str) -> str:
        return name

    async def startup(user: Annotated[str, Depends(get_user, scope="lifespan")]) -> None:
        raise AssertionError("it was called")

    app = LifespanFastAPI(on_startup=[startup])
    with pytest.raises(DependencyScopeError, match="startup") as refused:
        async with app.router.lifespan_context(app):
            pass
    assert refused.value.parameter == "name"


async def test_a_shutdown_hook_runs_when_another_has_failed_and_both_errors_are_told() -> None:
    events: list[str] = []

    async def failing() -> None:
        raise OSError("the first hook")

    async def failing_too() -> None:
        raise LookupError("the second")

    app = app_with(
        provider("pool", events), on_shutdown=[failing, failing_too, noting(events, "x")]
    )
    with pytest.raises(ExceptionGroup) as raised:
        async with app.router.lifespan_context(app):
            pass
    assert [str(error) for error in raised.value.exceptions] == [
        "the first hook",
        "the second",
    ]
    assert events == ["start pool", "x", "stop pool"]


async def test_a_startup_hook_that_fails_keeps_later_ones_and_shutdown_hooks_from_running() -> None:
    """As in FastAPI."""
    events: list[str] = []

    async def failing() -> None:
        raise OSError("no disk")

    app = app_with(
        provider("pool", events),
        on_startup=[noting(events, "first"), failing, noting(events, "later")],
        on_shutdown=[noting(events, "down")],
    )
    with pytest.raises(OSError, match="no disk"):
        async with app.router.lifespan_context(app):
            pass
    assert events == ["start pool", "first", "stop pool"]


async def test_a_route_and_a_hook_that_a_startup_hook_adds_are_picked_up() -> None:
    events: list[str] = []
    get_pool, get_cache = provider("pool", events), provider("cache", events)

    async def startup() -> None:
        events.append("up")
        app.get("/", dependencies=[Depends(get_pool, scope="lifespan")])(noting)
        app.router.add_event_handler("shutdown", cast(Any, shutdown))

    async def shutdown(cache: Annotated[Value, Depends(get_cache, scope="lifespan")]) -> None:
        events.append(f"down with {cache.name}")

    app = LifespanFastAPI(on_startup=[startup])
    async with app.router.lifespan_context(app):
        assert events == ["up", "start pool", "start cache"]
    assert events[3:] == ["down with cache", "stop cache", "stop pool"]


@pytest.mark.parametrize("takes_more", [False, True])
@pytest.mark.parametrize("place", ["hook", "lifespan"])
def test_a_dependency_of_a_request_is_refused_and_not_passed_as_it_is(
    place: str, takes_more: bool
) -> None:
    """Clause 10: without `scope="lifespan"` Python would pass the `Depends` object itself."""

    def get_user() -> str:
        return "ada"

    def get_pool() -> str:
        return "pool"

    more = Depends(get_pool, scope="lifespan") if takes_more else None

    async def hook(user: str = Depends(get_user), pool: Any = more) -> None:
        raise AssertionError("it runs")

    @asynccontextmanager
    async def lifespan(
        app: FastAPI, user: str = Depends(get_user), pool: Any = more
    ) -> AsyncIterator[None]:
        raise AssertionError("it runs")
        yield

    app = LifespanFastAPI(lifespan=lifespan) if place == "lifespan" else LifespanFastAPI()
    if place == "hook":
        app.router.on_startup.append(hook)
    with pytest.raises(DependencyScopeError, match="cannot take `user`"), TestClient(app):
        pass


def test_a_hook_that_takes_dependencies_takes_nothing_else_without_a_default() -> None:
    async def hook(q: int, pool: Annotated[str, Depends(get_word, scope="lifespan")]) -> None:
        raise AssertionError("it runs")

    app = LifespanFastAPI()
    app.router.on_startup.append(cast(Any, hook))
    with pytest.raises(DependencyScopeError, match="cannot take `q`"), TestClient(app):
        pass


def get_word() -> str:
    return "word"
