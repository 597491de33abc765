"""Who takes part, how each is started, and what it is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.model_serving.client import request
from benchmarks.model_serving.contestants import HOST

SERVERS = __package__


@dataclass(frozen=True)
class Peer:
    """A server, named as its distribution, with the settings that were found to be its best."""

    name: str
    settings: str
    command: Callable[[Path, int, Path], list[str | Path]]
    """Serve on a port of loopback: takes the environment, the port, the model's directory."""
    request: Callable[[str], bytes]
    """Ask for the embedding of a text."""
    vector: Callable[[Any], list[float]]
    """What is answered, as it comes from JSON."""


def _litserve(environment: Path, port: int, model: Path) -> list[str | Path]:
    return [environment / "bin/python", "-m", f"{SERVERS}.litserve", str(port)]


def _bentoml(environment: Path, port: int, model: Path) -> list[str | Path]:
    served = f"{SERVERS}.bentoml:Embeddings"
    options = f"-m bentoml serve {served} --host {HOST} --port {port}"
    return [environment / "bin/python", *options.split()]


def _infinity(environment: Path, port: int, model: Path) -> list[str | Path]:
    # BetterTransformer, which skips padding, excludes torch.compile. What waits is sorted by length
    # only where it is more than a batch: with batches of 32 and 32 clients, it never is.
    options = "--engine torch --device cpu --dtype float32 --batch-size 8 --bettertransformer"
    options += " --no-compile --no-vector-disk-cache --no-lengths-via-tokenize"
    options += f" --served-model-name minilm --log-level warning --host {HOST} --port {port}"
    return [environment / "bin/infinity_emb", "v2", "--model-id", model, *options.split()]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "litserve",
            "max_batch_size=32, batch_timeout=0.01, one worker with all cores",
            _litserve,
            lambda text: request("POST", "/embeddings", {"text": text}),
            lambda answer: list(answer["embedding"]),
        ),
        Peer(
            "bentoml",
            "batchable, max_batch_size=32, one worker with all cores",
            _bentoml,
            lambda text: request("POST", "/embed", {"texts": [text]}),
            lambda answer: list(answer[0]),
        ),
        Peer(
            "infinity-emb",
            "engine torch, BetterTransformer, batches of 8 sorted by length",
            _infinity,
            lambda text: request("POST", "/embeddings", {"model": "minilm", "input": [text]}),
            lambda answer: list(answer["data"][0]["embedding"]),
        ),
    )
}
