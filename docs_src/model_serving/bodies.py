"""The bodies of requests, read before a request has a model."""

import math

import anyio
from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .forms import respond
from .settings import find_settings

# No route of these reads one.
WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
DEADLINE = "model_serving.deadline"


class BodyTooLarge(HTTPException):
    def __init__(self, limit: int) -> None:
        super().__init__(413, f"Send at most {limit:,} bytes in a body.")


class UploadTooSlow(HTTPException):
    """The rest may still come: the connection can't be used for another request."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            408,
            f"The body has not come whole within {seconds:g} seconds.",
            {"Connection": "close"},
        )


class HungUp(HTTPException):
    """Nobody reads this; it is counted."""

    def __init__(self) -> None:
        super().__init__(499, "The client has hung up.")


# --8<-- [start:middleware]
class ReadBodies:
    """ASGI middleware that passes a request on when its body is there, and is not too large.

    From the router on, a request holds the model that serves: whoever sends a body slowly, or
    never to its end, would keep a replaced model in memory. Here, it holds its body and no more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        settings = await find_settings(scope)
        if settings is None:  # The application doesn't run: whatever needs a value will say so.
            await self.app(scope, receive, send)
            return
        scope[DEADLINE] = anyio.current_time() + settings.request_timeout
        try:
            with anyio.CancelScope(deadline=scope[DEADLINE]) as in_time:
                body = await read_body(scope, receive, settings.max_body_bytes)
            if in_time.cancelled_caught:
                raise UploadTooSlow(settings.request_timeout)
        except HTTPException as error:
            await respond(scope, error)(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a body, as far as it is within the limit.

    What says that it is larger isn't read at all: a client that sent `Expect: 100-continue` never
    sends it. What doesn't say how large it is, is counted while it comes.
    """
    promised = Headers(scope=scope).get("content-length", "")
    # Python turns no more than 4,300 digits into a number.
    if promised.isdecimal() and int(promised[:4_300]) > limit:
        raise BodyTooLarge(limit)
    body, is_whole = bytearray(), False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
        if len(body) > limit:
            raise BodyTooLarge(limit)
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the body in one piece, then what the server says: that the client has hung up."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


# --8<-- [end:middleware]


def deadline_of(request: Request) -> float:
    """When a request has to be answered, by the clock of the event loop."""
    return float(request.scope.get(DEADLINE, math.inf))
