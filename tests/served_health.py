"""The application that tests/test_health_routes.py serves, with checks that may hang.

`GET /hang/{name}` lets one hang, `GET /go_on` lets all go on.
"""

import threading
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import anyio.lowlevel

from fastapi_lifespan_deps import Depends, LifespanFastAPI, add_health_routes

hanging: set[str] = set()
go_on = threading.Event()
checks = 0


class Value:
    is_alive = True


async def get_value() -> AsyncIterator[Value]:
    value = Value()
    yield value
    value.is_alive = False
    print("stopped", flush=True)


async def get_other() -> str:
    return "other"


async def look(value: Value) -> None:
    global checks
    checks += 1
    await anyio.lowlevel.checkpoint()
    if "async" in hanging:
        print("hangs", flush=True)
        await anyio.sleep_forever()
    assert value.is_alive


def look_in_thread(value: str) -> None:
    if "sync" in hanging:
        print("hangs", flush=True)
        go_on.wait()


app = LifespanFastAPI()
ValueDep = Annotated[Value, Depends(get_value, scope="lifespan", health=look)]
OtherDep = Annotated[str, Depends(get_other, scope="lifespan", health=look_in_thread)]
add_health_routes(app, ready=[get_value], timeout=0.3, cache=0, details="/healthz")


@app.get("/value")
async def read_value(value: ValueDep, other: OtherDep) -> bool:
    return value.is_alive


@app.get("/hang/{name}")
async def let_hang(name: str) -> None:
    hanging.add(name)


@app.get("/go_on")
async def let_go_on() -> None:
    hanging.clear()
    go_on.set()


@app.get("/checks")
async def count_checks() -> int:
    return checks


@app.get("/refresh")
async def refresh() -> None:
    await app.lifespan_container.refresh(get_value)
