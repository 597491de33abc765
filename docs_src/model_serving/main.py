"""The application: the model is loaded at startup, shared by every request, freed at shutdown."""

from fastapi_lifespan_deps import LifespanFastAPI, add_health_routes

from . import api, health, metrics, page, swapping
from .shutdown import get_shutdown


def create_app() -> LifespanFastAPI:
    """Make the application. It takes its settings from the environment when it starts."""
    app = LifespanFastAPI(title="Sentence embeddings")
    app.add_middleware(metrics.CountRequests)
    for module in (api, swapping, health, metrics, page):
        app.include_router(module.router)
    # Not cached: the check costs nothing, and what it says is to be known at once.
    add_health_routes(app, ready=[get_shutdown], cache=0)
    return app


app = create_app()
