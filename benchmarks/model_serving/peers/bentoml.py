"""BentoML: one process, with adaptive batches."""

import os

import bentoml
import numpy as np

from .embedder import Embedder


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Embeddings:
    def __init__(self) -> None:
        self.embedder = Embedder()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get("PEER_MAX_BATCH_SIZE", "32")))
    def embed(self, texts: list[str]) -> np.ndarray:
        return self.embedder.embed(texts)
