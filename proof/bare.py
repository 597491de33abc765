"""The same without FastAPI and without the package: what a server does by itself.

Where a server cannot do something, its cell is run again with this application: the same must not
hold then.
It has no values, and so it records those of `application.py` as if they were there.
"""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.lowlevel

from .record import Recorder

DIRECTORY = Path(os.environ["PROOF_DIRECTORY"])
MODEL = os.environ.get("PROOF_MODEL", "")
TICK = 0.02

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

record = Recorder(DIRECTORY / "record")
VALUES = ["engine 1", "model 2", "feed 3", "reader 4"]
ERRORS = {
    "stop fails": "RuntimeError: the model can't be released",
    "stop hangs": "LifespanTimeout: `get_model`",
}
feed: list[str] = []  # why it died


async def wait_for(name: str) -> None:
    while not (DIRECTORY / name).exists():  # noqa: ASYNC110 - another process makes it
        await anyio.sleep(TICK)


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
    else:
        facts = parse_qs(scope["query_string"].decode())
        serve = talk if scope["type"] == "websocket" else answer
        await serve(scope["path"], facts, receive, send)


async def live(receive: Receive, send: Send) -> None:
    await receive()
    record("starting")
    if MODEL == "start waits":
        await wait_for("go")
    for name in VALUES:
        record("enter", name=name, on=[])
    record("log", level="INFO", text="Started 4 lifespan dependencies")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    for name in reversed(VALUES):
        record("leave", name=name)
    record("log", level="INFO", text="Stopped 4 lifespan dependencies")
    error = ERRORS.get(MODEL) or "".join(feed)
    if error:
        await send({"type": "lifespan.shutdown.failed", "message": error})
        raise RuntimeError(error)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(path: str, facts: dict[str, list[str]], receive: Receive, send: Send) -> None:
    status, body = 200, json.dumps({"pid": os.getpid(), "model": "model 2"}).encode()
    if path == "/kill":
        feed.append("RuntimeError: the feed is broken")
        record("died", name="feed 3")
        record("log", level="ERROR", text=feed[0])
    elif path == "/reader":
        status = 500 if feed else 200
    elif path == "/pid":
        pass
    elif path == "/stream":
        await stream(facts, send)
        return
    else:
        record("begin", id=facts["id"][0], kind="request", model="model 2")
        try:
            await (wait_for("release") if path == "/wait" else anyio.lowlevel.checkpoint())
        finally:
            record("end", id=facts["id"][0], how="complete")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(facts: dict[str, list[str]], send: Send) -> None:
    record("begin", id=facts["id"][0], kind="stream", model="model 2")
    lines = int(facts.get("lines", ["0"])[0])
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        number = 0
        while number < lines if lines else not (DIRECTORY / "release").exists():
            body = f"{number}\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            number += 1
            await anyio.sleep(TICK)
        await send({"type": "http.response.body", "body": b"end\n"})
    finally:
        record("end", id=facts["id"][0], how="complete")


async def talk(path: str, facts: dict[str, list[str]], receive: Receive, send: Send) -> None:
    record("begin", id=facts["id"][0], kind="websocket", model="model 2")
    try:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(os.getpid())})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
    finally:
        record("end", id=facts["id"][0], how="complete")
