"""dependency-injector: `Singleton` providers of a container that is wired to the endpoint's module,
`@inject`, and `Depends(Provide[...])`, as its FastAPI examples do it.

Asynchronous `Resource` providers cost more. FastAPI calls each marker in a worker thread.
"""

from types import ModuleType

from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from fastapi import Depends, FastAPI

from . import plain
from .case import ENDPOINT, Contestant


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
