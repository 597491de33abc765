"""Clause 8: hooks and lifespans come up and go down in FastAPI's order, each once."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI

pytestmark = [
    pytest.mark.anyio,
    # Starlette before 1.0
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `lifespan` parameter cannot be used with:UserWarning"),
]

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


class Notes:
    """What an application's own code does, in order."""

    def __init__(self) -> None:
        self.up: list[str] = []
        self.down: list[str] = []

    def hooks(self, router: APIRouter, *names: str) -> None:
        """Register a startup hook and a shutdown hook of each name."""
        for name in names:

            def startup(name: str = name) -> None:
                self.up.append(name)

            async def shutdown(name: str = name) -> None:
                self.down.append(name)

            router.add_event_handler("startup", startup)
            router.add_event_handler("shutdown", shutdown)

    def lifespan(self, name: str) -> Lifespan:
        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            self.up.append(name)
            yield
            self.down.append(name)

        return lifespan

    def router(self, name: str, *hooks: str, lifespan: bool = False) -> APIRouter:
        router = APIRouter(lifespan=self.lifespan(f"{name} lifespan")) if lifespan else APIRouter()
        self.hooks(router, *(f"{name} {hook}" for hook in hooks))
        return router


App = Callable[..., FastAPI]


def without_routers(make: App, notes: Notes) -> FastAPI:
    app = make()
    notes.hooks(app.router, "app 1", "app 2")
    return app


def beside_a_lifespan(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    app.include_router(notes.router("router", "1", "2"))
    return app


def two_routers_beside_a_lifespan(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    app.include_router(notes.router("first", "1", "2"))
    app.include_router(notes.router("second", "1", "2"))
    return app


def two_routers(make: App, notes: Notes) -> FastAPI:
    app = make()
    notes.hooks(app.router, "app 1")
    app.include_router(notes.router("first", "1", "2"))
    notes.hooks(app.router, "app 2")
    app.include_router(notes.router("second", "1"))
    return app


def nested_routers(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    inner, middle, outer = (notes.router(name, "1", "2") for name in ("inner", "middle", "outer"))
    middle.include_router(inner)
    outer.include_router(middle)
    app.include_router(outer)
    return app


def nested_routers_without_a_lifespan(make: App, notes: Notes) -> FastAPI:
    app = make()
    notes.hooks(app.router, "app")
    inner, outer = notes.router("inner", "1"), notes.router("outer", "1")
    outer.include_router(inner)
    app.include_router(outer)
    app.include_router(notes.router("last", "1"))
    return app


def routers_with_lifespans(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    app.include_router(notes.router("first", lifespan=True))
    app.include_router(notes.router("second", "1"))
    app.include_router(notes.router("third", lifespan=True))
    return app


def a_router_in_two_places(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    twice = notes.router("twice", "1", "2")
    app.include_router(twice, prefix="/1")
    app.include_router(notes.router("between", "1"))
    app.include_router(twice, prefix="/2")
    return app


def hooks_that_come_late(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    router = notes.router("router", "1")
    app.include_router(router)
    notes.hooks(router, "late")
    return app


def a_hook_that_the_lifespan_adds(make: App, notes: Notes) -> FastAPI:
    router = APIRouter()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        notes.up.append("lifespan")
        notes.hooks(router, "added")
        yield
        notes.down.append("lifespan")

    app = make(lifespan=lifespan)
    app.include_router(router)
    return app


def a_wrapped_lifespan(make: App, notes: Notes) -> FastAPI:
    app = make(lifespan=notes.lifespan("lifespan"))
    app.include_router(notes.router("before", "1"))
    wrapped = app.router.lifespan_context

    @asynccontextmanager
    async def wrapper(app: FastAPI) -> AsyncIterator[Any]:
        notes.up.append("wrapper")
        async with wrapped(app) as state:
            yield state
        notes.down.append("wrapper")

    app.router.lifespan_context = wrapper
    app.include_router(notes.router("after", "1"))
    return app


def a_wrapped_lifespan_of_an_application_without_one(make: App, notes: Notes) -> FastAPI:
    app = make()
    notes.hooks(app.router, "app 1")
    app.include_router(notes.router("router", "1"))
    wrapped = app.router.lifespan_context

    @asynccontextmanager
    async def wrapper(app: FastAPI) -> AsyncIterator[Any]:
        notes.up.append("wrapper")
        async with wrapped(app) as state:
            yield state
        notes.down.append("wrapper")

    app.router.lifespan_context = wrapper
    notes.hooks(app.router, "app 2")
    return app


# FastAPI runs a hook of an included router in each of its places, on the way up the application's
# own first. What it does last, on the way down first, is where it belongs.
AS_IN_FASTAPI = [
    without_routers,
    beside_a_lifespan,
    two_routers_beside_a_lifespan,
    two_routers,
    nested_routers,
    nested_routers_without_a_lifespan,
    routers_with_lifespans,
    a_router_in_two_places,
    hooks_that_come_late,
    a_hook_that_the_lifespan_adds,
    a_wrapped_lifespan,
    a_wrapped_lifespan_of_an_application_without_one,
]


def fastapi_with_dependencies(**options: Any) -> FastAPI:
    async def get_value() -> int:
        return 1

    depends = Depends(get_value, scope="lifespan")
    return LifespanFastAPI(dependencies=[depends], **options)


async def run(build: Callable[[App, Notes], FastAPI], make: App) -> Notes:
    notes = Notes()
    app = build(make, notes)

    @app.get("/")
    async def read() -> None: ...

    async with app.router.lifespan_context(app):
        pass
    return notes


@pytest.mark.parametrize("make", [LifespanFastAPI, fastapi_with_dependencies])
@pytest.mark.parametrize("build", AS_IN_FASTAPI)
async def test_the_order_is_that_of_fastapi(
    build: Callable[[App, Notes], FastAPI], make: App
) -> None:
    stock, ours = await run(build, FastAPI), await run(build, make)
    assert ours.up == list(dict.fromkeys(stock.up[::-1]))[::-1]
    assert ours.down == list(dict.fromkeys(stock.down))


async def test_what_fastapi_drops_counts_as_the_applications() -> None:
    def build(make: App, notes: Notes) -> FastAPI:
        app = make(lifespan=notes.lifespan("lifespan"))
        notes.hooks(app.router, "app 1")
        app.include_router(notes.router("router", "1"))
        app.include_router(notes.router("own", "1", "2", lifespan=True))
        notes.hooks(app.router, "app 2")
        return app

    stock, ours = await run(build, FastAPI), await run(build, fastapi_with_dependencies)
    assert not {"app 1", "app 2", "own 1", "own 2"}.intersection(stock.up)
    own = ["app 1", "own 1", "own 2", "app 2"]
    assert ours.up == [*own, "lifespan", "router 1", "own lifespan"]
    assert ours.down == ["own lifespan", "router 1", "lifespan", *own]


async def test_a_hook_whose_router_has_no_place_any_more_runs_all_the_same() -> None:
    """The lifespan that was assigned doesn't enter the one that was there before."""

    def build(make: App, notes: Notes) -> FastAPI:
        app = make()
        notes.hooks(app.router, "app")
        app.include_router(notes.router("router", "1"))
        app.router.lifespan_context = notes.lifespan("other")
        return app

    ours = await run(build, fastapi_with_dependencies)
    assert ours.up == ["other", "app", "router 1"]
    assert ours.down == ["other", "app", "router 1"]


async def test_every_hook_has_its_turn_though_others_fail() -> None:
    def build(make: App, notes: Notes) -> FastAPI:
        app = make(lifespan=notes.lifespan("lifespan"))
        for name in ("first", "second"):
            router = APIRouter()

            def fail(name: str = name) -> None:
                raise OSError(name)

            router.add_event_handler("shutdown", fail)
            notes.hooks(router, f"{name} router")
            app.include_router(router)
        notes.hooks(app.router, "app")
        return app

    notes = Notes()
    app = build(fastapi_with_dependencies, notes)
    with pytest.raises(ExceptionGroup) as raised:
        async with app.router.lifespan_context(app):
            pass
    assert [str(error) for error in raised.value.exceptions] == ["second", "first"]
    assert notes.down == ["second router", "first router", "app"]
