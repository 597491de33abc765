"""FastAPI's own dependencies that look a service up, as its and Starlette's documentation show.

- `app.state`: set in the lifespan, read by an asynchronous or by a synchronous function.
- `request.state`: what the lifespan yields, read by an asynchronous function.
- `lru_cache`: a synchronous function with that decorator makes the service.

FastAPI runs synchronous functions in worker threads.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from fastapi import Depends, FastAPI, Request

from . import plain
from .case import Case, Contestant, endpoint


def reading(case: Case, lifespan: Any, reader: Callable[[str], Any]) -> FastAPI:
    app = FastAPI(openapi_url=None, lifespan=lifespan(case))
    endpoint(app, case, case.annotated(lambda index: Depends(reader(case.names[index]))))
    return app


def setting_app_state(case: Case) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for index, name in enumerate(case.names):
            setattr(app.state, name, case.make(index))
        yield

    return lifespan


def yielding_state(case: Case) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {name: case.make(index) for index, name in enumerate(case.names)}

    return lifespan


def app_state(case: Case) -> FastAPI:
    def reader(name: str) -> Any:
        async def read(request: Request) -> Any:
            return getattr(request.app.state, name)

        return read

    return reading(case, setting_app_state, reader)


def app_state_sync(case: Case) -> FastAPI:
    def reader(name: str) -> Any:
        def read(request: Request) -> Any:
            return getattr(request.app.state, name)

        return read

    return reading(case, setting_app_state, reader)


def request_state(case: Case) -> FastAPI:
    def reader(name: str) -> Any:
        async def read(request: Request) -> Any:
            return getattr(request.state, name)

        return read

    return reading(case, yielding_state, reader)


def cached(case: Case) -> FastAPI:
    app = FastAPI(openapi_url=None)
    endpoint(app, case, case.annotated(lambda i: Depends(lru_cache(case.sync_provider(i)))))
    return app


CONTESTANTS = [
    Contestant("Depends, app.state", app_state, plain.in_endpoint),
    Contestant("Depends, app.state, sync", app_state_sync, plain.in_endpoint),
    Contestant("Depends, request.state", request_state, plain.in_endpoint),
    Contestant("Depends, lru_cache", cached, plain.in_endpoint),
]
