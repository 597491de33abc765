"""The application: the model is loaded at startup, shared by every request, freed at shutdown."""

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fastapi_lifespan_deps import (
    LifespanFastAPI,
    UnavailableLifespanDependency,
    add_health_routes,
)

from . import (
    admin,
    api,
    bearer,
    bodies,
    compatible,
    forms,
    health,
    keys,
    logs,
    metrics,
    page,
    refusals,
    swapping,
)
from .shutdown import get_shutdown

# By middleware, or by a route that isn't FastAPI's.
ANSWERED_EARLY = (
    admin.PATH,
    *keys.PATHS,
    f"{forms.PREFIX}/embeddings",
    f"{forms.PREFIX}/models",
    "/livez",
    "/readyz",
)


def create_app() -> LifespanFastAPI:
    """Make the application. It takes its settings from the environment when it starts."""
    app = LifespanFastAPI(title="Sentence embeddings")
    # The last one is the first that a request comes to.
    app.add_middleware(bodies.ReadBodies)
    app.add_middleware(bearer.Guard, guards=admin.is_guarded, check=admin.check_admin)
    app.add_middleware(bearer.Guard, guards=keys.is_guarded, check=keys.check_key)
    app.add_middleware(metrics.MeasureRequests, known=ANSWERED_EARLY)
    # Its validator would log a warning, without an id, for whatever a client sends.
    app.add_middleware(
        CorrelationIdMiddleware, logs.HEADER, validator=None, transformer=logs.take_id
    )
    app.add_exception_handler(HTTPException, refusals.answer_refused)
    app.add_exception_handler(RequestValidationError, refusals.answer_invalid)
    app.add_exception_handler(UnavailableLifespanDependency, refusals.answer_unavailable)
    app.add_exception_handler(Exception, logs.answer_failed)
    for module in (api, compatible, swapping, health, metrics, page):
        app.include_router(module.router)
    # Not cached: the check costs nothing, and what it says is to be known at once.
    add_health_routes(app, ready=[get_shutdown], cache=0)
    return app


app = create_app()
