"""that-depends: `Singleton` providers in a container, each taken by `Depends(Container.provider)`.

Its route class for FastAPI turns defaults into just that.

Outside of requests, `@inject` enters a `ContextResource` for each call.
"""

from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from that_depends import BaseContainer, inject
from that_depends.providers import ContextResource, Singleton
from that_depends.providers.context_resources import ContextScopes

from . import plain
from .calling import Caller
from .case import Contestant, endpoint


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
    class Container(BaseContainer):
        default_scope = ContextScopes.INJECT
        engine = Singleton(calls.make_engine)
        session = ContextResource(calls.session(), engine.cast)

    handle = calls.taking_session()
    handle.__defaults__ = Container.engine, Container.session
    yield inject(handle)
    await Container.tear_down()


CALLERS = [Caller("that-depends", injected, plain.shielded)]
