from collections.abc import AsyncIterator

import svcs
from fastapi import FastAPI

from docs_src.moving.shop import Pool, Session, Settings


@svcs.fastapi.lifespan
async def lifespan(app: FastAPI, registry: svcs.Registry) -> AsyncIterator[dict[str, object]]:
    pool = Pool(Settings.url)
    registry.register_value(Pool, pool, on_registry_close=pool.close)

    async def open_session(container: svcs.Container) -> AsyncIterator[Session]:
        async with Session(container.get(Pool)) as session:
            yield session

    registry.register_factory(Session, open_session, suppress_context_exit=False)
    yield {}


app = FastAPI(lifespan=lifespan)


@app.get("/database")
async def read_database(services: svcs.fastapi.DepContainer) -> str:
    pool = services.get(Pool)
    return pool.url


@app.get("/users/{user_id}")
async def read_user(user_id: int, services: svcs.fastapi.DepContainer) -> str:
    session = await services.aget(Session)
    return await session.fetch_user(user_id)
