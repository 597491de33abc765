"""LitServe: a process that answers, and one that makes batches and has the model."""

import os
import sys

import litserve
import numpy as np

from .embedder import Embedder


class Embeddings(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.embedder = Embedder()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, x: list[str]) -> np.ndarray:
        return self.embedder.embed(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    # The annotation is what FastAPI serializes it by.
    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    settings = os.environ.get
    api = Embeddings(
        max_batch_size=int(settings("PEER_MAX_BATCH_SIZE", "32")),
        batch_timeout=float(settings("PEER_BATCH_TIMEOUT", "0.01")),
        api_path="/embeddings",
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(settings("PEER_WORKERS", "1")),
        fast_queue="PEER_FAST_QUEUE" in os.environ,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
