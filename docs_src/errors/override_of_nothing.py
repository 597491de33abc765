from typing import Any

from fastapi.testclient import TestClient

from .app import Pool, PoolDep, app

fakes: dict[Any, Any] = {PoolDep: Pool}
app.dependency_overrides.update(fakes)

with TestClient(app):
    pass
