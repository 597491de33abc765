"""This library, wherever a lifespan dependency can be taken: by an endpoint, asynchronous or not;
by a request-scoped dependency that hands it on; by a WebSocket, which is accepted, sends a text,
and is closed.

With overrides active, each service is replaced. The baseline is there FastAPI with the same
overrides of as many ordinary dependencies, asynchronous functions that return a global.

Outside of requests, a container by itself: what `container.inject` makes of a function, or
`container.call`; and the same while another call goes on, as in a worker.
"""

from asyncio import Event, create_task
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import fastapi
from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI

from . import plain
from .calling import Call, Caller, Calls, Engine, Session, Start
from .case import Case, Contestant, Form, endpoint, sync_endpoint, through_dependency, websocket
from .connecting import COUNT, Connector, Handshakes


def taking(form: Form) -> Callable[[Case], FastAPI]:
    def build(case: Case) -> FastAPI:
        def marker(index: int) -> Any:
            return Depends(case.async_provider(index), scope="lifespan")

        app = LifespanFastAPI(openapi_url=None)
        form(app, case, case.annotated(marker))
        return app

    return build


def overridden(case: Case) -> FastAPI:
    app = LifespanFastAPI(openapi_url=None)

    def marker(index: int) -> Any:
        async def original() -> None:
            raise AssertionError("an original was called")

        app.dependency_overrides[original] = case.async_provider(index)
        return Depends(original, scope="lifespan")

    endpoint(app, case, case.annotated(marker))
    return app


def overridden_stock(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)

    def marker(index: int) -> Any:
        service = case.make(index)

        async def original() -> None:
            raise AssertionError("an original was called")

        async def fake() -> Any:
            return service

        app.dependency_overrides[original] = fake
        return fastapi.Depends(original)

    endpoint(app, case, case.annotated(marker))
    return app


OURS = "fastapi-lifespan-deps"

CONTESTANTS = [
    Contestant(OURS, taking(endpoint), plain.in_endpoint, visits_per_round=5),
    Contestant(f"{OURS}, dependency", taking(through_dependency), plain.in_dependency),
    Contestant(f"{OURS}, WebSocket", taking(websocket), plain.in_websocket, is_websocket=True),
    Contestant(f"{OURS}, sync", taking(sync_endpoint), plain.in_sync_endpoint),
    Contestant(f"{OURS}, overrides", overridden, overridden_stock, counts=(1, 5, 20)),
]


# Calls outside of requests


def injecting(declare: Callable[[Calls], Callable[..., Any]], *, by_call: bool = False) -> Start:
    @asynccontextmanager
    async def start(calls: Calls) -> AsyncIterator[Call]:
        function = declare(calls)
        container = LifespanContainer(handlers=[function])
        injected = container.inject(function)

        async def call(message: int) -> Any:
            return await container.call(function, message)

        async with container:
            yield call if by_call else injected

    return start


@asynccontextmanager
async def beside_another(calls: Calls) -> AsyncIterator[Call]:
    has_begun, may_end = Event(), Event()

    async def go_on(engine: Engine) -> None:
        has_begun.set()
        await may_end.wait()

    go_on.__annotations__["engine"] = engine_of(calls)
    function = with_session(calls)
    container = LifespanContainer(handlers=[function, go_on])
    async with container:
        another = create_task(container.call(go_on))
        await has_begun.wait()
        yield container.inject(function)
        may_end.set()
        await another


def engine_of(calls: Calls) -> Any:
    return Annotated[Engine, Depends(calls.get_engine, scope="lifespan")]


def with_session(calls: Calls) -> Callable[..., Any]:
    engine = engine_of(calls)
    session = Annotated[Session, fastapi.Depends(calls.session(engine))]
    return calls.taking_session(engine, session)


def with_sync_session(calls: Calls) -> Callable[..., Any]:
    engine = engine_of(calls)
    session = Annotated[Session, fastapi.Depends(calls.sync_session(engine))]
    return calls.sync_taking_session(engine, session)


def with_values(calls: Calls) -> Callable[..., Any]:
    return calls.taking_engine(engine_of(calls))


def with_values_in_thread(calls: Calls) -> Callable[..., Any]:
    return calls.sync_taking_engine(engine_of(calls))


CALLERS = [
    Caller(OURS, injecting(with_session), plain.shielded, visits_per_round=5),
    Caller(f"{OURS}, call", injecting(with_session, by_call=True), plain.shielded),
    Caller(f"{OURS}, another goes on", beside_another, plain.shielded),
    Caller(f"{OURS}, values only", injecting(with_values), plain.values, visits_per_round=5),
    Caller(
        f"{OURS}, thread, values only",
        injecting(with_values_in_thread),
        plain.values_in_thread,
        in_thread=True,
    ),
    Caller(
        f"{OURS}, thread",
        injecting(with_sync_session),
        plain.session_in_thread,
        in_thread=True,
    ),
]


# Connections that are opened at the start


def connecting(how: Literal["sequential", "concurrent"]) -> Callable[[Handshakes], FastAPI]:
    def build(handshakes: Handshakes) -> FastAPI:
        declared: list[Any] = []
        for index in range(COUNT):
            depends = Depends(handshakes.provider(index, declared.__getitem__), scope="lifespan")
            declared.append(Annotated[handshakes.types[index], depends])
        app = LifespanFastAPI(openapi_url=None, lifespan_start=how)
        app.get("/")(handshakes.endpoint(declared.__getitem__))
        return app

    return build


CONNECTORS = [
    Connector(f"{OURS}, concurrent", connecting("concurrent")),
    Connector(OURS, connecting("sequential")),
]
