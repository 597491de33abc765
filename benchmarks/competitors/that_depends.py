"""that-depends: `Singleton` providers in a container, each taken by `Depends(Container.provider)`.

Its route class for FastAPI turns defaults into just that.
"""

from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from that_depends import BaseContainer
from that_depends.providers import Singleton

from . import plain
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
