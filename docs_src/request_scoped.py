from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .first_steps import PoolDep


class Session:
    def __init__(self, fetched: str) -> None:
        self.user = fetched


async def get_session(pool: PoolDep, user_id: Annotated[int, Header()]) -> AsyncIterator[Session]:
    session = Session(await pool.fetch_user(user_id))
    yield session


SessionDep = Annotated[Session, Depends(get_session)]

app = LifespanFastAPI()


@app.get("/me")
async def read_me(session: SessionDep) -> str:
    return session.user
