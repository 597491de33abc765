"""`Depends` where FastAPI users put it, and what it takes."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Service:
    pass


async def get_service() -> AsyncIterator[Service]:
    yield Service()


ServiceDep = Annotated[Service, Depends(get_service, scope="lifespan")]


def read(
    alias: ServiceDep,
    own: Annotated[Service, Depends(get_service, scope="lifespan", use_cache=False)],
    inferred: Annotated[Service, Depends(scope="lifespan")],
    of_a_request: Annotated[Service, Depends(get_service, scope="request", use_cache=True)],
    by_default: Service = Depends(get_service, scope="lifespan"),
) -> None:
    assert_type(alias, Service)
    assert_type(own, Service)
    assert_type(inferred, Service)
    assert_type(of_a_request, Service)
    assert_type(by_default, Service)


assert_type(Depends(get_service, scope="lifespan"), Any)
Depends()
Depends(get_service, scope=None)
Depends(get_service, scope="function", max_concurrency=2)

FastAPI(dependencies=[Depends(get_service, scope="lifespan")])
LifespanFastAPI(dependencies=[Depends(get_service, scope="lifespan")])
APIRouter(dependencies=[Depends(get_service, scope="lifespan")])

Depends(get_service, scope="session")  # type: ignore[arg-type]
Depends(Service(), scope="lifespan")  # type: ignore[arg-type]
Depends(get_service, "lifespan")  # type: ignore[arg-type, call-arg]
Depends(get_service, use_cache="no")  # type: ignore[arg-type]
