"""dependency-injector: `Singleton` providers of a container that is wired to the endpoint's module,
`@inject`, and `Depends(Provide[...])`, as its FastAPI examples do it.

Asynchronous `Resource` providers cost more. FastAPI calls each marker in a worker thread.

Connections that are opened at the start are such `Resource`s, which the lifespan initializes.
"""

from contextlib import asynccontextmanager
from types import ModuleType
from typing import Annotated

from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from fastapi import Depends, FastAPI

from . import plain
from .case import ENDPOINT, Contestant
from .connecting import COUNT, Connector, over


def wired(case):
    declared = case.parameters(lambda index: providers.Singleton(case.sync_provider(index)))
    container_class = type("Container", (containers.DeclarativeContainer,), declared)

    def marker(index):
        return Depends(Provide[getattr(container_class, case.names[index])])

    function = case.define(ENDPOINT, case.annotated(marker))
    module = ModuleType("endpoints")
    function.__module__ = module.__name__
    module.endpoint = inject(function) if case.types else function
    app = FastAPI(openapi_url=None)
    app.get("/")(module.endpoint)
    app.container = container_class()
    app.container.wire(modules=[module])
    return app


CONTESTANTS = [Contestant("dependency-injector", wired, plain.in_endpoint)]


# Connections that are opened at the start


def connecting(handshakes):
    resources = []
    for index in range(COUNT):
        below = [resources[one] for one in over(index)]
        provider = handshakes.provider(index, handshakes.types.__getitem__)
        resources.append(providers.Resource(provider, *below))
    declared = {f"connection_{index}": one for index, one in enumerate(resources)}
    container_class = type("Container", (containers.DeclarativeContainer,), declared)

    def marker(index):
        return Depends(Provide[getattr(container_class, f"connection_{index}")])

    @asynccontextmanager
    async def lifespan(app):
        await app.container.init_resources()
        yield
        await app.container.shutdown_resources()

    function = handshakes.endpoint(lambda index: Annotated[handshakes.types[index], marker(index)])
    module = ModuleType("endpoints")
    function.__module__ = module.__name__
    module.endpoint = inject(function)
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.get("/")(module.endpoint)
    app.container = container_class()
    app.container.wire(modules=[module])
    return app


CONNECTORS = [Connector("dependency-injector, Resource", connecting)]
