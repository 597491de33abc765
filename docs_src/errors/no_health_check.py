from fastapi.testclient import TestClient

from fastapi_lifespan_deps import add_health_routes

from .app import app, get_pool

add_health_routes(app, ready=[get_pool])

with TestClient(app):
    pass
