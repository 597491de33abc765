"""fastapi-singleton: asynchronous functions with `@singleton`, started by its lifespan.

Its singletons belong to the process, so those of the application before are reset, as its
documentation does it between tests.
"""

from fastapi import Depends, FastAPI
from fastapi_singleton import lifespan, reset, singleton

from . import plain
from .case import Contestant, endpoint


def singletons(case):
    reset()
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    endpoint(app, case, case.annotated(lambda i: Depends(singleton(case.async_provider(i)))))
    return app


CONTESTANTS = [Contestant("fastapi-singleton", singletons, plain.in_endpoint)]
