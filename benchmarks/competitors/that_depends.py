"""that-depends: `Singleton` providers in a container, each taken by `Depends(Container.provider)`.

Its route class for FastAPI turns defaults into just that.

Outside of requests, `@inject` enters a `ContextResource` for each call.

Connections that are opened at the start are `Resource`s, which the lifespan initializes.
"""

from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from that_depends import BaseContainer, inject
from that_depends.providers import ContextResource, Resource, Singleton
from that_depends.providers.context_resources import ContextScopes

from . import plain
from .calling import Caller
from .case import Contestant, endpoint
from .connecting import COUNT, Connector, over


def singletons(case):
    providers = case.parameters(lambda index: Singleton(case.sync_provider(index)))
    container = type(f"Container{len(providers)}", (BaseContainer,), providers)

    @asynccontextmanager
    async def lifespan(app):
        yield
        await container.tear_down()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    endpoint(app, case, case.annotated(lambda i: Depends(getattr(container, case.names[i]))))
    return app


CONTESTANTS = [Contestant("that-depends", singletons, plain.in_endpoint)]


# Calls outside of requests


@asynccontextmanager
async def injected(calls):
    engine = Singleton(calls.make_engine)
    declared = {
        "default_scope": ContextScopes.INJECT,
        "engine": engine,
        "session": ContextResource(calls.session(), engine.cast),
    }
    container = type(f"Container{id(calls)}", (BaseContainer,), declared)
    handle = calls.taking_session()
    handle.__defaults__ = container.engine, container.session
    yield inject(handle)
    await container.tear_down()


CALLERS = [Caller("that-depends", injected, plain.shielded)]


# Connections that are opened at the start


def connecting(handshakes):
    resources = []
    for index in range(COUNT):
        below = [resources[one].cast for one in over(index)]
        provider = handshakes.provider(index, handshakes.types.__getitem__)
        resources.append(Resource(provider, *below))
    declared = {f"connection_{index}": one for index, one in enumerate(resources)}
    container = type(f"Container{id(handshakes)}", (BaseContainer,), declared)

    @asynccontextmanager
    async def lifespan(app):
        await container.init_resources()
        yield
        await container.tear_down()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.get("/")(
        handshakes.endpoint(
            lambda index: Annotated[handshakes.types[index], Depends(resources[index])]
        )
    )
    return app


CONNECTORS = [Connector("that-depends, Resource", connecting)]
