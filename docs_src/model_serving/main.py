"""The application: the model is loaded at startup, shared by every request, freed at shutdown."""

from fastapi_lifespan_deps import LifespanFastAPI

from . import api, health, metrics, page, swapping


def create_app() -> LifespanFastAPI:
    """Make the application. It takes its settings from the environment when it starts."""
    app = LifespanFastAPI(title="Sentence embeddings")
    app.add_middleware(metrics.CountRequests)
    for module in (api, swapping, health, metrics, page):
        app.include_router(module.router)
    return app


app = create_app()
