"""Log lines: as text or as JSON, each with the id of the request that it belongs to."""

import logging
import re
from uuid import uuid4

from asgi_correlation_id import correlation_id
from fastapi import HTTPException, Request, Response
from pydantic import ValidationError
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from .forms import respond
from .settings import LogSettings

HEADER = "X-Request-ID"
# What proxies and tracers write. No space, bracket or quote: what stands after the id in a line of
# text is not the client's. deploy/nginx.conf has the same.
REQUEST_ID = "[A-Za-z0-9._~:/|+=;,@-]{1,128}"
TEXT = "%(asctime)s [%(process)d] %(levelname)s %(name)s%(of_request)s: %(message)s"


# --8<-- [start:logs]
class AddRequestId(logging.Filter):
    """Tells a handler which request a line belongs to: what is logged in its task, or thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id = correlation_id.get()
        record.of_request = "" if request_id is None else f" [{request_id}]"
        return True


def make_formatter() -> logging.Formatter:
    """Make the formatter that the settings ask for."""
    try:
        settings = LogSettings()
    except ValidationError as error:
        # Of any other error, gunicorn would tell no more than the name of the formatter.
        raise SystemExit(str(error)) from None
    if settings.log_format == "text":
        return logging.Formatter(TEXT)
    return JsonFormatter(
        ("levelname", "name", "message", "process"),
        style=",",
        rename_fields={"levelname": "level", "name": "logger"},
        # What uvicorn and the text have for a terminal.
        reserved_attrs=[*RESERVED_ATTRS, "color_message", "of_request"],
        timestamp=True,
    )


# --8<-- [end:logs]


def take_id(given: str) -> str:
    """The id that a client gives, if it may stand in a header and in the log; else a new one."""
    return given if re.fullmatch(REQUEST_ID, given) else uuid4().hex


async def answer_failed(request: Request, error: Exception) -> Response:
    """500, in the form that the client reads. No middleware sees it: so the id is told here."""
    headers = {HEADER: correlation_id.get() or ""}
    return respond(request.scope, HTTPException(500, "Internal Server Error", headers))
