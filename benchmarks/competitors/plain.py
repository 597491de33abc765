"""FastAPI alone: the limit that everything is compared with, and the floor of what can be injected.

The limit: endpoints that read module globals, made before the application starts.

The floor: an endpoint with the services as parameters, filled by `functools.partial` by hand.

Calls outside of requests, by hand: the engine is a variable, and the session a context manager,
whose clean-up runs shielded from cancellation, as it should, or not.
"""

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from anyio import CancelScope
from fastapi import APIRouter, FastAPI

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
