"""svcs: values, registered in the lifespan, that the endpoint gets from `DepContainer` by one call.

A registered value is the service that all requests share; a factory would make one per request.
"""

import svcs
import svcs.fastapi
from fastapi import FastAPI

from . import plain
from .case import Contestant


def container(case):
    @svcs.fastapi.lifespan
    async def lifespan(app, registry):
        for index, kind in enumerate(case.types):
            registry.register_value(kind, case.make(index))
        yield {}

    names = [kind.__name__ for kind in case.types]
    case.namespace.update(zip(names, case.types, strict=True))
    got = f"container.get({', '.join(names)})"
    # a single service comes as itself, several as a list
    services = {0: "()", 1: f"({got},)"}.get(len(names), got)
    source = f"async def endpoint(container):\n    return count({services})"
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.get("/")(case.define(source, {"container": svcs.fastapi.DepContainer}))
    return app


CONTESTANTS = [Contestant("svcs", container, plain.in_endpoint)]
