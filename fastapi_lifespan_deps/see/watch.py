"""Watch: say what starts, or stops, for too long, and at which line.

From a thread of its own: the event loop may be what is blocked.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastapi_lifespan_deps.events import fields, logger
from fastapi_lifespan_deps.exceptions import location_of, name_of

Step = Literal["start", "stop"]
DOING = {"start": "starting", "stop": "stopping"}
DONE = {"start": "started", "stop": "stopped"}


# The seconds after which somebody may take a start for hanging, and give it up.
IMPATIENCE = 1.0


class Watched(Protocol):
    """What can be watched while it starts, and while it stops."""

    @property
    def provider(self) -> Callable[..., Any]: ...

    def position(self) -> str:
        """What it does just now, from any thread: `waits at app/db.py:9`; "" if nobody knows."""
        ...


@dataclass(slots=True)
class Stage:
    """A start or a stop, while it lasts."""

    step: Step
    since: float
    due: float  # when to warn next
    is_slow: bool = False


class Watch:
    """Warns of what takes longer than `slow_after` seconds; again at twice that time, four times, …

    Its thread is there only while something starts or stops.
    """

    def __init__(self, slow_after: float | None) -> None:
        self._slow_after = math.inf if slow_after is None else slow_after
        self._stages: dict[Watched, Stage] = {}
        self._several = 0  # how many wait for several starts or stops: more may come
        self._changed = threading.Condition()
        self._saying = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, one: Watched, step: Step) -> None:
        """Watch a start or a stop from now on."""
        now = time.monotonic()
        with self._changed:
            self._stages[one] = Stage(step, now, now + self._slow_after)
            self._keep_thread()

    def end(self, one: Watched, *, is_done: bool) -> None:
        """Watch it no more: it has started or stopped; or, if it is not done, has failed to."""
        with self._changed:
            stage = self._stages.pop(one, None)
            self._let_thread_go()
        if stage is not None and stage.is_slow:
            seconds = time.monotonic() - stage.since
            with self._saying:  # what is being said of it comes first
                if is_done:
                    done = DONE[stage.step]
                    _say(
                        one,
                        f"`{name_of(one.provider)}` {done} after {seconds:.1f} s",
                        f"{stage.step}_slow_over",
                        seconds=seconds,
                    )

    def give_up(self, one: Watched) -> None:
        """Say of something that still starts that nobody waits for it any more."""
        with self._changed:
            stage = self._stages.get(one)
        if stage is None or stage.step == "stop":
            return
        seconds = time.monotonic() - stage.since
        if stage.is_slow or seconds >= IMPATIENCE:
            text = f"was still starting after {seconds:.1f} s, and is given up"
            _warn(one, "start", text, seconds)

    def begin_several(self) -> None:
        """Keep the thread from now on, for one start or stop after the other."""
        with self._changed:
            self._several += 1
            self._keep_thread()

    def end_several(self) -> None:
        """The end of what `begin_several` has begun."""
        with self._changed:
            self._several -= 1
            self._let_thread_go()

    def under_way(self) -> list[tuple[Watched, Step, float]]:
        """What starts or stops just now, and for how many seconds it has; in any thread."""
        with self._changed:
            stages = [*self._stages.items()]
        now = time.monotonic()
        return [(one, stage.step, now - stage.since) for one, stage in stages]

    def _keep_thread(self) -> None:
        if self._thread is None and self._slow_after < math.inf:
            thread = threading.Thread(target=self._watch, name="slow starts", daemon=True)
            with suppress(RuntimeError):  # there may be no room for one
                thread.start()
            self._thread = thread

    def _let_thread_go(self) -> None:
        if not (self._several or self._stages):
            self._thread = None
            self._changed.notify_all()

    def _watch(self) -> None:
        """The body of the thread."""
        while late := self._wait():
            with self._saying:
                for one, step, seconds in [this for this in late if this[0] in self._stages]:
                    _warn(one, step, f"has been {DOING[step]} for {seconds:g} s", seconds)

    def _wait(self) -> list[tuple[Watched, Step, float]]:
        """Wait until something takes too long, and give it; nothing when there is nothing left."""
        with self._changed:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                late: list[tuple[Watched, Step, float]] = [
                    (one, stage.step, self._warned(stage, now))
                    for one, stage in self._stages.items()
                    if stage.due <= now
                ]
                if late:
                    return late
                # what begins later is not due before that
                dues = [stage.due for stage in self._stages.values()]
                seconds = min([*dues, now + self._slow_after]) - now
                self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
            return []

    def _warned(self, stage: Stage, now: float) -> float:
        """Note a warning; give the time that has passed, `slow_after`, or twice that, and so on."""
        times = max(1.0, (now - stage.since) / self._slow_after)
        seconds: float = self._slow_after * 2.0 ** math.floor(math.log2(times))
        stage.is_slow, stage.due = True, stage.since + 2 * seconds
        return seconds


def _warn(one: Watched, step: Step, text: str, seconds: float) -> None:
    position = one.position()
    name, where = name_of(one.provider), location_of(one.provider)
    at = position and f"; it {position}"
    event = f"{step}_slow"
    _say(one, f"`{name}` ({where}) {text}{at}", event, seconds=seconds, position=position)


def _say(one: Watched, text: str, event: str, **others: object) -> None:
    with suppress(Exception):  # the log may be what raises
        logger.warning("%s", text, extra=fields(event, one.provider, **others))
