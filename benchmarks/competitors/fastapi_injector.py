"""fastapi-injector: singletons of an injector, taken by `Injected(T)`, without its middleware,
which only request-scoped services need. `SyncInjected` would take a worker thread for each.
"""

from fastapi import FastAPI
from fastapi_injector import Injected, attach_injector
from injector import Injector, singleton

from . import plain
from .case import Contestant, endpoint


def singletons(case):
    def configure(binder):
        for index, kind in enumerate(case.types):
            binder.bind(kind, to=case.sync_provider(index), scope=singleton)

    app = FastAPI(openapi_url=None)
    endpoint(app, case, case.annotated(lambda index: Injected(case.types[index])))
    attach_injector(app, Injector([configure]))
    return app


CONTESTANTS = [Contestant("fastapi-injector", singletons, plain.in_endpoint)]
