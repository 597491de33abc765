import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fastapi_lifespan_deps import LifespanFastAPI

from .model import ModelDep, load_model


async def refresh_model() -> None:
    try:
        await app.lifespan_container.refresh(load_model)
    except Exception:
        logging.exception("the model was not refreshed")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    tasks = set()

    def refresh() -> None:
        task = loop.create_task(refresh_model())
        tasks.add(task)  # else it might be garbage before it is done
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, refresh)
    yield
    loop.remove_signal_handler(signal.SIGHUP)


app = LifespanFastAPI(lifespan=lifespan)


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)
