from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Mount

from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep


@asynccontextmanager
async def admin_lifespan(app: FastAPI, pool: PoolDep) -> AsyncIterator[None]:
    print(f"admin up with {pool.url} {id(pool)}")
    yield
    print("admin down")


admin = LifespanFastAPI(lifespan=admin_lifespan)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, FastAPI):
                await stack.enter_async_context(route.app.router.lifespan_context(route.app))
        yield


app = LifespanFastAPI(lifespan=lifespan)
app.mount("/admin", admin)


@app.get("/pool")
async def read_pool(pool: PoolDep) -> str:
    return f"{pool.url} {id(pool)}"
