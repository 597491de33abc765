from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI
from wireup import Inject, Injected, create_async_container, injectable
from wireup.integration.fastapi import setup

from docs_src.moving.shop import Pool, Session, Users

config = {"url": "postgresql://localhost/shop"}


@injectable
async def get_pool(url: Annotated[str, Inject(config="url")]) -> AsyncIterator[Pool]:
    pool = Pool(url)
    yield pool
    await pool.close()


@injectable(lifetime="scoped")
async def get_session(pool: Pool) -> AsyncIterator[Session]:
    async with Session(pool) as session:
        yield session


@injectable(lifetime="scoped")
def get_users(session: Session) -> Users:
    return Users(session)


app = FastAPI()


@app.get("/database")
async def read_database(pool: Injected[Pool]) -> str:
    return pool.url


@app.get("/users/{user_id}")
async def read_user(user_id: int, users: Injected[Users]) -> str:
    return await users.find(user_id)


container = create_async_container(config=config, injectables=[get_pool, get_session, get_users])
setup(container, app)
