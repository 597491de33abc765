from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from fastapi import Depends, FastAPI

from docs_src.moving.shop import Pool, Session, Settings


async def open_pool(settings: Settings) -> AsyncIterator[Pool]:
    pool = Pool(settings.url)
    yield pool
    await pool.close()


class Container(containers.DeclarativeContainer):
    wiring_config = containers.WiringConfiguration(modules=[__name__])

    settings = providers.Singleton(Settings)
    pool = providers.Resource(open_pool, settings)
    session = providers.Factory(Session, pool)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await container.init_resources()
    yield
    await container.shutdown_resources()


app = FastAPI(lifespan=lifespan)


@app.get("/database")
@inject
async def read_database(pool: Annotated[Pool, Depends(Provide[Container.pool])]) -> str:
    return pool.url


@app.get("/users/{user_id}")
@inject
async def read_user(
    user_id: int, session: Annotated[Session, Depends(Provide[Container.session])]
) -> str:
    async with session:
        return await session.fetch_user(user_id)


container = Container()  # wires the functions above
