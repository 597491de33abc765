import logging
from collections.abc import AsyncIterator

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .model import ModelDep, load_model


async def follow_file(app: LifespanFastAPI) -> AsyncIterator[None]:
    async def look_every_minute() -> None:
        while True:
            await anyio.sleep(60)
            try:
                version = await anyio.Path("model.txt").read_text()
                if version != app.lifespan_container[load_model].version:
                    await app.lifespan_container.refresh(load_model, drain_timeout=600)
            except Exception:
                logging.exception("the model was not refreshed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_every_minute)
        yield
        tasks.cancel_scope.cancel()


app = LifespanFastAPI(dependencies=[Depends(follow_file, scope="lifespan")])


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)
