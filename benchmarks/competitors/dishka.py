"""dishka: one provider of factories with `Scope.APP`, `setup_dishka`, and `FromDishka[T]`
parameters, once with `DishkaRoute` and once with `@inject`.
"""

from contextlib import asynccontextmanager
from functools import partial

from dishka import FromDishka, Provider, Scope, make_async_container
from dishka.integrations.fastapi import DishkaRoute, inject, setup_dishka
from fastapi import FastAPI

from . import plain
from .case import ENDPOINT, Contestant


def application(case, route_class=None, decorator=lambda function: function):
    @asynccontextmanager
    async def lifespan(app):
        yield
        await app.state.dishka_container.close()

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
