"""Who takes part, how each is started, and what it is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.model_serving.client import request
from benchmarks.model_serving.contestants import HOST

SERVERS = __package__


@dataclass(frozen=True)
class Peer:
    """A server, with its settings."""

    name: str
    distribution: str
    """Its file lists what is in the environment."""
    settings: str
    command: Callable[[Path, int, Path], list[str | Path]]
    """Serve on a port of loopback: takes the environment, the port, the model's directory."""
    request: Callable[[str], bytes]
    """Ask for the embedding of a text."""
    vector: Callable[[Any], list[float]]
    """What is answered, as it comes from JSON."""
    variables: Mapping[str, str] = field(default_factory=dict)

    def other(self, what: str, settings: str, **variables: str) -> "Peer":
        """The same, set otherwise."""
        return replace(self, name=f"{self.name}-{what}", settings=settings, variables={**variables})


def _litserve(environment: Path, port: int, model: Path) -> list[str | Path]:
    return [environment / "bin/python", "-m", f"{SERVERS}.litserve", str(port)]


def _bentoml(environment: Path, port: int, model: Path) -> list[str | Path]:
    served = f"{SERVERS}.bentoml:Embeddings"
    options = f"-m bentoml serve {served} --host {HOST} --port {port}"
    return [environment / "bin/python", *options.split()]


def _infinity(environment: Path, port: int, model: Path) -> list[str | Path]:
    options = f"--engine torch --device cpu --dtype float32 --host {HOST} --port {port}"
    options += " --served-model-name minilm --log-level warning --no-vector-disk-cache"
    return [environment / "bin/infinity_emb", "v2", "--model-id", model, *options.split()]


LITSERVE = Peer(
    "litserve",
    "litserve",
    "batches of 32, batch_timeout=0.01, one worker with all cores",
    _litserve,
    lambda text: request("POST", "/embeddings", {"text": text}),
    lambda answer: list(answer["embedding"]),
)
BENTOML = Peer(
    "bentoml",
    "bentoml",
    "batches of 32, one worker with all cores",
    _bentoml,
    lambda text: request("POST", "/embed", {"texts": [text]}),
    lambda answer: list(answer[0]),
)
# BetterTransformer, which leaves the padding out, excludes torch.compile. What waits is sorted by
# length only where it is more than a batch: with batches of 32 and 32 clients, it never is.
INFINITY = Peer(
    "infinity-emb",
    "infinity-emb",
    "engine torch with BetterTransformer, batches of 8 that are sorted by length",
    _infinity,
    lambda text: request("POST", "/embeddings", {"model": "minilm", "input": [text]}),
    lambda answer: list(answer["data"][0]["embedding"]),
    {"INFINITY_BATCH_SIZE": "8", "INFINITY_BETTERTRANSFORMER": "true"},
)
PEERS = {peer.name: peer for peer in (LITSERVE, BENTOML, INFINITY)}

# To see whether the settings above are the best: these are measured when they are asked for.
OTHERS = (
    LITSERVE.other("8", "batches of 8", PEER_MAX_BATCH_SIZE="8"),
    LITSERVE.other("2ms", "batches of 32, batch_timeout=0.002", PEER_BATCH_TIMEOUT="0.002"),
    LITSERVE.other(
        "2x1",
        "batches of 32, fast_queue, two workers with a core each",
        PEER_WORKERS="2",
        PEER_FAST_QUEUE="1",
        OMP_NUM_THREADS="1",
    ),
    BENTOML.other("8", "batches of 8", PEER_MAX_BATCH_SIZE="8"),
    INFINITY.other(
        "32",
        "engine torch with BetterTransformer, batches of 32",
        INFINITY_BATCH_SIZE="32",
        INFINITY_BETTERTRANSFORMER="true",
    ),
    INFINITY.other(
        "plain",
        "engine torch without BetterTransformer, batches of 8 that are sorted by length",
        INFINITY_BATCH_SIZE="8",
        INFINITY_BETTERTRANSFORMER="false",
    ),
    INFINITY.other(
        "compiled",
        "engine torch with torch.compile, batches of 8 that are sorted by length",
        INFINITY_BATCH_SIZE="8",
        INFINITY_BETTERTRANSFORMER="false",
        INFINITY_COMPILE="true",
    ),
)
ALL = {**PEERS, **{peer.name: peer for peer in OTHERS}}
