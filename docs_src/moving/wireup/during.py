from typing import Annotated

from fastapi import FastAPI
from wireup import Injected, create_async_container
from wireup.integration.fastapi import get_app_container, setup

from docs_src.moving.shop import Pool, Users
from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .before import config, get_session, get_users
from .before import get_pool as get_wired_pool


async def get_pool(app: FastAPI) -> Pool:
    return await get_app_container(app).get(Pool)


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/database")  # this one has moved
async def read_database(pool: PoolDep) -> str:
    return pool.url


@app.get("/users/{user_id}")  # this one hasn't
async def read_user(user_id: int, users: Injected[Users]) -> str:
    return await users.find(user_id)


injectables = [get_wired_pool, get_session, get_users]
container = create_async_container(config=config, injectables=injectables)
setup(container, app)
