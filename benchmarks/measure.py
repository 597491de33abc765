"""Measure subjects that work in this process, each against its baseline.

Time on a shared machine drifts by more than what is to be measured. So everything is done in
chunks of milliseconds that take turns in random order, and a chunk is compared only with its
baseline's chunks right before and after it. The median of many such ratios hardly moves. Process
CPU time leaves out what other processes take.

Chunks of 1 ms came out 1 % too cheap, since the baseline's chunk before has just filled the caches;
chunks of 4 ms varied twice as much as these, from the hiccups that a chunk has once or twice.
"""

import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CHUNK_SECONDS = 0.008
WARM_UP_REQUESTS = 30

Counter = Callable[[], int]


class Chunk(NamedTuple):
    """What one request took, on the average over a chunk."""

    seconds: float
    instructions: float


@dataclass(eq=False)
class Subject:
    """Something that serves requests, and what it took."""

    serve: Callable[[int], Awaitable[None]]
    baseline: "Subject | None" = None
    visits_per_round: int = 1
    requests: int = 1
    own: list[Chunk] = field(default_factory=list)
    beside: list[Chunk] = field(default_factory=list)

    async def prepare(self) -> None:
        """Find out how many requests make a chunk."""
        await self.serve(WARM_UP_REQUESTS)
        start = time.process_time()
        await self.serve(WARM_UP_REQUESTS)
        seconds = (time.process_time() - start) / WARM_UP_REQUESTS
        self.requests = max(2, round(CHUNK_SECONDS / seconds))

    async def chunk(self, counter: Counter | None) -> Chunk:
        # What the subject before has left in the processor's caches is not this one's fault.
        await self.serve(1 + self.requests // 20)
        counted = counter() if counter else 0
        start = time.process_time()
        await self.serve(self.requests)
        seconds = time.process_time() - start
        counted = counter() - counted if counter else 0
        return Chunk(seconds / self.requests, counted / self.requests)

    def result(self, counter: Counter | None) -> dict[str, Any]:
        """The medians, ready for JSON."""
        ratios = [own.seconds / beside.seconds for own, beside in self._pairs()]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        baseline = statistics.median(chunk.seconds for chunk in self.beside) * 1e6
        result = {
            "visits": len(ratios),
            "ratio": ratio,
            "quartiles": [low, high],
            # twice the standard error of a median
            "margin": 2 * 1.253 * (high - low) / 1.349 / math.sqrt(len(ratios)),
            "us": statistics.median(chunk.seconds for chunk in self.own) * 1e6,
            "baseline_us": baseline,
            # from the ratio, which drift doesn't touch, not as a difference of two medians
            "added_us": (ratio - 1) * baseline,
        }
        if counter:
            result["instructions"] = statistics.median(own.instructions for own in self.own)
            result["added_instructions"] = statistics.median(
                own.instructions - beside.instructions for own, beside in self._pairs()
            )
        return result

    def _pairs(self) -> "zip[tuple[Chunk, Chunk]]":
        return zip(self.own, self.beside, strict=True)


async def measure(
    subjects: Sequence[Subject],
    rounds: int,
    order: random.Random,
    counter: Counter | None,
    advance: Callable[[], None],
) -> None:
    """Visit all subjects in each round; each then has its `result`."""
    visits = [subject for subject in subjects for _ in range(subject.visits_per_round)]
    for _ in range(rounds):
        order.shuffle(visits)
        last: tuple[Subject, Chunk] | None = None
        for subject in visits:
            baseline = subject.baseline
            assert baseline is not None
            if last is not None and last[0] is baseline:
                before = last[1]
            else:
                before = await baseline.chunk(counter)
            own = await subject.chunk(counter)
            after = await baseline.chunk(counter)
            subject.own.append(own)
            subject.beside.append(Chunk(*map(statistics.mean, zip(before, after, strict=True))))
            last = baseline, after
        advance()
