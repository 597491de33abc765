"""Summary: how long it took to start all, and to stop all, in one line of the log each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

from fastapi_lifespan_deps.events import LifespanEvent, fields, logger
from fastapi_lifespan_deps.exceptions import name_of

# How many are named, at most, and what share of the whole such a one has, at least.
MOST_NAMED = 3
SHARE = 0.1


class Started(Protocol):
    """Something that has started."""

    @property
    def provider(self) -> Callable[..., Any]: ...
    @property
    def start_seconds(self) -> float | None: ...
    @property
    def dependencies(self) -> Sequence[Self]: ...


class Live(Protocol):
    """What runs, as far as this looks at it."""

    @property
    def phase(self) -> Literal["starting", "serving", "stopping"]: ...
    @property
    def instances(self) -> Mapping[Any, Started]: ...


# What is counted in each phase: when the first of these has begun, and the others have ended.
_COUNTED = {"starting": ("starting", "started"), "stopping": ("stopping", "stopped")}


class Summary:
    """A listener of a run."""

    def __init__(self, live: Live, *, is_concurrent: bool) -> None:
        self._live = live
        self._is_concurrent = is_concurrent
        self._first: int | None = None  # when the first began, and the last ended: nanoseconds
        self._last = 0
        self._number = 0

    def __call__(self, event: LifespanEvent) -> None:
        begins, ends = _COUNTED.get(self._live.phase, (None, None))
        if event.kind == begins and self._first is None:
            self._first = event.time_ns
        elif event.kind == ends:
            self._last = event.time_ns
            self._number += 1
        elif event.kind == "up":
            self._say_started([*self._live.instances.values()])
            self._first, self._number = None, 0
        elif event.kind == "down" and self._live.phase == "stopping":
            self._say("Stopped", "")

    def _say_started(self, instances: Sequence[Started]) -> None:
        if self._is_concurrent:
            texts = map(_text, _longest_chain(instances))
            self._say("Started", f", the longest chain: {', '.join(texts)}")
        else:
            self._say("Started", f": {', '.join(_slowest(instances))}")

    def _say(self, verb: str, rest: str) -> None:
        if self._first is None or not self._number:
            return
        seconds = (self._last - self._first) / 1e9
        dependencies = "dependency" if self._number == 1 else "dependencies"
        logger.info(
            "%s %d lifespan %s in %.2f s%s",
            verb,
            self._number,
            dependencies,
            seconds,
            rest,
            extra=fields("up" if verb == "Started" else "down", None, seconds=seconds),
        )


def _seconds(one: Started) -> float:
    return one.start_seconds or 0


def _text(one: Started) -> str:
    return f"`{name_of(one.provider)}` {_seconds(one):.2f} s"


def _slowest(instances: Sequence[Started]) -> list[str]:
    """The slowest by their names, and the rest."""
    order = sorted(instances, key=_seconds, reverse=True)
    total = sum(map(_seconds, order))
    named = [one for one in order[:MOST_NAMED] if _seconds(one) >= SHARE * total]
    others = order[len(named) :]
    if len(others) == 1:
        named, others = order, []
    texts = [_text(one) for one in named]
    if others:
        texts.append(f"{len(others)} others {sum(map(_seconds, others)):.2f} s")
    return texts


def _longest_chain(instances: Iterable[Started]) -> list[Started]:
    """The chain, each dependent on the one before, that took longest; in start order."""
    ends: dict[Started, float] = {}

    def last(some: Iterable[Started]) -> Started | None:
        return max((one for one in some if one in ends), key=ends.__getitem__, default=None)

    for one in instances:
        before = last(one.dependencies)
        ends[one] = _seconds(one) + (0 if before is None else ends[before])
    chain: list[Started] = []
    end = last(ends)
    while end is not None:
        chain.append(end)
        end = last(end.dependencies)
    return chain[::-1]
