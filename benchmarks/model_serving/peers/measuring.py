"""The example and its peers in turns, each alone, in rounds."""

import asyncio
import itertools
import math
import random
import statistics
from argparse import Namespace
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from benchmarks.model_serving import texts
from benchmarks.model_serving.client import Burst

from .catalogue import ALL, PEERS, Peer
from .environments import Environment, LeftOut, prepare
from .processes import cpu_seconds, memory, paused
from .servers import Contestant, example, running_peer, vectors, verify

SEED = 4
OURS = "this application"
IDLE_SECONDS = 3

Cell = tuple[str, int]  # texts, clients
Vectors = dict[str, list[list[float]]]
Advance = Callable[[str], None]


async def measure(options: Namespace, settings: dict[str, str], advance: Advance) -> dict[str, Any]:
    """Measure those peers that `options.peers` names, or all; say why the others are left out."""
    about: dict[str, dict[str, Any]] = {OURS: {}}
    left_out: dict[str, str] = {}
    environments: dict[str, Environment] = {}
    for name in options.peers or PEERS:
        advance(f"installing {name}, unless it is there")
        try:
            environments[name] = prepare(ALL[name].distribution)
        except LeftOut as error:
            left_out[name] = str(error)
    if not environments:
        return {"about": {}, "left_out": left_out, "rows": []}

    async with AsyncExitStack() as stack:
        advance("starting")
        contestants = {OURS: await stack.enter_async_context(example(settings))}
        expected = await vectors(contestants[OURS])
        for name, environment in environments.items():
            advance(f"starting {name}")
            try:
                contestants[name], about[name] = await start(
                    ALL[name], environment, expected, stack
                )
            except LeftOut as error:
                left_out[name] = str(error)
        turns = Turns(contestants, left_out, options)
        await turns.warm_up(advance)
        before = {name: cpu_seconds(one.pid) for name, one in contestants.items()}
        await asyncio.sleep(IDLE_SECONDS)
        for name, one in contestants.items():
            about[name]["idle_cpu"] = (cpu_seconds(one.pid) - before[name]) / IDLE_SECONDS
        await turns.take(advance)
        for name, one in contestants.items():
            about[name]["memory"] = memory(one.pid)._asdict()
    return {"about": about, "left_out": left_out, "rows": turns.rows()}


async def start(
    peer: Peer, environment: Environment, expected: Vectors, stack: AsyncExitStack
) -> tuple[Contestant, dict[str, Any]]:
    """Start and verify a peer. What is left out is stopped at once."""
    async with AsyncExitStack() as own:
        found = await own.enter_async_context(running_peer(peer, environment))
        difference = await verify(found, expected)
        stack.push_async_exit(own.pop_all())
    return found, {
        "version": environment.version(peer.distribution),
        "settings": peer.settings,
        "set_up_seconds": environment.seconds,
        "difference": difference,
        "packages": environment.packages,
    }


class Turn(NamedTuple):
    burst: Burst
    cpu_seconds: float
    """Of the server's processes, for a request."""


class Turns:
    """The bursts of all contestants. One that fails is left out from there on."""

    def __init__(
        self, contestants: dict[str, Contestant], left_out: dict[str, str], options: Namespace
    ) -> None:
        self.contestants = contestants
        self.left_out = left_out
        self.options = options
        self.cells: list[Cell] = list(itertools.product(texts.LOADS, options.clients))
        self.counts: dict[Cell, int] = {}
        self.found: dict[Cell, dict[str, list[Turn]]] = {cell: {} for cell in self.cells}

    async def warm_up(self, advance: Advance) -> None:
        """It also tells how many requests make a burst: as many as the example answers in time."""
        for load, clients in self.cells:
            advance("warming up")
            count = self.options.requests or max(20, 4 * clients)
            for name in list(self.contestants):
                await self.burst(name, load, clients, count)
            warm = await self.burst(OURS, load, clients, count)
            assert warm is not None
            wanted = max(count, math.ceil(warm.burst.requests_per_second * self.options.seconds))
            self.counts[load, clients] = self.options.requests or wanted

    async def take(self, advance: Advance) -> None:
        order = random.Random(SEED)
        for _ in range(self.options.rounds):
            for load, clients in order.sample(self.cells, len(self.cells)):
                advance("measuring")
                for name in order.sample(list(self.contestants), len(self.contestants)):
                    turn = await self.burst(name, load, clients, self.counts[load, clients])
                    if turn is not None:
                        self.found[load, clients].setdefault(name, []).append(turn)

    async def burst(self, name: str, load: str, clients: int, count: int) -> Turn | None:
        one = self.contestants[name]
        others = [other.pid for other in self.contestants.values() if other is not one]
        requests = one.requests(load, count)
        try:
            with paused(others):
                before = cpu_seconds(one.pid)
                burst = await one.client.burst(requests, clients)
                return Turn(burst, (cpu_seconds(one.pid) - before) / count)
        except (ExceptionGroup, TimeoutError) as error:
            if name == OURS:
                raise
            cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            self.left_out[name] = f"{clients} clients, {load} texts: {cause!r}"
            del self.contestants[name]
            return None

    def rows(self) -> list[dict[str, Any]]:
        """Medians over the rounds; ratios are within a round."""
        return [
            {
                "texts": load,
                "clients": clients,
                "contestant": name,
                "requests": self.counts[load, clients],
                **{
                    field: statistics.median(getattr(turn.burst, field) for turn in turns)
                    for field in Burst._fields
                },
                "cpu_seconds": statistics.median(turn.cpu_seconds for turn in turns),
                "ours_to_it": statistics.median(
                    own.burst.requests_per_second / turn.burst.requests_per_second
                    for own, turn in zip(found[OURS], turns, strict=True)
                ),
                "rounds": [
                    {**turn.burst._asdict(), "cpu_seconds": turn.cpu_seconds} for turn in turns
                ],
            }
            for (load, clients), found in self.found.items()
            for name, turns in ((name, found[name]) for name in self.contestants)
        ]
