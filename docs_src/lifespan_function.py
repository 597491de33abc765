from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep


@asynccontextmanager
async def lifespan(app: FastAPI, pool: PoolDep) -> AsyncIterator[dict[str, str]]:
    # The pool is open here ...
    yield {"first_user": await pool.fetch_user(1)}
    # ... and it is still open here.
    await pool.fetch_user(1)


app = LifespanFastAPI(lifespan=lifespan)


@app.get("/first-user")
async def read_first_user(request: Request) -> str:
    first_user: str = request.state.first_user
    return first_user
