"""Whether something is flat: from the second tenth of a soak on.

What can be counted exactly must be no more at any calm point than at the best one of the second
tenth. In the first, much is made that stays: caches, pools, modules that are imported late. So a
single thread, task or descriptor that is kept, fails. It may be kept to the end of a run only: then
it comes and goes with the runs, of which there are many in a tenth, and the most of them tells
nothing.

Objects, blocks of memory and memory can't be exact: the interpreter and libraries keep some for
themselves, and the package keeps what values have died of to the end of a run. These are judged by
their trend: the median of the slopes between all pairs of calm points (Theil and Sen), which odd
points don't move. It is growth if it is sure, and if it counts: if more pairs of points go up than
would by chance, once in a thousand (Mann and Kendall); and if, from the second tenth to the end, it
makes more than a tolerance. That is above what scatters, and below what a leak makes in half an
hour: in that there are thousands of actions, and 1 % is about 800 objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

EXACT = ("tasks", "threads", "descriptors", "values", "instances", "generations", "runs", "pins")
# By how much of what there was in the second tenth it may grow to the end.
TOLERANCES = {"objects": 0.01, "blocks": 0.01, "memory": 0.03}
SURE = 3.09  # standard deviations of Kendall's sum; by chance once in a thousand
Point = dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """Of one thing that was measured."""

    name: str
    first: float  # the least of the second tenth, or the median
    last: float  # the most afterwards, or the median of the last tenth
    growth: float  # of the trend, to the end
    tolerance: float
    is_flat: bool


def judged(points: Sequence[Point]) -> list[Judgement]:
    """All that was measured, at calm points in order."""
    if len(points) < LEAST:
        raise ValueError(f"{len(points)} calm points tell nothing: at least {LEAST}")
    return [
        *(exact(name, points) for name in EXACT),
        *(trend(name, points, share) for name, share in TOLERANCES.items()),
    ]


LEAST = 10


def tenths(points: Sequence[Point]) -> tuple[Sequence[Point], Sequence[Point]]:
    """The second tenth, and what comes after it."""
    one, two = len(points) // 10, max(2 * len(points) // 10, len(points) // 10 + 1)
    return points[one:two], points[two:]


def exact(name: str, points: Sequence[Point]) -> Judgement:
    second, rest = tenths(points)
    first, last = min(point[name] for point in second), max(point[name] for point in rest)
    return Judgement(name, first, last, max(0, last - first), 0, last <= first)


def trend(name: str, points: Sequence[Point], share: float) -> Judgement:
    second, rest = tenths(points)
    values = [point[name] for point in (*second, *rest)]
    times = [point["time"] for point in (*second, *rest)]
    pairs = list(combinations(zip(times, values, strict=True), 2))
    slope = median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs)
    growth = slope * (times[-1] - times[0])
    first = median(point[name] for point in second)
    last = median(point[name] for point in rest[-len(second) :])
    is_sure = kendall([y for _, y in zip(times, values, strict=True)]) > SURE
    return Judgement(
        name, first, last, growth, share * first, not is_sure or growth <= share * first
    )


def kendall(values: Sequence[float]) -> float:
    """How much more pairs go up than down, in standard deviations."""
    total = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    n = len(values)
    return total / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
