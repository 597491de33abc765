"""A token that a request has to bring, looked at before anybody reads its body."""

import secrets
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from fastapi import HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from .forms import respond
from .settings import Settings, find_settings

Credentials: TypeAlias = HTTPAuthorizationCredentials | None
Check: TypeAlias = Callable[[Settings, Credentials], Awaitable[None]]

_bearer = HTTPBearer(auto_error=False)


def is_token(credentials: Credentials, expected: SecretStr) -> bool:
    """Whether a request has brought the token; how long this takes doesn't tell how much of it."""
    given = "" if credentials is None else credentials.credentials
    # A header is read as latin-1, whatever the client has written.
    return secrets.compare_digest(
        given.encode("latin-1"), expected.get_secret_value().encode("utf-8")
    )


# --8<-- [start:guard]
class Guard:
    """ASGI middleware that asks for a token before anybody reads a body.

    FastAPI reads the body first, and then calls the dependencies of a route. The routes have the
    same check as a dependency: they are safe wherever the application is mounted.
    """

    def __init__(self, app: ASGIApp, *, guards: Callable[[Scope], bool], check: Check) -> None:
        self.app = app
        self._guards = guards
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._guards(scope):
            settings = await find_settings(scope)
            if settings is not None:
                try:
                    await self._check(settings, await _bearer(Request(scope)))
                except HTTPException as error:
                    await respond(scope, error)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


# --8<-- [end:guard]
