"""litestar: dependencies of the application, `Provide(..., use_cache=True)`, whose parameters are
marked to skip its validation. It is compared with a litestar endpoint that reads globals.

Litestar's own logging is off: it would become that of the whole process.
"""

from litestar import Litestar, get
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from . import plain
from .case import ENDPOINT, Contestant


def application(case, parameters, **options):
    function = case.define(ENDPOINT, parameters)
    function.__annotations__["return"] = int
    return Litestar([get("/")(function)], openapi_config=None, logging_config=None, **options)


def in_endpoint(case):
    plain.global_services(case)
    return application(case, {})


def cached(case):
    types = case.parameters(lambda index: NamedDependency[SkipValidation[case.types[index]]])
    provided = case.parameters(lambda index: Provide(case.async_provider(index), use_cache=True))
    return application(case, types, dependencies=provided)


CONTESTANTS = [
    Contestant("litestar", cached, in_endpoint, lifespan=lambda app: app.lifespan()),
]
