"""wireup: singletons, made by synchronous factories.

An endpoint's injected parameters cost less if the factories are synchronous. Three ways:

- the default: `Injected[T]` parameters, and `setup` after the routes;
- `WireupRoute`, the route class that hides these parameters from FastAPI;
- a class-based handler: the services are given to its constructor when the application starts,
  and its endpoint reads its attributes. Such a handler comes in an included router, and so does
  the endpoint that it is compared with.

Connections are opened by the first request that takes them.
"""

from functools import partial

import wireup
import wireup.integration.fastapi
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from wireup import Injected, injectable
from wireup.integration.fastapi import WireupRoute

from . import plain
from .case import Contestant, endpoint
from .connecting import COUNT, Connector


def container(case):
    factories = [injectable(case.sync_provider(index)) for index in range(len(case.types))]
    return wireup.create_async_container(injectables=factories)


def injected(case, route_class=APIRoute):
    app = FastAPI(openapi_url=None)
    app.router.route_class = route_class
    endpoint(app, case, case.parameters(lambda index: Injected[case.types[index]]))
    wireup.integration.fastapi.setup(container(case), app)
    return app


def class_based(case):
    router = APIRouter(route_class=WireupRoute)
    kept = case.tuple_of("self.")
    init = case.define(
        f"def __init__(self, {{parameters}}):\n    {kept} = {{services}}",
        case.parameters(case.types.__getitem__),
    )
    method = case.define(f"async def endpoint(self):\n    return count({kept})")
    router.get("/")(method)
    handler = type("Handler", (), {"router": router, "__init__": init, "endpoint": method})
    app = FastAPI(openapi_url=None)
    wireup.integration.fastapi.setup(container(case), app, class_based_handlers=[handler])
    return app


CONTESTANTS = [
    Contestant("wireup", injected, plain.in_endpoint),
    Contestant(
        "wireup, WireupRoute",
        partial(injected, route_class=WireupRoute),
        plain.in_endpoint,
        visits_per_round=5,
    ),
    Contestant("wireup, class-based handler", class_based, plain.in_included_router),
]


# Connections


def connecting(handshakes):
    providers = [
        injectable(handshakes.provider(index, handshakes.types.__getitem__))
        for index in range(COUNT)
    ]
    app = FastAPI(openapi_url=None)
    app.router.route_class = WireupRoute
    app.get("/")(handshakes.endpoint(lambda index: Injected[handshakes.types[index]]))
    wireup.integration.fastapi.setup(wireup.create_async_container(injectables=providers), app)
    return app


CONNECTORS = [Connector("wireup", connecting)]
