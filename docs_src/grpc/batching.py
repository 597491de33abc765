import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
import anyio.to_thread

from fastapi_lifespan_deps import Depends

MAX_BATCH_SIZE = 32


class Model:
    def classify(self, texts: list[str]) -> list[str]:
        return ["invoice" if "total" in text else "letter" for text in texts]


def load_model() -> Iterator[Model]:
    print("model loaded", flush=True)  # takes a minute, and a gigabyte
    yield Model()
    print("model released", flush=True)


ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]


class Batcher:
    """Classifies together what has come while the model was busy."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue()

    async def classify(self, text: str) -> str:
        label: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self._waiting.put((text, label))
        return await label

    async def run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while not self._waiting.empty() and len(batch) < MAX_BATCH_SIZE:
                batch.append(self._waiting.get_nowait())
            try:
                texts = [text for text, _ in batch]
                found = await anyio.to_thread.run_sync(self._model.classify, texts)
            except Exception as error:
                for _, label in batch:
                    if not label.done():  # its call was cancelled
                        label.set_exception(error)
            else:
                for (_, label), value in zip(batch, found, strict=True):
                    if not label.done():
                        label.set_result(value)


async def get_batcher(model: ModelDep) -> AsyncIterator[Batcher]:
    batcher = Batcher(model)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.run)
        yield batcher
        tasks.cancel_scope.cancel()


BatcherDep = Annotated[Batcher, Depends(get_batcher, scope="lifespan")]
