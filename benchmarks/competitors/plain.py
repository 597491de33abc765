"""FastAPI alone: the limit that everything is compared with, and the floor of what can be injected.

The limit: endpoints that read module globals, made before the application starts.

The floor: an endpoint with the services as parameters, filled by `functools.partial` by hand.
"""

import functools
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI

from .case import (
    ENDPOINT,
    Case,
    Contestant,
    Form,
    endpoint,
    sync_endpoint,
    through_dependency,
    websocket,
)


def global_services(case: Case) -> list[Any]:
    """Make the services, as globals of the endpoints."""
    services = [case.make(index) for index in range(len(case.names))]
    case.namespace.update(zip(case.names, services, strict=True))
    return services


def reading_globals(form: Form) -> Callable[[Case], FastAPI]:
    def build(case: Case) -> FastAPI:
        app = FastAPI(openapi_url=None)
        global_services(case)
        form(app, case, {})
        return app

    return build


in_endpoint = reading_globals(endpoint)
in_sync_endpoint = reading_globals(sync_endpoint)
in_dependency = reading_globals(through_dependency)
in_websocket = reading_globals(websocket)


def in_included_router(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)
    router = APIRouter()
    global_services(case)
    endpoint(router, case, {})
    app.include_router(router)
    return app


def partial(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)
    services = global_services(case)
    function = case.define(ENDPOINT, case.parameters(case.types.__getitem__))
    app.get("/")(functools.partial(function, *services))
    return app


CONTESTANTS = [
    Contestant("functools.partial by hand", partial, in_endpoint, visits_per_round=5),
]
