"""Timeline: what has become of each dependency of a run, and since when."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi_lifespan_deps.events import LifespanEvent
from fastapi_lifespan_deps.exceptions import location_of, name_of
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.see.watch import DOING, Watch

# What has become of a row, by the event that tells it, and what it was before.
_BEFORE = {
    "started": "starting",
    "start_failed": "starting",
    "stopping": "started",
    "stopped": "stopping",
    "stop_failed": "stopping",
    "died": "started",
}


@dataclass(slots=True, eq=False)
class Row:
    """A dependency that has begun to start."""

    provider: Callable[..., Any]
    name: str
    where: str
    state: str = "starting"
    since: float = field(default_factory=time.monotonic)  # when it began to start, or to stop
    start_seconds: float | None = None
    error: BaseException | None = None

    @property
    def seconds(self) -> float:
        """How long the start took, or has lasted so far."""
        return self.lasting if self.start_seconds is None else self.start_seconds

    @property
    def lasting(self) -> float:
        """How long it has been starting, or stopping."""
        return time.monotonic() - self.since

    @property
    def is_moving(self) -> bool:
        return self.state in ("starting", "stopping")


class Timeline:
    """The rows of a run, in the order of their starts."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._watch: Watch | None = None

    def attend(self, run: Run) -> None:
        """See what a run is doing."""
        self._watch = run.live.supervisor.watch

    def hear(self, event: LifespanEvent) -> Row | None:
        """Note an event, and return the row that it is about."""
        if event.provider is None:
            return None
        if event.kind == "starting":
            row = Row(event.provider, event.name or "", event.where or "")
            self.rows.append(row)
            return row
        before = _BEFORE.get(event.kind)
        # of several instances of one provider nobody can tell which it is, nor has to
        for row in self.rows:
            if row.provider is event.provider and row.state == before:
                row.state = event.kind
                row.error = event.error
                if event.kind in ("started", "start_failed"):
                    row.start_seconds = event.seconds
                elif event.kind == "stopping":
                    row.since = time.monotonic()
                return row
        return None

    def under_way(self) -> list[tuple[Row, str]]:
        """What starts or stops just now, hooks and lifespan functions too, and what it does."""
        found = []
        for one, step, seconds in [] if self._watch is None else self._watch.under_way():
            name, where = name_of(one.provider), location_of(one.provider)
            row = Row(one.provider, name, where, DOING[step], time.monotonic() - seconds)
            found.append((row, one.position()))
        return found

    def number(self, *states: str) -> int:
        return sum(row.state in states for row in list(self.rows))

    @property
    def started(self) -> int:
        """How many have started, whatever became of them."""
        return len(self.rows) - self.number("starting", "start_failed")
