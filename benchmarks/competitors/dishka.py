"""dishka: one provider of factories with `Scope.APP`, `setup_dishka`, and `FromDishka[T]`
parameters, once with `DishkaRoute` and once with `@inject`.

Outside of requests, a request scope for each call, entered by hand; or by `wrap_injection`, which
is for frameworks that dishka doesn't know.

Connections are opened by the first request that takes them.
"""

from contextlib import asynccontextmanager
from functools import partial

from dishka import FromDishka, Provider, Scope, make_async_container
from dishka.integrations.base import wrap_injection
from dishka.integrations.fastapi import DishkaRoute, inject, setup_dishka
from fastapi import FastAPI

from . import plain
from .calling import Caller, Engine, Session
from .case import ENDPOINT, Contestant
from .connecting import COUNT, Connector


@asynccontextmanager
async def lifespan(app):
    yield
    await app.state.dishka_container.close()


def application(case, route_class=None, decorator=lambda function: function):
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    if route_class is not None:
        app.router.route_class = route_class
    parameters = case.parameters(lambda index: FromDishka[case.types[index]])
    app.get("/")(decorator(case.define(ENDPOINT, parameters)))
    provider = Provider(scope=Scope.APP)
    for index in range(len(case.types)):
        provider.provide(case.async_provider(index))
    setup_dishka(make_async_container(provider), app)
    return app


CONTESTANTS = [
    Contestant(
        "dishka, DishkaRoute", partial(application, route_class=DishkaRoute), plain.in_endpoint
    ),
    Contestant("dishka, @inject", partial(application, decorator=inject), plain.in_endpoint),
]


# Calls outside of requests


def container_of(calls):
    provider = Provider()
    provider.provide(calls.get_engine, scope=Scope.APP)
    provider.provide(calls.session(), scope=Scope.REQUEST)
    return make_async_container(provider)


@asynccontextmanager
async def entering(calls):
    container = container_of(calls)
    handle = calls.taking_session()

    async def call(message):
        async with container() as request:
            return await handle(message, await request.get(Engine), await request.get(Session))

    yield call
    await container.close()


@asynccontextmanager
async def wrapped(calls):
    container = container_of(calls)
    yield wrap_injection(
        func=calls.taking_session(FromDishka[Engine], FromDishka[Session]),
        is_async=True,
        container_getter=lambda args, kwargs: container,
        manage_scope=True,
    )
    await container.close()


CALLERS = [
    Caller("dishka", entering, plain.shielded),
    Caller("dishka, wrap_injection", wrapped, plain.shielded),
]


# Connections


def connecting(handshakes):
    provider = Provider(scope=Scope.APP)
    for index in range(COUNT):
        provider.provide(handshakes.provider(index, handshakes.types.__getitem__))
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.router.route_class = DishkaRoute
    app.get("/")(handshakes.endpoint(lambda index: FromDishka[handshakes.types[index]]))
    setup_dishka(make_async_container(provider), app)
    return app


CONNECTORS = [Connector("dishka", connecting)]
