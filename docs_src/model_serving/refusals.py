"""What clients are told when their request can't be done."""

import math
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from fastapi_lifespan_deps import UnavailableLifespanDependency, get_container

from .errors import respond
from .settings import Settings
from .swapping import get_swapper

MAX_PROBLEMS = 100
MAX_NAME = 100  # characters


async def answer_invalid(request: Request, error: Exception) -> Response:
    """422, as FastAPI answers it, without what was sent: it may be huge, or no JSON."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {"type": problem["type"], "loc": list(map(_shown, problem["loc"])), "msg": problem["msg"]}
        | ({"ctx": problem["ctx"]} if "ctx" in problem else {})
        for problem in error.errors()[:MAX_PROBLEMS]
    ]
    return JSONResponse({"detail": jsonable_encoder(problems)}, 422)


def _shown(part: Any) -> Any:
    """A part of a place, which may be the name that a client has given to a field."""
    if not isinstance(part, str):
        return part
    return part[:MAX_NAME].encode(errors="backslashreplace").decode()


# --8<-- [start:unavailable]
async def answer_unavailable(request: Request, error: Exception) -> Response:
    """503 while the model is not there: say whether another one is about to come."""
    assert isinstance(error, UnavailableLifespanDependency)
    container = await get_container(request)
    if container[get_swapper].is_loading:
        seconds: float | None = error.retry_after
        detail = "Another model is being loaded."
    else:
        # Only who swaps models can help; or the timer, if the settings have one.
        seconds = container[Settings].refresh_every
        detail = "No model is loaded: the last one that was asked for could not be loaded."
    headers = None if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    return respond(HTTPException(503, detail, headers))


# --8<-- [end:unavailable]
