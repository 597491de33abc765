from typing import Annotated

from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends

from .app import app


def get_mailer() -> str:
    return "a mailer"


with TestClient(app) as client:

    @app.get("/mailer")
    async def read_mailer(mailer: Annotated[str, Depends(get_mailer, scope="lifespan")]) -> str:
        return mailer

    client.get("/mailer")
