"""In which form an error is answered: FastAPI's, or OpenAI's below `/v1`."""

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Scope

PREFIX = "/v1"


class Refused(HTTPException):
    """An error that also names the parameter at fault, and has a code for programs."""

    def __init__(
        self,
        status_code: int,
        detail: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.param = param
        self.code = code


def speaks_openai(scope: Scope) -> bool:
    """Whether a request is for what OpenAI's clients use, wherever the application is mounted."""
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return f"{path}/".startswith(f"{PREFIX}/")


def respond(scope: Scope, error: StarletteHTTPException) -> JSONResponse:
    """The answer to what a route raises, or what is raised around it."""
    content: dict[str, Any] = {"detail": error.detail}
    if speaks_openai(scope):
        content = {
            "error": {
                "message": error.detail,
                "type": "server_error" if error.status_code >= 500 else "invalid_request_error",
                "param": getattr(error, "param", None),
                "code": getattr(error, "code", None),
            }
        }
    return JSONResponse(content, error.status_code, error.headers)
