"""The options of a declaration: what is refused, and how the places of one provider agree."""

import copyreg
import functools
import itertools
import pickle
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import anyio
import fastapi
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from pydantic_settings import BaseSettings
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.routing import Host

from fastapi_lifespan_deps import (
    Depends,
    InvalidLifespanDependency,
    LifespanFastAPI,
    LifespanTimeout,
    enable_lifespan_scope,
)
from fastapi_lifespan_deps.declare.provider import how_to_call
from tests.clients import Thing, running
from tests.test_callables import ASYNC, FORMS_OF_KINDS, OTHERS, logged_async

pytestmark = pytest.mark.anyio

LIMITS = ("start_timeout", "stop_timeout")
OPTIONS = ("refresh_every", *LIMITS)
SHORT = 0.03  # not less: a busy machine may take that long for nothing
any_option = pytest.mark.parametrize("option", OPTIONS)
# What is refused before anything starts has nothing to do with the event loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def in_turn(values: Sequence[Any], options: Sequence[str] = OPTIONS) -> list[tuple[str, Any]]:
    """Each value with one of the options, and each option with some: they are read alike."""
    return list(zip(itertools.cycle(options), values, strict=False))


@pytest.fixture(autouse=True)
def forget() -> None:
    hangs.clear()


hangs: set[str] = set()  # at "start" or at "stop"


async def get_value() -> AsyncIterator[Thing]:
    if "start" in hangs:
        await anyio.sleep_forever()
    yield Thing("value")
    if "stop" in hangs:
        await anyio.sleep_forever()


def lifespan(provider: Callable[..., Any] | None = get_value, /, **options: Any) -> Any:
    return Depends(provider, scope="lifespan", **options)


# --- What the call refuses


BAD = [0, 0.0, -1, -0.5, float("nan"), float("-inf"), True, False, "5", b"5", [5], 5j]
BAD += [timedelta(0), timedelta(seconds=-1)]


@pytest.mark.parametrize(("option", "value"), in_turn(BAD), ids=repr)
def test_a_duration_is_a_number_of_seconds_above_0(option: str, value: Any) -> None:
    with pytest.raises(InvalidLifespanDependency) as refused:
        lifespan(**{option: value})
    assert refused.value.dependency is get_value
    assert str(refused.value) == (
        f'`Depends(get_value, scope="lifespan")` cannot have {option}={value!r}. '
        "Give seconds, more than 0, or a timedelta."
    )


@any_option
def test_a_duration_may_be_a_timedelta(option: str) -> None:
    assert lifespan(**{option: 60}) == lifespan(**{option: 60.0}) != lifespan()
    assert lifespan(**{option: timedelta(minutes=1)}) == lifespan(**{option: 60.0})
    assert lifespan(**{option: timedelta(microseconds=1)}) == lifespan(**{option: 1e-6})
    assert lifespan(**{option: None}) == lifespan()


@pytest.mark.parametrize(("option", "scope"), in_turn([None, "function", "request"]))
def test_options_need_the_scope(option: str, scope: Any) -> None:
    with pytest.raises(InvalidLifespanDependency) as refused:
        Depends(get_value, scope=scope, **cast(Any, {option: 5.0}))
    assert str(refused.value) == (
        f'`Depends(get_value, scope={scope!r})` takes `{option}` with scope="lifespan" only. '
        'Add scope="lifespan", or leave the option out.'
    )
    unset = Depends(get_value, scope=scope, **cast(Any, {option: None}))
    assert unset == fastapi.Depends(get_value, scope=scope)


class Settings(BaseSettings):
    debug: bool = False


# What a lambda returns, or a wrapper that is not what it wraps, nobody knows before the call.
UNKNOWN = [
    pytest.param(lambda: get_value(), "sync", id="lambda that returns an asyncgen"),
    *[param for param in OTHERS if "coroutine" in str(param.id) or "lambda" in str(param.id)],
]
CALLABLES = [
    *FORMS_OF_KINDS,
    *(param for param in OTHERS if param.values[0] is not None and param.values[1] == "sync"),
    pytest.param(Settings, "sync", id="settings class"),
    pytest.param(functools.partial(Settings, debug=True), "sync", id="partial of settings"),
    pytest.param(logged_async(get_value), "async", id="async wraps"),
]


@pytest.mark.parametrize(("provider", "kind"), CALLABLES)
def test_clause_12_what_runs_in_a_thread_can_have_no_time_limit(
    provider: Callable[..., Any], kind: str
) -> None:
    if how_to_call(provider).is_async:
        assert kind in ASYNC
        assert lifespan(provider, start_timeout=5.0, stop_timeout=5.0)
        return
    assert lifespan(provider, refresh_every=5.0)
    for limit in LIMITS:
        with pytest.raises(InvalidLifespanDependency, match="synchronous") as refused:
            lifespan(provider, **{limit: 5.0})
        assert refused.value.dependency is provider
        assert limit in str(refused.value)
        assert "anyio.to_thread.run_sync" in str(refused.value)


@pytest.mark.parametrize(("provider", "kind"), UNKNOWN)
def test_what_a_synchronous_callable_returns_is_not_known_in_time(
    provider: Callable[..., Any], kind: str
) -> None:
    for limit in LIMITS:
        with pytest.raises(InvalidLifespanDependency, match="synchronous"):
            lifespan(provider, **{limit: 5.0})


# --- Where it is inferred from the annotation


class Inferred(Thing):
    def __init__(self) -> None:
        super().__init__("inferred")


def used_by_a_route(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    @app.get("/two")
    async def read_two(value: Annotated[Inferred, depends]) -> None: ...

    return app


def used_by_a_dependency_of_a_request(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def get_session(value: Annotated[Inferred, depends]) -> None: ...

    app.get("/two", dependencies=[Depends(get_session)])(lambda: None)
    return app


def used_by_a_lifespan_dependency(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def get_user(value: Annotated[Inferred, depends]) -> None: ...

    app.get("/two", dependencies=[lifespan(get_user)])(lambda: None)
    return app


def used_by_a_hook(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def prepare(value: Annotated[Inferred, depends]) -> None: ...

    app.router.add_event_handler("startup", cast(Any, prepare))
    return app


def used_by_a_lifespan_function(depends: Any) -> FastAPI:
    @asynccontextmanager
    async def run(app: FastAPI, value: Annotated[Inferred, depends]) -> AsyncIterator[None]:
        yield

    return LifespanFastAPI(lifespan=run)


def used_by_an_override_of_a_request(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def get_session() -> None: ...

    async def fake(value: Annotated[Inferred, depends]) -> None: ...

    app.get("/two", dependencies=[Depends(get_session)])(lambda: None)
    app.dependency_overrides[get_session] = fake
    return app


USERS = [
    used_by_a_route,
    used_by_a_dependency_of_a_request,
    used_by_a_lifespan_dependency,
    used_by_a_hook,
    used_by_a_lifespan_function,
    used_by_an_override_of_a_request,
]


@on_one_loop
@pytest.mark.parametrize(("limit", "user"), in_turn(USERS, LIMITS))
async def test_an_inferred_class_can_have_no_time_limit(
    user: Callable[[Any], FastAPI], limit: str
) -> None:
    """It is known when the signature is read: at the route's own line, or at startup."""
    depends = lifespan(None, **{limit: 5.0})
    with pytest.raises(InvalidLifespanDependency, match=limit) as refused:
        async with running(user(depends)):
            pass
    assert refused.value.dependency is Inferred


@on_one_loop
@pytest.mark.parametrize("user", USERS)
async def test_an_inferred_class_keeps_its_options(user: Callable[[Any], FastAPI]) -> None:
    app = user(lifespan(None, refresh_every=5.0))
    app.get("/one", dependencies=[lifespan(Inferred, refresh_every=6.0)])(lambda: None)
    with pytest.raises(InvalidLifespanDependency, match=r"refresh_every=5\.0"):
        async with running(app):
            pass


# --- Declarations are equal if all of them is


def test_declarations_that_differ_in_an_option_are_not_equal() -> None:
    declarations = [
        lifespan(),
        lifespan(use_cache=False),
        lifespan(None),
        *(lifespan(**{option: seconds}) for option in OPTIONS for seconds in (1.0, 2.0)),
    ]
    for index, one in enumerate(declarations):
        assert [one == other for other in declarations].index(True) == index
        assert declarations.count(one) == 1
    assert len(set(declarations)) == len(declarations)
    twins = {lifespan(start_timeout=1, stop_timeout=2), lifespan(stop_timeout=2, start_timeout=1)}
    assert len(twins) == 1


@any_option
def test_python_does_not_take_one_alias_for_another_that_differs_in_an_option(
    option: str,
) -> None:
    one, other, none = (
        Annotated[Thing, lifespan(**options)] for options in ({option: 1.0}, {option: 2.0}, {})
    )
    assert one != other != none != one
    # What `typing` keeps, it finds by hash and equality.
    assert len({one, other, none}) == 3
    seconds = [getattr(get_args(alias)[1].options, option) for alias in (one, other, none)]
    assert seconds == [1.0, 2.0, None]


# --- Places


def in_a_route(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    @app.get("/two")
    async def read_two(value: Annotated[Thing, depends]) -> None: ...

    return app


def in_a_websocket(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    @app.websocket("/two")
    async def listen(websocket: WebSocket, value: Annotated[Thing, depends]) -> None: ...

    return app


def in_a_dependency_of_a_request(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def get_session(value: Annotated[Thing, depends]) -> None: ...

    @app.get("/two")
    async def read_two(session: Annotated[None, Depends(get_session)]) -> None: ...

    return app


def in_a_lifespan_dependency(depends: Any) -> FastAPI:
    app = LifespanFastAPI()

    async def get_user(value: Annotated[Thing, depends]) -> None: ...

    @app.get("/two")
    async def read_two(user: Annotated[None, lifespan(get_user)]) -> None: ...

    return app


def in_a_hook(depends: Any, kind: str = "startup") -> FastAPI:
    app = LifespanFastAPI()

    async def prepare(value: Annotated[Thing, depends]) -> None: ...

    app.router.add_event_handler(kind, cast(Any, prepare))
    return app


def in_a_lifespan_function(depends: Any) -> FastAPI:
    @asynccontextmanager
    async def run_with(app: FastAPI, value: Annotated[Thing, depends]) -> AsyncIterator[None]:
        yield

    return LifespanFastAPI(lifespan=run_with)


def in_the_list_of_the_app(depends: Any) -> FastAPI:
    app = LifespanFastAPI(dependencies=[depends])
    app.get("/two")(lambda: None)
    return app


def in_the_list_of_a_route(depends: Any) -> FastAPI:
    app = LifespanFastAPI()
    app.get("/two", dependencies=[depends])(lambda: None)
    return app


def in_the_list_of_an_included_router(depends: Any) -> FastAPI:
    app, router = LifespanFastAPI(), APIRouter(dependencies=[depends])
    router.get("/two")(lambda: None)
    app.include_router(router, prefix="/included")
    return app


def in_the_list_of_an_include(depends: Any) -> FastAPI:
    app, router, outer = LifespanFastAPI(), APIRouter(), APIRouter()
    router.get("/two")(lambda: None)
    outer.include_router(router, prefix="/inner", dependencies=[depends])
    app.include_router(outer, prefix="/outer")
    return app


def in_a_mounted_app(depends: Any) -> FastAPI:
    app, sub = LifespanFastAPI(), FastAPI(dependencies=[depends])
    sub.get("/two")(lambda: None)
    app.mount("/sub", sub)
    return app


def in_a_host(depends: Any) -> FastAPI:
    app, sub = LifespanFastAPI(), FastAPI()

    @sub.get("/two")
    async def read_two(value: Annotated[Thing, depends]) -> None: ...

    app.router.routes.append(Host("api.example.org", Starlette(routes=sub.routes)))
    return app


def in_a_frontend(depends: Any) -> FastAPI:
    app, router = LifespanFastAPI(), APIRouter(dependencies=[depends])
    cast(Any, router).frontend("/", directory=Path(__file__).parent)
    app.include_router(router, prefix="/two")
    return app


has_frontend_dependencies = pytest.mark.skipif(
    not hasattr(fastapi.routing, "_FrontendRouteGroup"),
    reason="frontends have dependencies from 0.139.0 on",
)
PLACES = [
    (in_a_route, "GET /two", "value"),
    (in_a_websocket, "WEBSOCKET /two", "value"),
    (in_a_dependency_of_a_request, "GET /two", "session"),
    (in_a_lifespan_dependency, "GET /two", "user"),
    (in_a_hook, "prepare", "value"),
    (functools.partial(in_a_hook, kind="shutdown"), "prepare", "value"),
    (in_a_lifespan_function, "run_with", "value"),
    (in_the_list_of_the_app, "GET /two", "dependencies"),
    (in_the_list_of_a_route, "GET /two", "dependencies"),
    (in_the_list_of_an_included_router, "GET /included/two", "dependencies"),
    (in_the_list_of_an_include, "GET /outer/inner/two", "dependencies"),
    (in_a_mounted_app, "GET /sub/two", "dependencies"),
    (in_a_host, "GET /two", "value"),
    pytest.param(in_a_frontend, "/two", "dependencies", marks=has_frontend_dependencies),
]
places = pytest.mark.parametrize(("place", "label", "step"), PLACES)


@places
@on_one_loop
async def test_places_that_set_an_option_differently_are_named_at_startup(
    place: Callable[[Any], FastAPI], label: str, step: str
) -> None:
    app = place(lifespan(refresh_every=5.0))

    @app.get("/one")
    async def read_one(one: Annotated[Thing, lifespan(refresh_every=6)]) -> None: ...

    with pytest.raises(InvalidLifespanDependency, match="one place") as refused:
        async with running(app):
            pass
    message = str(refused.value)
    assert refused.value.dependency is get_value
    assert "refresh_every=5.0" in message
    assert "refresh_every=6" in message
    lines = message.split("\n")
    routes = [line for line in lines if line.startswith("  ") and "└─" not in line]
    assert len(routes) == 2
    if place is not in_the_list_of_the_app:  # the list is that of both routes
        assert sorted(label in line for line in routes) == [False, True]
        assert sorted("GET /one" in line for line in routes) == [False, True]
    assert any(f"└─ {step}" in line for line in lines)
    assert any("└─ one" in line for line in lines)
    assert message.endswith("Set refresh_every in one of them: the others inherit it.")


@places
@on_one_loop
async def test_a_place_that_does_not_set_an_option_inherits_it(
    place: Callable[[Any], FastAPI], label: str, step: str
) -> None:
    """Whichever comes first: the hanging start is cut off."""
    hangs.add("start")
    limited, stock = lifespan(start_timeout=SHORT), cast(Any, fastapi.Depends)
    for first, second in (
        (limited, lifespan()),
        (lifespan(), limited),
        (stock(get_value, scope="lifespan"), limited),
    ):
        app = place(first)

        @app.get("/one")
        async def read_one(value: Annotated[Thing, second]) -> None: ...

        with anyio.fail_after(10), pytest.raises(LifespanTimeout) as late:
            async with running(app):
                pass
        assert (late.value.provider, late.value.seconds) == (get_value, SHORT)


async def test_places_may_set_an_option_alike_and_others_apart() -> None:
    app = LifespanFastAPI()
    hangs.add("stop")
    for depends in (
        lifespan(refresh_every=timedelta(hours=1), start_timeout=60),
        lifespan(refresh_every=3600),
        lifespan(stop_timeout=SHORT, use_cache=False),
        lifespan(start_timeout=timedelta(minutes=1)),
    ):
        app.get("/", dependencies=[depends])(lambda: None)
    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as late:
        async with running(app) as client:
            assert (await client.get("/")).status_code == 200
    # the shared one, and the one of the place that has its own
    assert [type(error) for error in late.value.exceptions] == [LifespanTimeout] * 2


@on_one_loop
async def test_the_whole_message_of_a_conflict() -> None:
    app = LifespanFastAPI()

    async def get_user(db: Annotated[Thing, lifespan(start_timeout=30)]) -> None: ...

    @app.get("/users", dependencies=[lifespan(get_user)])
    async def read_users() -> None: ...

    @app.get("/dbs")
    async def read_dbs(
        db: Annotated[Thing, lifespan(start_timeout=timedelta(minutes=1))],
    ) -> None: ...

    with pytest.raises(InvalidLifespanDependency) as refused:
        async with running(app):
            pass
    file = Path(__file__).relative_to(Path.cwd())

    def place(function: Any) -> str:
        return f"{file}:{function.__code__.co_firstlineno}"

    scope, here = 'scope="lifespan"', test_the_whole_message_of_a_conflict.__qualname__
    value, users, dbs, user = map(place, (get_value, read_users, read_dbs, get_user))
    assert str(refused.value) == (
        f"`Depends(get_value, {scope})` has start_timeout=30 in one place, "
        "and start_timeout=60.0 in another:\n\n"
        f"  GET /users          {users}  {here}.<locals>.read_users\n"
        f"  └─ dependencies[0]  {user}  {here}.<locals>.get_user  {scope}\n"
        f"     └─ db            {value:{len(users)}}  get_value  {scope}\n\n"
        f"  GET /dbs  {dbs}  {here}.<locals>.read_dbs\n"
        f"  └─ db     {value:{len(dbs)}}  get_value  {scope}\n\n"
        "All places share what is started. "
        "Set start_timeout in one of them: the others inherit it."
    )


@on_one_loop
async def test_two_parameters_of_one_function_may_disagree_too() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(
        one: Annotated[Thing, lifespan(stop_timeout=1.0)],
        other: Annotated[Thing, lifespan(stop_timeout=2.0, use_cache=False)],
    ) -> None: ...

    with pytest.raises(InvalidLifespanDependency, match=r"(?s)└─ one.*└─ other"):
        async with running(app):
            pass


# --- The same app again


@places
@on_one_loop
async def test_options_count_in_the_next_run_of_an_app_that_was_bound(
    place: Callable[[Any], FastAPI], label: str, step: str
) -> None:
    app = place(lifespan(start_timeout=SHORT))
    async with running(app):
        pass
    hangs.add("start")
    with anyio.fail_after(10), pytest.raises(LifespanTimeout, match=label):
        async with running(app):
            pass
    hangs.clear()
    app.get("/one", dependencies=[lifespan(start_timeout=1.0)])(lambda: None)
    with pytest.raises(InvalidLifespanDependency, match="one place") as refused:
        async with running(app):
            pass
    assert label in str(refused.value)
    assert "GET /one" in str(refused.value)


@on_one_loop
@pytest.mark.parametrize(
    "place", [in_a_route, in_a_dependency_of_a_request, in_the_list_of_the_app]
)
@pytest.mark.parametrize("has_run", [False, True])
async def test_options_count_in_a_copy_of_an_app(
    place: Callable[[Any], FastAPI], has_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    # Ray registers this too: Starlette's State recurses without end when it is unpickled.
    monkeypatch.setitem(copyreg.dispatch_table, State, lambda state: (State, (state._state,)))
    app = place(lifespan(start_timeout=SHORT))
    if has_run:
        async with running(app):
            pass
    copy = pickle.loads(cloudpickle.dumps(app))
    async with running(copy) as client:
        assert (await client.get("/two")).status_code == 200
    hangs.add("start")
    with anyio.fail_after(10), pytest.raises(LifespanTimeout, match="GET /two") as late:
        async with running(copy):
            pass
    assert late.value.provider is get_value
    assert pickle.loads(pickle.dumps(lifespan(refresh_every=1))) == lifespan(refresh_every=1)


@on_one_loop
async def test_options_count_in_an_app_that_was_enabled_after_its_routes_were_added() -> None:
    app = FastAPI()
    app.get("/", dependencies=[lifespan(start_timeout=SHORT)])(lambda: None)
    hangs.add("start")
    with anyio.fail_after(10), pytest.raises(LifespanTimeout):
        async with running(enable_lifespan_scope(app)):
            pass


# --- Overrides


def overridden(fake: Callable[..., Any], *declarations: Any) -> LifespanFastAPI:
    """An application that needs `get_value`, which `fake` overrides."""
    app = LifespanFastAPI()
    for index, depends in enumerate(declarations):
        app.get(f"/{index}", dependencies=[depends])(lambda: None)
    app.dependency_overrides[get_value] = fake
    return app


async def test_an_override_has_not_the_time_limits_of_the_original() -> None:
    moments: list[str] = []

    async def fake() -> AsyncIterator[Thing]:
        for moment in ("start", "stop"):
            with anyio.move_on_after(2 * SHORT):
                await anyio.sleep_forever()
            moments.append(moment)
            if moment == "start":
                yield Thing("fake")

    limits = {"start_timeout": SHORT, "stop_timeout": SHORT}
    async with running(overridden(fake, lifespan(**limits))):
        assert moments == ["start"]
    assert moments == ["start", "stop"]


def get_sync_fake() -> Thing:
    return Thing("fake")


async def test_a_synchronous_override_may_stand_in_for_what_has_time_limits() -> None:
    async with running(overridden(get_sync_fake, lifespan(start_timeout=SHORT))) as client:
        assert (await client.get("/0")).status_code == 200


async def test_an_override_has_the_time_limits_of_its_own_declaration() -> None:
    async def fake() -> None:
        await anyio.sleep_forever()

    app = overridden(fake, lifespan(start_timeout=3600), lifespan(fake, start_timeout=SHORT))
    with anyio.fail_after(10), pytest.raises(LifespanTimeout) as late:
        async with running(app):
            pass
    assert (late.value.provider, late.value.seconds) == (fake, SHORT)
    assert "overrides get_value" in str(late.value)


@on_one_loop
async def test_places_disagree_even_if_what_they_declare_is_overridden() -> None:
    app = overridden(get_sync_fake, lifespan(refresh_every=1.0), lifespan(refresh_every=2.0))
    with pytest.raises(InvalidLifespanDependency, match=r"(?s)GET /0.*GET /1"):
        async with running(app):
            pass


def disagreeing(scope: Any, first: str) -> tuple[LifespanFastAPI, Any, Any]:
    """An application, what it declares, and a fake for that which wants another `get_value`."""
    app = LifespanFastAPI()

    async def get_other() -> None: ...

    async def fake(value: Annotated[Thing, lifespan(refresh_every=7.0)]) -> None: ...

    routes = {"/value": lifespan(refresh_every=8.0), "/other": Depends(get_other, scope=scope)}
    for path in sorted(routes, key=lambda path: path != first):
        app.get(path, dependencies=[routes[path]])(lambda: None)
    return app, get_other, fake


in_each_order = pytest.mark.parametrize("first", ["/value", "/other"])
of_each_scope = pytest.mark.parametrize("scope", ["lifespan", "request"])


@on_one_loop
@of_each_scope
@in_each_order
async def test_an_override_that_disagrees_with_a_route_fails_the_startup(
    scope: str, first: str
) -> None:
    app, get_other, fake = disagreeing(scope, first)
    app.dependency_overrides[get_other] = fake
    with pytest.raises(InvalidLifespanDependency, match=r"refresh_every=7\.0") as refused:
        async with running(app):
            pass
    assert all(path in str(refused.value) for path in ("GET /value", "GET /other"))


@of_each_scope
@in_each_order
async def test_an_override_that_disagrees_with_a_route_while_serving_does_not_fail_that_route(
    scope: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, get_other, fake = disagreeing(scope, first)
    async with running(app, raises=False) as client:
        app.dependency_overrides[get_other] = fake
        assert (await client.get("/value")).status_code == 200
        if scope == "lifespan":  # else the fake is called per request, with the value of the route
            assert (await client.get("/other")).status_code == 500
        logged = [record for record in caplog.records if record.name == "fastapi_lifespan_deps"]
        assert len(logged) == 1
        assert logged[0].exc_info is not None
        assert isinstance(logged[0].exc_info[1], InvalidLifespanDependency)
        app.dependency_overrides.clear()
        for path in ("/value", "/other"):
            assert (await client.get(path)).status_code == 200


async def test_an_original_keeps_its_time_limits_while_what_declares_it_is_overridden() -> None:
    """It runs on, and is refreshed with what it depends on, which is not overridden."""
    count = 0

    async def get_base() -> Thing:
        return Thing("base")

    async def get_hidden(base: Annotated[Thing, lifespan(get_base)]) -> AsyncIterator[Thing]:
        nonlocal count
        count += 1
        if count == 2:
            await anyio.sleep_forever()
        yield Thing("hidden", base)

    async def get_user(
        hidden: Annotated[Thing, lifespan(get_hidden, start_timeout=SHORT)],
    ) -> None: ...

    async def fake() -> None: ...

    app = LifespanFastAPI()
    app.get("/base", dependencies=[lifespan(get_base)])(lambda: None)
    app.get("/user", dependencies=[lifespan(get_user)])(lambda: None)
    with anyio.fail_after(10):
        async with running(app) as client:
            app.dependency_overrides[get_user] = fake
            assert (await client.get("/user")).status_code == 200
            with pytest.raises(LifespanTimeout) as late:
                await app.lifespan_container.refresh(get_base)
            assert late.value.provider is get_hidden


async def test_a_mounted_app_shares_the_options_of_what_it_shares() -> None:
    """Not its overrides: those are its own."""
    app, sub = LifespanFastAPI(), FastAPI()
    app.get("/", dependencies=[lifespan(start_timeout=SHORT)])(lambda: None)
    sub.get("/", dependencies=[lifespan()])(lambda: None)
    app.mount("/sub", sub)
    app.dependency_overrides[get_value] = get_sync_fake
    hangs.add("start")
    with anyio.fail_after(10), pytest.raises(LifespanTimeout, match="GET /sub/"):
        async with running(app):
            pass


# --- Health


def generates(value: Any) -> Iterator[None]:
    yield


async def generates_too(value: Any) -> AsyncIterator[None]:
    yield


class Checks:
    def generates(self, value: Any) -> Iterator[None]:
        yield

    def takes_two(self, value: Any, other: Any) -> None: ...

    def __call__(self) -> None: ...


class Unhashable:
    __hash__ = None  # type: ignore[assignment]  # that is what makes it so

    def __call__(self, value: Any) -> None: ...


NO_CHECKS = [
    (3, "3 is not a callable object"),
    ("ping", "'ping' is not a callable object"),
    (False, "False is not a callable object"),
    (generates, "it has a `yield`"),
    (generates_too, "it has a `yield`"),
    (Checks().generates, "it has a `yield`"),
    (functools.partial(generates), "it has a `yield`"),
    (lambda: None, "too many positional arguments"),
    (lambda value, other: None, "missing a required argument: 'other'"),
    (lambda *, value: None, "too many positional arguments"),
    (Checks().takes_two, "missing a required argument: 'other'"),
    (Checks(), "too many positional arguments"),
    (Unhashable(), "unhashable type: 'Unhashable'"),
]


@pytest.mark.parametrize(("health", "problem"), NO_CHECKS)
def test_a_health_check_can_be_called_with_the_value_alone(health: Any, problem: str) -> None:
    with pytest.raises(InvalidLifespanDependency) as refused:
        lifespan(health=health)
    assert refused.value.dependency is get_value
    message = str(refused.value)
    assert message.startswith('`Depends(get_value, scope="lifespan")` cannot have health=')
    assert message.endswith(
        f" ({problem}). Give a function that can be called with the value alone, async or not, and "
        "that raises or returns False if the value is not in order."
    )


@pytest.mark.parametrize(
    "health",
    [
        lambda value: None,
        lambda value, more=1: None,
        lambda *values: None,
        functools.partial(lambda more, value: None, 1),
        print,
        iter,  # it doesn't show what it takes
        int,
    ],
)
def test_whatever_can_be_called_with_the_value_alone_is_a_health_check(health: Any) -> None:
    assert lifespan(health=health) == lifespan(health=health) != lifespan()
    assert hash(lifespan(health=health)) == hash(lifespan(health=health))


@pytest.mark.parametrize("scope", [None, "function", "request"])
def test_a_health_check_needs_the_scope(scope: Any) -> None:
    with pytest.raises(InvalidLifespanDependency) as refused:
        Depends(get_value, scope=scope, health=print)
    assert str(refused.value) == (
        f'`Depends(get_value, scope={scope!r})` takes `health` with scope="lifespan" only. '
        'Add scope="lifespan", or leave the option out.'
    )


async def is_in_order(value: Any) -> bool:
    return True


@places
@on_one_loop
async def test_places_that_set_a_health_check_differently_are_named_at_startup(
    place: Callable[[Any], FastAPI], label: str, step: str
) -> None:
    app = place(lifespan(health=is_in_order))
    app.get("/one", dependencies=[lifespan(health=print)])(lambda: None)
    with pytest.raises(InvalidLifespanDependency) as refused:
        async with running(app):
            pass
    message = str(refused.value)
    for name in ("is_in_order", "print"):
        assert f"health={name} in " in message
    assert message.endswith("Set health in one of them: the others inherit it.")


@places
@on_one_loop
async def test_a_place_that_does_not_set_a_health_check_inherits_it(
    place: Callable[[Any], FastAPI], label: str, step: str
) -> None:
    seen: list[Any] = []

    def look(value: Any) -> None:
        seen.append(value)

    for first, second in (
        (lifespan(health=look), lifespan()),
        (lifespan(), lifespan(health=look)),
        (lifespan(health=look), lifespan(health=look)),
    ):
        app = place(first)
        app.get("/one", dependencies=[second])(lambda: None)
        async with running(app):
            await cast(Any, app.router).lifespan_container.check_health()
        assert seen
        seen.clear()


@on_one_loop
async def test_an_inferred_class_keeps_its_health_check() -> None:
    seen: list[Any] = []
    app = used_by_a_route(lifespan(None, health=seen.append))
    async with running(app):
        await cast(Any, app.router).lifespan_container.check_health()
    assert isinstance(seen[0], Inferred)
