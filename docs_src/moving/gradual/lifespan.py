from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from docs_src.moving.shop import Prices
from fastapi_lifespan_deps import LifespanFastAPI

from .main import PoolDep


@asynccontextmanager
async def lifespan(app: FastAPI, pool: PoolDep) -> AsyncIterator[None]:
    app.state.pool = pool
    app.state.prices = Prices()
    yield


app = LifespanFastAPI(lifespan=lifespan)


@app.get("/database")
async def read_database(request: Request) -> str:
    url: str = request.app.state.pool.url
    return url
