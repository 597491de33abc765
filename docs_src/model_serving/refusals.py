"""What clients are told when their request can't be done."""

import math
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from fastapi_lifespan_deps import UnavailableLifespanDependency, get_container

from .forms import Refused, respond, speaks_openai
from .settings import Settings
from .swapping import get_swapper

MAX_PROBLEMS = 100
MAX_NAME = 100  # characters


async def answer_refused(request: Request, error: Exception) -> Response:
    """What a route raises, in the form that the client reads."""
    assert isinstance(error, StarletteHTTPException)
    return respond(request.scope, error)


async def answer_invalid(request: Request, error: Exception) -> Response:
    """422, as FastAPI answers it, without what was sent: it may be huge, or no JSON.

    400 to the clients of OpenAI, which know no other.
    """
    assert isinstance(error, RequestValidationError)
    problems = [
        {"type": problem["type"], "loc": list(map(_shown, problem["loc"])), "msg": problem["msg"]}
        | ({"ctx": problem["ctx"]} if "ctx" in problem else {})
        for problem in error.errors()[:MAX_PROBLEMS]
    ]
    if speaks_openai(request.scope):
        return respond(request.scope, _in_words(**problems[0]))
    return JSONResponse({"detail": jsonable_encoder(problems)}, 422)


def _in_words(loc: list[Any], msg: str, **_: Any) -> Refused:
    """The first problem is told, as OpenAI does. Its place begins with `body`, and a field."""
    match loc:
        case [_, str(field), *rest]:
            # Between the field and the index stands the kind of input that this was taken for.
            index = "".join(f"[{part}]" for part in rest if isinstance(part, int))
            return Refused(400, f"{field}{index}: {msg}", param=field)
        case _:
            return Refused(400, msg)


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
    return respond(request.scope, HTTPException(503, detail, headers))


# --8<-- [end:unavailable]
