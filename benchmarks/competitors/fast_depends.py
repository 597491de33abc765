"""fast-depends: `@inject`, as it is, and without its casts. It shares nothing by itself, so the
engine is what an asynchronous function gives; a synchronous one would take a worker thread.
"""

from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fast_depends import Depends, inject

from . import plain
from .calling import Caller, Engine, Session


@asynccontextmanager
async def injected(calls, **options):
    shared = calls.make_engine()

    async def get_engine():
        return shared

    engine = Annotated[Engine, Depends(get_engine)]
    session = Annotated[Session, Depends(calls.session(engine))]
    yield inject(calls.taking_session(engine, session), **options)


CALLERS = [
    Caller("fast-depends", injected, plain.shielded),
    Caller("fast-depends, cast=False", partial(injected, cast=False), plain.shielded),
]
