"""Event loops that count their steps, keep a time of their own, and fail where nothing goes on."""

import asyncio
import math
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import anyio
import trio.abc

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST_STEPS = 20_000
LATEST = 1000.0  # seconds of a time of our own
PATIENCE = 30.0  # seconds in which a thread must have got on, even on a busy machine


class Hang(Exception):
    """Nothing goes on any more, and something waits."""


class Steps:
    """Counts the steps of an event loop, and does something before one of them.

    Without threads the time goes on when all wait, and then at once. A step is what the loop does
    at a time: of asyncio a callback, a task's step among them, of trio a task's.
    """

    def __init__(self, *, has_threads: bool = False) -> None:
        self.has_threads = has_threads
        self.number = 0
        self._plans: dict[int, list[Callable[[], object]]] = {}
        self._now = 0.0
        self._idle_since = 0.0, -1
        self.tasks: Callable[[], Iterable[object]] = list  # which the loop has

    def plan(self, number: int, function: Callable[[], object]) -> None:
        """Call this before the step of that number."""
        self._plans.setdefault(number, []).append(function)

    def forget(self) -> None:
        """Call nothing any more."""
        self._plans.clear()

    def count(self) -> None:
        self.number += 1
        for function in self._plans.pop(self.number, ()):
            function()

    @property
    def now(self) -> float:
        """The time, for which a loop asks each time around."""
        if self.number > MOST_STEPS:
            raise self._hang("they still go on")
        return time.monotonic() if self.has_threads else self._now

    def idle(self, seconds: float) -> float:
        """Say how long to sleep until something is due, if nothing wakes us before."""
        since, number = self._idle_since
        if number != self.number:
            self._idle_since = since, number = time.monotonic(), self.number
            return 0.0  # something may have come already
        if self.has_threads:
            if time.monotonic() - since > PATIENCE:
                raise self._hang("they wait for ever")
            return min(seconds, PATIENCE)
        self._now += seconds
        if self._now > LATEST:
            raise self._hang("they wait for ever")
        return 0.0

    def _hang(self, what: str) -> Hang:
        tasks = "\n".join(map(str, self.tasks()))
        return Hang(f"After {self.number} steps {what}:\n{tasks}")

    def run(self, function: Callable[[], Awaitable[T]], backend: str, seed: int = 0) -> T:
        """Run to the end; raise `Hang` if there is none."""
        options: dict[str, Any] = {"loop_factory": lambda: Loop(self)}
        if backend == "trio":
            # trio throws dice for what comes first; these fall the same each time
            dice: random.Random = trio._core._run._r
            dice.seed(seed)
            options = {"clock": Clock(self), "instruments": [Counting(self)]}
        return anyio.run(function, backend=backend, backend_options=options)


class Loop(asyncio.SelectorEventLoop):
    """asyncio's."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        steps.tasks = partial(asyncio.all_tasks, self)
        super().__init__(Selector(steps))

    def time(self) -> float:
        return self._steps.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon(self._count, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._count, callback, *args, context=context)

    def _count(self, callback: Callable[..., object], *args: object) -> None:
        self._steps.count()
        callback(*args)


class Selector(selectors.DefaultSelector):
    """What asyncio waits with."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def select(self, timeout: float | None = None) -> Any:
        if timeout != 0:
            timeout = self._steps.idle(math.inf if timeout is None else timeout)
        return super().select(timeout)


class Clock(trio.abc.Clock):
    """trio's."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        return self._steps.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return self._steps.idle(deadline - self._steps.now)


class Counting(trio.abc.Instrument):
    """Counts trio's steps."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._tasks: set[trio.lowlevel.Task] = set()
        steps.tasks = lambda: self._tasks

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps.count()
