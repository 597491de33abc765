"""fastapi-injectable: `@injectable`, in an `injectable_scope` for each call; or with its clean-up
called afterwards, in tasks of their own, which fails from FastAPI 0.162.7 on.

The engine is in the state of a registered application, and read by an asynchronous function; a
synchronous one would take a worker thread.
"""

import logging
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi_injectable import (
    cleanup_exit_stack_of_func,
    clear_dependency_cache,
    injectable,
    injectable_scope,
    register_app,
)

from . import plain
from .calling import Caller, Engine, Session

app = FastAPI()  # one is registered at a time


async def registered(calls):
    name = f"engine_{id(calls)}"
    setattr(app.state, name, calls.make_engine())
    await register_app(app)

    async def get_engine(request: Request):
        return getattr(request.app.state, name)

    engine = Annotated[Engine, Depends(get_engine)]
    return injectable(
        calls.taking_session(engine, Annotated[Session, Depends(calls.session(engine))])
    )


@asynccontextmanager
async def in_scope(calls):
    handle = await registered(calls)

    async def call(message):
        async with injectable_scope():
            return await handle(message=message)

    yield call


@asynccontextmanager
async def cleaned_up(calls):
    handle = await registered(calls)
    logging.getLogger("fastapi_injectable").setLevel(logging.ERROR)  # the error is raised, too

    async def call(message):
        try:
            return await handle(message=message)
        finally:
            await cleanup_exit_stack_of_func(handle, raise_exception=True)
            await clear_dependency_cache()

    yield call


CALLERS = [
    Caller("fastapi-injectable, injectable_scope", in_scope, plain.shielded),
    Caller("fastapi-injectable, cleanup_exit_stack_of_func", cleaned_up, plain.shielded),
]
