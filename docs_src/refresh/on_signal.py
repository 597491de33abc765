import logging
import signal
from collections.abc import AsyncIterator

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .model import ModelDep, load_model


async def watch_signals(app: LifespanFastAPI) -> AsyncIterator[None]:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:

        async def watch() -> None:
            async for _ in signals:
                try:
                    await app.lifespan_container.refresh(load_model)
                except Exception:
                    logging.exception("the model was not refreshed")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()


app = LifespanFastAPI(dependencies=[Depends(watch_signals, scope="lifespan")])


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)
