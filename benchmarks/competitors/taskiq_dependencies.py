"""taskiq-dependencies: a graph of the function, made once, and a context for each call. The engine
is in the context's initial cache, as what taskiq's brokers share is.
"""

from contextlib import asynccontextmanager
from typing import Annotated

from taskiq_dependencies import DependencyGraph, Depends

from . import plain
from .calling import Caller, Engine, Session


@asynccontextmanager
async def graph(calls):
    engine = Annotated[Engine, Depends()]
    handle = calls.taking_session(engine, Annotated[Session, Depends(calls.session(engine))])
    of_handle = DependencyGraph(handle)
    shared = {Engine: calls.make_engine()}

    async def call(message):
        async with of_handle.async_ctx(shared) as context:
            return await handle(message, **await context.resolve_kwargs())

    yield call


CALLERS = [Caller("taskiq-dependencies", graph, plain.shielded)]
