import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Annotated

import httpx

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Model:
    def is_spam(self, name: str) -> bool:
        return "buy" in name.lower()


def load_model() -> Iterator[Model]:
    print("model loaded", flush=True)  # takes a minute
    yield Model()
    print("model released", flush=True)


def open_database() -> Iterator[str]:
    url = os.environ["DATABASE"]
    with closing(sqlite3.connect(url)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS users (name PRIMARY KEY)")
    print("database opened", flush=True)
    yield url
    print("database closed", flush=True)


async def get_client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=None) as client:
        yield client


ClientDep = Annotated[httpx.AsyncClient, Depends(get_client, scope="lifespan")]
ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]
DatabaseDep = Annotated[str, Depends(open_database, scope="lifespan")]


def get_session(database: DatabaseDep) -> Iterator[sqlite3.Connection]:
    # not all who use it are in the thread where it is made
    with closing(sqlite3.connect(database, check_same_thread=False)) as session:
        yield session
        session.commit()


SessionDep = Annotated[sqlite3.Connection, Depends(get_session)]

app = LifespanFastAPI()


@app.get("/users")
def read_users(session: SessionDep) -> list[str]:
    return [name for (name,) in session.execute("SELECT name FROM users ORDER BY name")]


@app.get("/spam")
def read_spam(name: str, model: ModelDep) -> bool:
    return model.is_spam(name)
