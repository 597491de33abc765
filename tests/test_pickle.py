"""An application can be pickled by value before it starts: Ray Serve runs such a copy."""

import copyreg
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from starlette.datastructures import State

from fastapi_lifespan_deps import Depends, LifespanFastAPI, enable_lifespan_scope
from tests.clients import client_of

cloudpickle = pytest.importorskip("cloudpickle")

events: list[str] = []


async def get_engine() -> AsyncIterator[str]:
    events.append("start engine")
    yield "engine"
    events.append("stop engine")


Engine = Annotated[str, Depends(get_engine, scope="lifespan")]


def get_model(app: FastAPI, engine: Engine) -> Iterator[list[str]]:
    events.append("start model")
    yield [engine, app.title]
    events.append("stop model")


Model = Annotated[list[str], Depends(get_model, scope="lifespan")]
OwnModel = Annotated[list[str], Depends(get_model, scope="lifespan", use_cache=False)]


def declare(app: FastAPI) -> FastAPI:
    async def get_both(engine: Engine, model: Model) -> list[str]:
        return [engine, *model]

    @app.get("/own", dependencies=[Depends(get_engine, scope="lifespan")])
    async def read_own(model: Model, own: OwnModel) -> bool:
        return model is not own

    @app.get("/both")
    def read_both(both: Annotated[list[str], Depends(get_both)]) -> list[str]:
        return both

    return app


async def run_once(app: Any) -> None:
    async with app.router.lifespan_context(app):
        pass


async def use(app: Any) -> list[Any]:
    async with app.router.lifespan_context(app), client_of(app) as client:
        return [(await client.get(path)).json() for path in ("/own", "/both", "/late")]


@pytest.fixture
def by_value(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pickle as from a script, of which nothing can be imported where the copy runs."""
    # Ray registers this too: Starlette's State recurses without end when it is unpickled.
    monkeypatch.setitem(copyreg.dispatch_table, State, lambda state: (State, (state._state,)))
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


# Not with an included router: FastAPI 0.165 gives it a lock, so that can't be pickled at all.
@pytest.mark.parametrize(
    "app",
    [
        declare(LifespanFastAPI(title="ours")),
        enable_lifespan_scope(declare(FastAPI(title="ours"))),
    ],
    ids=["LifespanFastAPI", "enable_lifespan_scope"],
)
@pytest.mark.usefixtures("by_value")
def test_a_copy_of_an_app_runs_in_another_thread(app: FastAPI) -> None:
    router = APIRouter()

    @router.get("/late")
    async def read_late(model: Model) -> list[str]:
        return model

    copy, router_copy = pickle.loads(cloudpickle.dumps((app, router)))
    copy.include_router(router_copy)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(anyio.run, use, copy).result()
    assert found == [True, ["engine", "engine", "ours"], ["engine", "ours"]]
    assert events == []  # of this module: the copy has its own


@pytest.mark.usefixtures("by_value")
def test_an_app_that_has_run_can_be_copied_too() -> None:
    app = declare(LifespanFastAPI(title="ours", openapi_url=None))
    anyio.run(run_once, app)
    events.clear()
    copy = pickle.loads(cloudpickle.dumps(app))
    copy.get("/late")(lambda: "late")
    assert anyio.run(use, copy) == [True, ["engine", "engine", "ours"], "late"]
    assert events == []
