import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Request, Response
from pydantic_settings import BaseSettings
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fastapi_lifespan_deps import Depends, LifespanFastAPI, get_container

INVALID_PASSWORD = "28P01"  # PostgreSQL's code; it says so of a role that is gone, too


class Settings(BaseSettings):
    database_url: str  # without a password
    database_password_file: Path  # somebody else writes it anew


async def get_engine(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[AsyncEngine]:
    password = await anyio.Path(settings.database_password_file).read_text()
    url = make_url(settings.database_url).set(password=password.strip())
    engine = create_async_engine(url, pool_pre_ping=True)
    async with engine.connect():
        pass  # a password that is not valid fails here, and the former engine serves on
    yield engine
    await engine.dispose()


EngineDep = Annotated[
    AsyncEngine,
    Depends(get_engine, scope="lifespan", start_timeout=10, refresh_every=timedelta(minutes=10)),
]

app = LifespanFastAPI()


@app.exception_handler(DBAPIError)
async def read_password_again(request: Request, error: DBAPIError) -> Response:
    if getattr(error.orig, "sqlstate", None) != INVALID_PASSWORD:
        raise error
    container = await get_container(request)
    try:
        await container.refresh(get_engine)
    except Exception:
        logging.exception("the database takes no password that we have")
    return Response(status_code=503, headers={"Retry-After": "1"})


@app.get("/now")
async def read_now(engine: EngineDep) -> str:
    async with engine.connect() as connection:
        return str(await connection.scalar(text("SELECT now()")))
