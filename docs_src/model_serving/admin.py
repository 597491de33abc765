"""Who may swap the model: whoever has the token of the settings."""

import secrets
from typing import Annotated

from fastapi import HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_lifespan_deps import Depends

from .errors import respond
from .settings import SettingsDep, find_settings

PATH = "/admin/model"

bearer = HTTPBearer(auto_error=False, description="MODEL_SERVING_ADMIN_TOKEN")


# --8<-- [start:guard]
async def check_admin(
    settings: SettingsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Let through who has the token of the settings. Without one, there is nothing here."""
    if settings.admin_token is None:
        raise HTTPException(404, "Set MODEL_SERVING_ADMIN_TOKEN to allow that models are swapped.")
    expected = settings.admin_token.get_secret_value()
    given = "" if credentials is None else credentials.credentials
    # A header is read as latin-1, whatever the client has written.
    if not secrets.compare_digest(given.encode("latin-1"), expected.encode()):
        raise HTTPException(
            401, "Send the admin token as a bearer token.", {"WWW-Authenticate": "Bearer"}
        )


class GuardAdmin:
    """ASGI middleware that asks for the token before anybody reads a body.

    FastAPI reads the body first, and then calls the dependencies of a route. The route has this
    check as well: it is safe wherever the application is mounted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(PATH):
            settings = await find_settings(scope)
            if settings is not None:
                try:
                    await check_admin(settings, await bearer(Request(scope)))
                except HTTPException as error:
                    await respond(error)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


# --8<-- [end:guard]
