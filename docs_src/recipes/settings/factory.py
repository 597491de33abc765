from fastapi.middleware.cors import CORSMiddleware

from fastapi_lifespan_deps import LifespanFastAPI

from .routes import Settings, router


def create_app(settings: Settings | None = None) -> LifespanFastAPI:
    settings = settings or Settings()
    app = LifespanFastAPI(title=settings.title)
    app.add_middleware(CORSMiddleware, allow_origins=settings.origins)
    app.dependency_overrides[Settings] = lambda: settings
    app.include_router(router)
    return app
