"""Clause 9: overrides that are set before the application starts."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, Query, Request, WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
)
from tests.clients import Thing, provider


class Settings:
    name = "original"


class Chain:
    """settings <- engine <- session factory <- (request-scoped) session, and what was started."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.get_settings = provider("settings", self.log)

        async def get_engine(
            settings: Annotated[Thing, Depends(self.get_settings, scope="lifespan")],
        ) -> AsyncIterator[Thing]:
            self.log.append("start engine")
            yield Thing("engine", settings)
            self.log.append("stop engine")

        def get_factory(engine: Annotated[Thing, Depends(get_engine, scope="lifespan")]) -> Thing:
            self.log.append("start factory")
            return Thing("factory", engine)

        async def get_session(
            factory: Annotated[Thing, Depends(get_factory, scope="lifespan")],
        ) -> AsyncIterator[Thing]:
            yield Thing("session", factory)

        self.get_engine, self.get_factory, self.get_session = get_engine, get_factory, get_session
        self.app = LifespanFastAPI()

        @self.app.get("/")
        async def read(
            session: Annotated[Thing, Depends(get_session)],
            engine: Annotated[Thing, Depends(get_engine, scope="lifespan")],
        ) -> str:
            return f"{session} {engine}"

    def override(self, provider: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.app.dependency_overrides[provider] = fake

    def get(self) -> str:
        with TestClient(self.app) as client:
            answers = {client.get("/").json() for _ in range(3)}
        [answer] = answers
        return str(answer)


def test_the_original_never_runs() -> None:
    chain = Chain()
    chain.override(chain.get_engine, provider("fake", chain.log))
    assert chain.get() == "session(factory(fake)) fake"
    # Nor does what only the original needs.
    assert chain.log == ["start fake", "start factory", "stop fake"]


@pytest.mark.parametrize(
    ("overridden", "answer"),
    [
        ("get_settings", "session(factory(engine(fake))) engine(fake)"),
        ("get_engine", "session(factory(fake)) fake"),
        ("get_factory", "session(fake) engine(settings)"),
        ("get_session", "fake engine(settings)"),
    ],
)
def test_what_depends_on_it_is_rebuilt_at_every_depth(overridden: str, answer: str) -> None:
    chain = Chain()
    chain.override(getattr(chain, overridden), lambda: Thing("fake"))
    assert chain.get() == answer


def test_a_fake_may_depend_on_other_lifespan_dependencies() -> None:
    chain = Chain()

    def fake(
        settings: Annotated[Thing, Depends(chain.get_settings, scope="lifespan")],
        extra: Annotated[Thing, Depends(provider("extra", chain.log), scope="lifespan")],
        app: FastAPI,
        size: int = 5,
    ) -> Thing:
        assert app is chain.app
        assert size == 5
        return Thing("fake", settings, extra)

    chain.override(chain.get_engine, fake)
    assert chain.get() == "session(factory(fake(settings, extra))) fake(settings, extra)"


def test_a_fake_is_not_overridden_again() -> None:
    """As in FastAPI, an override stands for the original, whatever is said about the fake."""
    chain = Chain()

    def first() -> Thing:
        return Thing("first")

    chain.override(chain.get_engine, first)
    chain.override(first, lambda: Thing("second"))
    assert chain.get() == "session(factory(first)) first"


def test_a_fake_that_is_a_dependency_itself_is_shared() -> None:
    log: list[str] = []
    get_a, get_b = provider("a", log), provider("b", log)
    app = LifespanFastAPI()

    @app.get("/")
    async def read(
        a: Annotated[Thing, Depends(get_a, scope="lifespan")],
        b: Annotated[Thing, Depends(get_b, scope="lifespan")],
    ) -> bool:
        return a is b

    app.dependency_overrides[get_a] = get_b
    with TestClient(app) as client:
        assert client.get("/").json() is True
    assert log == ["start b", "stop b"]


def plain() -> Settings:
    return Settings()


async def coroutine() -> Settings:
    return Settings()


def generator() -> Iterator[Settings]:
    yield Settings()


async def async_generator() -> AsyncIterator[Settings]:
    yield Settings()


class Callables:
    def __call__(self) -> Settings:
        return Settings()

    def method(self) -> Settings:
        return Settings()

    async def async_method(self) -> AsyncIterator[Settings]:
        yield Settings()


def make(kind: type[Settings]) -> Settings:
    return kind()


FAKES: dict[str, Callable[..., Any]] = {
    "function": plain,
    "coroutine function": coroutine,
    "generator": generator,
    "async generator": async_generator,
    "context manager": contextmanager(generator),
    "async context manager": asynccontextmanager(async_generator),
    "class": Settings,
    "instance": Callables(),
    "bound method": Callables().method,
    "bound async generator method": Callables().async_method,
    "partial": functools.partial(make, Settings),
    "lambda": lambda: Settings(),
    "lambda around a coroutine function": lambda: coroutine(),
}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_a_fake_may_be_any_kind_of_callable(fake: Callable[..., Any], use_cache: bool) -> None:
    app = LifespanFastAPI()

    def get_settings() -> Settings:
        raise AssertionError("the original ran")

    shared = Depends(get_settings, scope="lifespan", use_cache=use_cache)

    @app.get("/")
    async def read(
        first: Annotated[Settings, shared], second: Annotated[Settings, shared]
    ) -> list[Any]:
        return [type(first).__name__, type(second).__name__, first is second]

    app.dependency_overrides[get_settings] = fake
    with TestClient(app) as client:
        assert client.get("/").json() == ["Settings", "Settings", use_cache]


def test_any_kind_of_callable_may_be_overridden() -> None:
    class Service:
        def make(self) -> str:
            return "original"

        def __call__(self) -> str:
            return "original"

    service = Service()
    partial = functools.partial(str, "original")
    originals: list[Callable[..., Any]] = [service, service.make, partial, Service]
    for original in originals:
        app = LifespanFastAPI()

        @app.get("/")
        async def read(value: Annotated[str, Depends(original, scope="lifespan")]) -> str:
            return value

        # A bound method is another object each time that it is read.
        app.dependency_overrides[service.make if original == service.make else original] = lambda: (
            "fake"
        )
        with TestClient(app) as client:
            assert client.get("/").json() == "fake"


@pytest.mark.parametrize("where", ["app", "router", "include", "route", "websocket"])
def test_dependencies_that_nobody_reads_are_overridden_too(where: str) -> None:
    log: list[str] = []
    original = provider("original", log)
    listed = [Depends(original, scope="lifespan")]

    def listed_at(place: str) -> list[Any]:
        return listed if place == where else []

    app = LifespanFastAPI(dependencies=listed_at("app"))
    router = APIRouter(dependencies=listed_at("router"))

    @router.get("/", dependencies=listed_at("route"))
    async def read() -> str:
        return "fine"

    @router.websocket("/", dependencies=listed_at("websocket"))
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app.include_router(router, prefix="/in", dependencies=listed_at("include"))
    app.dependency_overrides[original] = provider("fake", log)
    with TestClient(app) as client:
        assert log == ["start fake"]
        assert client.get("/in/").json() == "fine"
        with client.websocket_connect("/in/"):
            pass
    assert log == ["start fake", "stop fake"]


def test_overrides_that_no_route_uses_are_never_started() -> None:
    chain = Chain()
    log: list[str] = []
    chain.override(provider("unused", log), provider("fake", log))
    assert chain.get() == "session(factory(engine(settings))) engine(settings)"
    assert log == []


def test_a_fake_of_an_uncached_dependency_is_made_for_each_place() -> None:
    app = LifespanFastAPI()
    started: list[Thing] = []

    def get_original() -> Thing:
        raise AssertionError("the original ran")

    def fake() -> Thing:
        started.append(Thing(f"fake {len(started)}"))
        return started[-1]

    own = Depends(get_original, scope="lifespan", use_cache=False)

    async def request_scoped(own: Annotated[Thing, own]) -> Thing:
        return own

    @app.get("/one")
    async def read_one(
        a: Annotated[Thing, own],
        b: Annotated[Thing, own],
        c: Annotated[Thing, Depends(request_scoped)],
    ) -> list[str]:
        return [str(a), str(b), str(c)]

    @app.get("/two")
    async def read_two(
        a: Annotated[Thing, own], c: Annotated[Thing, Depends(request_scoped)]
    ) -> list[str]:
        return [str(a), str(c)]

    app.dependency_overrides[get_original] = fake
    with TestClient(app) as client:
        assert len(started) == 4
        for _ in range(2):
            one, two = client.get("/one").json(), client.get("/two").json()
            assert len({*one, *two}) == 4
            assert one[2] == two[1]
    assert len(started) == 4


@pytest.mark.parametrize("active", [False, True])
def test_unrelated_overrides_leave_uncached_dependencies_at_their_places(active: bool) -> None:
    """Clause 3: FastAPI builds sub-dependencies anew for each request while overrides are set."""
    app = LifespanFastAPI()
    started: list[str] = []

    def get_own() -> str:
        started.append(f"own {len(started)}")
        return started[-1]

    def unrelated() -> None: ...

    own = Depends(get_own, scope="lifespan", use_cache=False)

    async def inner(own: Annotated[str, own]) -> str:
        return own

    class Outer:
        def __init__(
            self, value: Annotated[str, own], inner: Annotated[str, Depends(inner)]
        ) -> None:
            self.values = value, inner

    async def listed(own: Annotated[str, own]) -> AsyncIterator[str]:
        yield own

    @app.get("/", dependencies=[Depends(listed), Depends(get_own, scope="lifespan")])
    async def read(
        a: Annotated[str, own], b: Annotated[str, own], outer: Annotated[Outer, Depends()]
    ) -> list[str]:
        return [a, b, *outer.values]

    with TestClient(app) as client:
        first = client.get("/").json()
        assert len(set(first)) == 4
        assert len(started) == 6
        if active:
            app.dependency_overrides[unrelated] = unrelated
        for _ in range(3):
            assert client.get("/").json() == first
    assert len(started) == 6


def test_a_request_scoped_override_gets_the_lifespan_dependencies_that_it_needs() -> None:
    """At any depth, through request-scoped dependencies that are overridden in turn."""
    chain = Chain()
    get_extra, get_deep = provider("extra", chain.log), provider("deep", chain.log)

    async def middle() -> Thing:
        raise AssertionError("middle is overridden")

    async def deepest(deep: Annotated[Thing, Depends(get_deep, scope="lifespan")]) -> Thing:
        return Thing("deepest", deep)

    class FakeMiddle(Thing):
        def __init__(
            self,
            engine: Annotated[Thing, Depends(chain.get_engine, scope="lifespan")],
            deepest: Annotated[Thing, Depends(deepest)],
            word: str = "none",
        ) -> None:
            super().__init__(f"middle-{word}", engine, deepest)

    def fake_session(
        extra: Annotated[Thing, Depends(get_extra, scope="lifespan")],
        middle: Annotated[Thing, Depends(middle)],
        request: Request,
    ) -> Iterator[Thing]:
        yield Thing(f"session-of-{request.url.path}", extra, middle)

    chain.override(chain.get_session, fake_session)
    chain.override(middle, FakeMiddle)
    with TestClient(chain.app) as client:
        for word in ("a", "b"):
            assert client.get("/", params={"word": word}).json() == (
                f"session-of-/(extra, middle-{word}(engine(settings), deepest(deep)))"
                " engine(settings)"
            )
    # The factory was needed by the original session only.
    assert sorted(line for line in chain.log if "start" in line) == [
        "start deep",
        "start engine",
        "start extra",
        "start settings",
    ]


def test_a_request_scoped_override_may_be_a_dependency_of_another_route() -> None:
    chain = Chain()

    async def get_other(
        engine: Annotated[Thing, Depends(chain.get_engine, scope="lifespan")],
    ) -> Thing:
        return Thing("other", engine)

    @chain.app.get("/other")
    async def read_other(other: Annotated[Thing, Depends(get_other)]) -> str:
        return str(other)

    chain.override(chain.get_session, get_other)
    with TestClient(chain.app) as client:
        assert client.get("/").json() == "other(engine(settings)) engine(settings)"
        assert client.get("/other").json() == "other(engine(settings))"


def test_a_request_scoped_override_may_declare_with_the_depends_of_fastapi() -> None:
    """Clauses 10 and 11: it means the same there, never a call for each request."""
    chain = Chain()
    stock: Any = fastapi.Depends

    async def fake_session(
        engine: Annotated[Thing, stock(chain.get_engine, scope="lifespan")],
    ) -> Thing:
        return Thing("fake", engine)

    chain.override(chain.get_session, fake_session)
    assert chain.get() == "fake(engine(settings)) engine(settings)"
    assert chain.log.count("start engine") == 1


@pytest.mark.parametrize("fake_is_valid", [True, False])
def test_an_uncached_dependency_of_a_request_scoped_override(fake_is_valid: bool) -> None:
    """A shared one is given; FastAPI hides the place of an uncached one, which is refused."""
    chain = Chain()
    own = Depends(chain.get_engine, scope="lifespan", use_cache=fake_is_valid)

    async def fake_session(engine: Annotated[Thing, own]) -> Thing:
        return Thing("fake", engine)

    chain.override(chain.get_session, fake_session)
    if fake_is_valid:
        assert chain.get() == "fake(engine(settings)) engine(settings)"
    else:
        with pytest.raises(UninitializedLifespanDependency, match="in a dependency override"):
            chain.get()


def test_hooks_and_the_lifespan_function_get_the_fake() -> None:
    """Clauses 8 and 9."""
    log: list[str] = []
    original = provider("original", log)
    depends = Depends(original, scope="lifespan")

    def start(thing: Annotated[Thing, depends]) -> None:
        log.append(f"on_startup {thing}")

    async def stop(thing: Annotated[Thing, depends]) -> None:
        log.append(f"on_shutdown {thing}")

    @asynccontextmanager
    async def lifespan(app: FastAPI, thing: Annotated[Thing, depends]) -> AsyncIterator[None]:
        log.append(f"enter {thing}")
        yield
        log.append(f"leave {thing}")

    app = LifespanFastAPI(lifespan=lifespan)
    router: Any = app.router  # typed for hooks that take nothing
    router.add_event_handler("startup", start)
    router.add_event_handler("shutdown", stop)
    app.dependency_overrides[original] = provider("fake", log)
    with TestClient(app):
        pass
    assert log == [
        "start fake",
        "on_startup fake",
        "enter fake",
        "leave fake",
        "on_shutdown fake",
        "stop fake",
    ]


def test_an_override_set_by_the_lifespan_function_holds_for_the_first_request() -> None:
    chain = Chain()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chain.override(chain.get_engine, provider("fake", chain.log))
        yield

    chain.app.router.lifespan_context = lifespan
    with TestClient(chain.app) as client:
        assert chain.log[-2:] == ["start fake", "start factory"]
        assert client.get("/").json() == "session(factory(fake)) fake"


class Mounted:
    """A parent and a mounted application that share one provider."""

    def __init__(self, kind: type[FastAPI]) -> None:
        self.log: list[str] = []
        self.original = provider("original", self.log)
        self.fake = provider("fake", self.log)
        self.parent, self.child = LifespanFastAPI(), kind()

        def get_user(thing: Annotated[Thing, Depends(self.original, scope="lifespan")]) -> Thing:
            self.log.append("start user")
            return Thing("user", thing)

        for app in (self.parent, self.child):

            @app.get("/")
            async def read(user: Annotated[Thing, Depends(get_user, scope="lifespan")]) -> str:
                return str(user)

        self.parent.mount("/child", self.child)

    def answers(self, client: TestClient) -> list[str]:
        return [client.get("/").json(), client.get("/child/").json()]


KINDS = pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])


@KINDS
@pytest.mark.parametrize(
    ("overriding", "answers"),
    [
        ([], ["user(original)", "user(original)"]),
        (["parent"], ["user(fake)", "user(original)"]),
        (["child"], ["user(original)", "user(fake)"]),
        (["parent", "child"], ["user(fake)", "user(fake)"]),
    ],
)
def test_a_mounted_application_has_its_own_overrides(
    kind: type[FastAPI], overriding: list[str], answers: list[str]
) -> None:
    """Shared by both, a dependency is started once for each way in which it is needed."""
    mounted = Mounted(kind)
    for name in overriding:
        getattr(mounted, name).dependency_overrides[mounted.original] = mounted.fake
    with TestClient(mounted.parent) as client:
        assert mounted.answers(client) == answers
    assert mounted.log.count("start user") == len(set(answers))
    for name in ("original", "fake"):
        expected = 1 if f"user({name})" in answers else 0
        assert mounted.log.count(f"start {name}") == expected
        assert mounted.log.count(f"stop {name}") == expected


def test_a_router_that_is_mounted_alone_has_no_overrides() -> None:
    log: list[str] = []
    original = provider("original", log)
    app, router = LifespanFastAPI(), APIRouter()

    @router.get("/")
    async def read(thing: Annotated[Thing, Depends(original, scope="lifespan")]) -> str:
        return str(thing)

    app.mount("/mounted", router)
    app.dependency_overrides[original] = provider("fake", log)
    with TestClient(app) as client:
        assert client.get("/mounted/").json() == "original"
    assert log == ["start original", "stop original"]


def test_a_cycle_that_an_override_closes_fails_the_startup_and_is_shown() -> None:
    chain = Chain()

    def fake_settings(
        engine: Annotated[Thing, Depends(chain.get_engine, scope="lifespan")],
    ) -> Thing:
        return engine

    chain.override(chain.get_settings, fake_settings)
    with pytest.raises(DependencyCycleError) as caught, TestClient(chain.app):
        pass
    calls = [step.call for step in caught.value.path]
    assert calls == [chain.get_engine, fake_settings, chain.get_engine]
    message = str(caught.value)
    assert "`Chain.__init__.<locals>.get_engine` depends on itself" in message
    assert 'fake_settings  scope="lifespan", overrides provide' in message
    assert chain.log == []


def test_a_fake_cannot_depend_on_what_it_replaces() -> None:
    chain = Chain()

    def fake(engine: Annotated[Thing, Depends(chain.get_engine, scope="lifespan")]) -> Thing:
        return engine

    chain.override(chain.get_engine, fake)
    with pytest.raises(DependencyCycleError, match="counts as what it replaces"):
        chain.get()


def of_a_request(request: Request) -> None: ...


def of_a_query(q: Annotated[str, Query()]) -> None: ...


def of_another_scope(value: Annotated[None, Depends(of_a_request)]) -> None: ...


@pytest.mark.parametrize("fake", [of_a_request, of_a_query, of_another_scope])
def test_a_fake_that_asks_for_something_of_a_request_fails_the_startup(
    fake: Callable[..., Any],
) -> None:
    """Clause 4."""
    chain = Chain()
    chain.override(chain.get_settings, fake)
    with pytest.raises(DependencyScopeError) as caught, TestClient(chain.app):
        pass
    assert caught.value.provider is fake
    assert caught.value.path[0].label == "GET /"
    assert "overrides provide" in str(caught.value)
    assert chain.log == []


def test_a_fake_that_fails_fails_the_startup() -> None:
    """Clause 6: as it is, after everything that had started was stopped."""
    chain = Chain()
    failure = ConnectionError("no database")

    def fake(settings: Annotated[Thing, Depends(chain.get_settings, scope="lifespan")]) -> Thing:
        raise failure

    chain.override(chain.get_engine, fake)
    with pytest.raises(ConnectionError) as caught:
        chain.get()
    assert caught.value is failure
    assert chain.log == ["start settings", "stop settings"]


def test_applications_that_share_a_router_have_their_own_overrides() -> None:
    """Clause 2: two applications never share."""
    log: list[str] = []
    original = provider("original", log)
    router = APIRouter()

    @router.get("/")
    async def read(thing: Annotated[Thing, Depends(original, scope="lifespan")]) -> str:
        return str(thing)

    first, second = LifespanFastAPI(), LifespanFastAPI()
    for app in (first, second):
        app.include_router(router, prefix="/in")
    first.dependency_overrides[original] = lambda: Thing("fake")
    with TestClient(first) as one, TestClient(second) as two:
        assert one.get("/in/").json() == "fake"
        assert two.get("/in/").json() == "original"
    assert log == ["start original", "stop original"]


def test_runs_one_after_the_other_see_the_overrides_of_their_time() -> None:
    chain = Chain()
    assert chain.get() == "session(factory(engine(settings))) engine(settings)"
    chain.override(chain.get_settings, lambda: Thing("fake"))
    assert chain.get() == "session(factory(engine(fake))) engine(fake)"
    chain.app.dependency_overrides = {}
    assert chain.get() == "session(factory(engine(settings))) engine(settings)"
    chain.app.dependency_overrides = None  # type: ignore[assignment] # FastAPI takes it
    assert chain.get() == "session(factory(engine(settings))) engine(settings)"
    assert LifespanContainer.for_app(chain.app).run(lambda: "runs") == "runs"
