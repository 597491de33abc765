"""`LifespanFastAPI` and `enable_lifespan_scope` keep the types of FastAPI."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, assert_type

from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    View,
    get_container,
    lifespan_container,
)
from fastapi_lifespan_deps import enable_lifespan_scope as enable


class Service:
    pass


class Subclass(FastAPI):
    version_of_api = 3


class LifespanSubclass(LifespanFastAPI):
    pass


def get_service() -> Service:
    return Service()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def lifespan_with_values(
    app: FastAPI, service: Annotated[Service, Depends(get_service, scope="lifespan")]
) -> AsyncIterator[dict[str, Any]]:
    yield {"service": service}


app = LifespanFastAPI(title="An application", debug=True, lifespan=lifespan)
LifespanFastAPI(lifespan=lifespan_with_values)
LifespanFastAPI(lifespan=None)

a_fastapi: FastAPI = app
assert_type(app.router, APIRouter)
assert_type(app.title, str)
assert_type(app.debug, bool)

assert_type(enable(FastAPI()), FastAPI)
assert_type(enable(Subclass()), Subclass)
assert_type(enable(Subclass()).version_of_api, int)
assert_type(enable(app), LifespanFastAPI)
assert_type(enable(LifespanSubclass()), LifespanSubclass)


@app.get("/")
async def read(container: Annotated[LifespanContainer, Depends(get_container)]) -> None:
    assert_type(container, LifespanContainer)


async def warm(service: Annotated[Service, Depends(get_service, scope="lifespan")]) -> None: ...


LifespanFastAPI(on_startup=[warm], on_shutdown=[warm], dependencies=[Depends(get_service)])
assert_type(lifespan_container(FastAPI()), View)
assert_type(app.lifespan_container, View)

LifespanFastAPI(title=3)  # type: ignore[arg-type]
LifespanFastAPI(titel="typo")  # type: ignore[call-arg]
LifespanFastAPI(lifespan=lambda: 3)  # type: ignore[arg-type, misc]
lifespan_container(APIRouter())  # type: ignore[arg-type]
LifespanFastAPI("positional")  # type: ignore[arg-type, call-arg]
LifespanFastAPI(lifespan=3)  # type: ignore[arg-type]
enable(APIRouter())  # type: ignore[type-var]
