"""The application that test_servers.py serves. It tells what happens through the pipe $EVENTS."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated
from uuid import uuid4

from fastapi import Request, WebSocket

from fastapi_lifespan_deps import Depends, LifespanFastAPI

app = LifespanFastAPI()


def tell(event: str) -> None:
    with open(os.environ["EVENTS"], "a", buffering=1) as events:
        events.write(f"{os.getpid()} {event}\n")


@dataclass
class Engine:
    is_alive: bool = True


async def get_engine() -> AsyncIterator[Engine]:
    tell("start engine")
    engine = Engine()
    yield engine
    engine.is_alive = False
    tell("stop engine")


@dataclass
class Model:
    engine: Engine
    name: str = field(default_factory=lambda: uuid4().hex)

    def __str__(self) -> str:
        assert self.engine.is_alive
        return f"{os.getpid()} {self.name}"


def get_model(engine: Annotated[Engine, Depends(get_engine, scope="lifespan")]) -> Iterator[Model]:
    if os.environ.get("BROKEN"):
        raise RuntimeError("the model is broken")
    tell("start model")
    model = Model(engine)
    yield model
    tell(f"stop model, its engine is {'alive' if engine.is_alive else 'dead'}")


CurrentModel = Annotated[Model, Depends(get_model, scope="lifespan")]


@app.get("/")
async def read_root(model: CurrentModel) -> str:
    return str(model)


@app.post("/")
async def read_body(request: Request, model: CurrentModel) -> str:
    tell("request begins")
    await request.body()
    return str(model)


@app.websocket("/")
async def talk(websocket: WebSocket, model: CurrentModel) -> None:
    await websocket.accept()
    await websocket.send_text(str(model))
    await websocket.close()
