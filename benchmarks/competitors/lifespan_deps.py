"""This library, wherever a lifespan dependency can be taken: by an endpoint, asynchronous or not;
by a request-scoped dependency that hands it on; by a WebSocket, which is accepted, sends a text,
and is closed.

With overrides active, each service is replaced. The baseline is there FastAPI with the same
overrides of as many ordinary dependencies, asynchronous functions that return a global.
"""

from collections.abc import Callable
from typing import Any

import fastapi
from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from . import plain
from .case import Case, Contestant, Form, endpoint, sync_endpoint, through_dependency, websocket


def taking(form: Form) -> Callable[[Case], FastAPI]:
    def build(case: Case) -> FastAPI:
        def marker(index: int) -> Any:
            return Depends(case.async_provider(index), scope="lifespan")

        app = LifespanFastAPI(openapi_url=None)
        form(app, case, case.annotated(marker))
        return app

    return build


def overridden(case: Case) -> FastAPI:
    app = LifespanFastAPI(openapi_url=None)

    def marker(index: int) -> Any:
        async def original() -> None:
            raise AssertionError("an original was called")

        app.dependency_overrides[original] = case.async_provider(index)
        return Depends(original, scope="lifespan")

    endpoint(app, case, case.annotated(marker))
    return app


def overridden_stock(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)

    def marker(index: int) -> Any:
        service = case.make(index)

        async def original() -> None:
            raise AssertionError("an original was called")

        async def fake() -> Any:
            return service

        app.dependency_overrides[original] = fake
        return fastapi.Depends(original)

    endpoint(app, case, case.annotated(marker))
    return app


OURS = "fastapi-lifespan-deps"

CONTESTANTS = [
    Contestant(OURS, taking(endpoint), plain.in_endpoint, visits_per_round=5),
    Contestant(f"{OURS}, dependency", taking(through_dependency), plain.in_dependency),
    Contestant(f"{OURS}, WebSocket", taking(websocket), plain.in_websocket, is_websocket=True),
    Contestant(f"{OURS}, sync", taking(sync_endpoint), plain.in_sync_endpoint),
    Contestant(f"{OURS}, overrides", overridden, overridden_stock, counts=(1, 5, 20)),
]
