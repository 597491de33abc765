"""FastAPI alone: the limit that everything is compared with, and the floor of what can be injected.

The limit: endpoints that read module globals, made before the application starts.

The floor: an endpoint with the services as parameters, filled by `functools.partial` by hand.

Calls outside of requests, by hand: the engine is a variable, and the session a context manager,
whose clean-up runs shielded from cancellation, as it should, or not.

Connections that are opened at the start: by a lifespan function, one after the other, or level by
level, those of a level at once in a task group.
"""

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from anyio import CancelScope, create_task_group
from fastapi import APIRouter, FastAPI, Request

from .calling import Call, Caller, Calls, Engine, Session
from .case import (
    ENDPOINT,
    Case,
    Contestant,
    Form,
    endpoint,
    sync_endpoint,
    through_dependency,
    websocket,
)
from .connecting import COUNT, LEVELS, Connector, Handshakes, over


def global_services(case: Case) -> list[Any]:
    """Make the services, as globals of the endpoints."""
    services = [case.make(index) for index in range(len(case.names))]
    case.namespace.update(zip(case.names, services, strict=True))
    return services


def reading_globals(form: Form) -> Callable[[Case], FastAPI]:
    def build(case: Case) -> FastAPI:
        app = FastAPI(openapi_url=None)
        global_services(case)
        form(app, case, {})
        return app

    return build


in_endpoint = reading_globals(endpoint)
in_sync_endpoint = reading_globals(sync_endpoint)
in_dependency = reading_globals(through_dependency)
in_websocket = reading_globals(websocket)


def in_included_router(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)
    router = APIRouter()
    global_services(case)
    endpoint(router, case, {})
    app.include_router(router)
    return app


def partial(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)
    services = global_services(case)
    function = case.define(ENDPOINT, case.parameters(case.types.__getitem__))
    app.get("/")(functools.partial(function, *services))
    return app


CONTESTANTS = [
    Contestant("functools.partial by hand", partial, in_endpoint, visits_per_round=5),
]


# Calls outside of requests


@asynccontextmanager
async def shielded(calls: Calls) -> AsyncIterator[Call]:
    """As one would write it who wants the clean-up to run to its end."""
    engine, handle = calls.make_engine(), calls.taking_session()

    @asynccontextmanager
    async def open_session(engine: Engine) -> AsyncIterator[Session]:
        session = Session(engine)
        try:
            yield session
        finally:
            with CancelScope(shield=True):
                await session.close()

    async def call(message: int) -> Any:
        async with open_session(engine) as session:
            return await handle(message, engine, session)

    yield call


@asynccontextmanager
async def unshielded(calls: Calls) -> AsyncIterator[Call]:
    engine, handle = calls.make_engine(), calls.taking_session()
    open_session = asynccontextmanager(calls.session())

    async def call(message: int) -> Any:
        async with open_session(engine) as session:
            return await handle(message, engine, session)

    yield call


@asynccontextmanager
async def values(calls: Calls) -> AsyncIterator[Call]:
    engine, handle = calls.make_engine(), calls.taking_engine()

    async def call(message: int) -> Any:
        return await handle(message, engine)

    yield call


@asynccontextmanager
async def values_in_thread(calls: Calls) -> AsyncIterator[Call]:
    engine, handle = calls.make_engine(), calls.sync_taking_engine()

    def call(message: int) -> Any:
        return handle(message, engine)

    yield call


@asynccontextmanager
async def session_in_thread(calls: Calls) -> AsyncIterator[Call]:
    engine, handle = calls.make_engine(), calls.sync_taking_session()
    open_session = contextmanager(calls.sync_session())

    def call(message: int) -> Any:
        with open_session(engine) as session:
            return handle(message, engine, session)

    yield call


CALLERS = [Caller("by hand, not shielded", unshielded, shielded)]


# Connections that are opened at the start


class Opener:
    """What a lifespan function has opened."""

    def __init__(self, handshakes: Handshakes, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.open_one = asynccontextmanager(handshakes.connection)
        self.opened: dict[int, Any] = {}

    async def open(self, index: int) -> None:
        below = [self.opened[one] for one in over(index)]
        self.opened[index] = await self.stack.enter_async_context(self.open_one(index, *below))


def lifespan_function(open_all: Callable[[Opener], Any]) -> Callable[[Handshakes], FastAPI]:
    def build(handshakes: Handshakes) -> FastAPI:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                opener = Opener(handshakes, stack)
                await open_all(opener)
                app.state.connections = [opener.opened[index] for index in LEVELS[-1]]
                yield

        app = FastAPI(openapi_url=None, lifespan=lifespan)

        @app.get("/")
        async def read(request: Request) -> int:
            return handshakes.right(request.app.state.connections)

        return app

    return build


async def one_after_the_other(opener: Opener) -> None:
    for index in range(COUNT):
        await opener.open(index)


async def by_levels(opener: Opener) -> None:
    for level in LEVELS:
        async with create_task_group() as tasks:
            for index in level:
                tasks.start_soon(opener.open, index)


CONNECTORS = [
    Connector("lifespan by hand, a task group for each level", lifespan_function(by_levels)),
    Connector("lifespan by hand, one after the other", lifespan_function(one_after_the_other)),
]
