"""Supervise: start the instances of a run in order, stop them in reverse, whatever happens."""

import asyncio
import itertools
from collections import deque
from collections.abc import Collection, Iterable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

from anyio import CancelScope, CapacityLimiter, Event, get_cancelled_exc_class, move_on_after

from fastapi_lifespan_deps.events import Events
from fastapi_lifespan_deps.exceptions import combined, drop_frames, name_of
from fastapi_lifespan_deps.see.spans import Spans
from fastapi_lifespan_deps.see.watch import Watch

from .instance import Instance
from .tasks import GivenUp, Tasks, finished

# How many synchronous dependencies of one run may be starting or stopping at a time.
MAX_THREADS = 8

# How many errors a run keeps for its end, the latest; each was logged when it happened.
MAX_ERRORS = 100


class ApplicationStops(GivenUp):
    """Something was to start when the run had begun to end."""


class Supervisor:
    """Starts the instances of a run, and stops them in reverse, whatever happens."""

    def __init__(self, events: Events, watch: Watch, spans: Spans, *, concurrent: bool) -> None:
        self.events = events
        self.watch = watch
        self.spans = spans
        # What has begun and not ended, in start order, each with its number in that order.
        self.instances: dict[Instance, int] = {}
        self._numbers = itertools.count()
        self.retired: set[Instance] = set()  # those of them that are not needed any more
        # What a failing start gives up: all that is started with it.
        self._starting_with: dict[Instance, list[Instance]] = {}
        self.threads = CapacityLimiter(MAX_THREADS)
        self._concurrent = concurrent
        # What keeps values for those who come; emptied when one of them may be used no more.
        self.kept: MutableMapping[Any, Any] = {}
        self._errors: deque[BaseException] = deque(maxlen=MAX_ERRORS)
        self.tasks = Tasks()
        self.tasks.prepare(spans.forget)
        self._task: object = None
        self.closing = Event()
        self._closed = Event()

    @property
    def is_closing(self) -> bool:
        """Whether the run ends, or the event loop under it."""
        cancelled = isinstance(self._task, asyncio.Task) and self._task.cancelling() > 0
        return cancelled or self.closing.is_set()

    async def start(self, instances: list[Instance], *, all_or_none: bool) -> None:
        """Start instances, given in start order, and wait until each has started or failed.

        With `all_or_none`, the first that fails gives up those that have not started yet.
        """
        self.watch.begin_several()
        try:
            await self._start(instances, all_or_none=all_or_none)
        finally:
            self.watch.end_several()

    async def _start(self, instances: list[Instance], *, all_or_none: bool) -> None:
        for instance in instances:
            if self.is_closing:
                name = name_of(instance.node.provider)
                raise ApplicationStops(f"`{name}` cannot start: the application stops")
            if self._task is None:
                self._task = self.tasks.spawn(
                    self._supervise, self._closed.set, "lifespan dependencies"
                )
            if all_or_none:
                self._starting_with[instance] = instances
            for other in instance.dependencies:
                other.dependents.add(instance)
            self.instances[instance] = next(self._numbers)
            self.tasks.spawn(instance.run, instance.end, name_of(instance.node.provider))
            if not self._concurrent:
                await instance.start_over.wait()
                if all_or_none and not instance.started:
                    return
        for instance in instances:
            await instance.start_over.wait()
        for instance in instances:
            self._starting_with.pop(instance, None)

    def on_top_of(self, instances: Iterable[Instance]) -> list[Instance]:
        """Those of the instances that have not ended, and what depends on them, in start order."""
        found: set[Instance] = set()
        left = list(instances)
        while left:
            instance = left.pop()
            if instance not in found:
                found.add(instance)
                left += instance.dependents
        return self.in_order(found)

    def in_order(self, instances: Iterable[Instance]) -> list[Instance]:
        """Those of the instances that have begun and not ended, in start order."""
        found = [instance for instance in instances if instance in self.instances]
        return sorted(found, key=self.instances.__getitem__)

    def failed_to_start(self, instance: Instance) -> None:
        """Give up what is started with an instance, if one is not wanted without the other."""
        for other in self._starting_with.get(instance, ()):
            other.give_up_start()

    def died(self, instance: Instance) -> None:
        """Tell what depends on an instance, and the run, that it ends by itself."""
        for other in self.on_top_of([instance]):
            other.died_of = other.died_of or instance
        self.kept.clear()
        self.tasks.detach(partial(self._tell_death, instance), "death of a lifespan dependency")

    async def _tell_death(self, instance: Instance) -> None:
        # What it died of is known when it has been left. That should be at once.
        with move_on_after(1) as slow:
            await instance.ended.wait()
        provider = instance.node.provider
        if slow.cancelled_caught:
            self.events.tell("died", provider)
            await instance.ended.wait()
            self._tell_end(instance)
        else:
            self.events.tell("died", provider, error=instance.error)
        self._keep_no_frames(instance)

    def _tell_end(self, instance: Instance) -> None:
        provider, seconds, error = instance.node.provider, instance.seconds, instance.error
        if not instance.started:
            is_raised = instance in self._starting_with or instance.given_up
            if not isinstance(error, Exception) and instance.given_up:
                why = "the application stops" if self.is_closing else "another one has failed"
                error = RuntimeError(f"nobody waits for the start any more: {why}")
            self.events.tell(
                "start_failed", provider, seconds=seconds, error=error, is_raised=is_raised
            )
        elif error is not None:
            self.events.tell(
                "stop_failed", provider, seconds=seconds, error=error, is_raised=self.is_closing
            )
        else:
            self.events.tell("stopped", provider, seconds=seconds)

    def ended(self, instance: Instance) -> None:
        """Note what went wrong at the end of an instance; `close` raises it."""
        if instance.seconds is not None and instance.died_of is not instance:
            self._tell_end(instance)
        del self.instances[instance]
        self.retired.discard(instance)
        self._starting_with.pop(instance, None)
        _leave(instance)
        error = instance.error
        if not instance.started:
            # whoever wanted the start is told; when the run ends, that may be nobody
            error = error if self.is_closing and isinstance(error, Exception) else None
        if error is not None:
            self._errors.append(error)

    def _keep_no_frames(self, instance: Instance) -> None:
        """Let an error that is kept to the end of the run be without frames, which keep values."""
        if instance.started and instance.error is not None and not self.is_closing:
            drop_frames(instance.error)

    def retire(self, instances: Collection[Instance]) -> None:
        """Stop some instances in the background, in reverse; errors are raised at the end."""
        if instances and not self.is_closing:  # else all are being stopped
            in_order = self.in_order(instances)
            self.retired.update(in_order)
            self.tasks.spawn(
                partial(self._stop, in_order), lambda: None, "old lifespan dependencies"
            )

    async def close(self) -> None:
        """Stop everything in reverse, whatever happens to the caller; raise what went wrong."""
        self.closing.set()
        cancelled = None
        waiting = self.tasks.unfinished
        if self._task is not None:
            waiting.append(self._closed)
        for event in waiting:
            try:
                await finished(event)
            except get_cancelled_exc_class() as error:
                cancelled = error
        failure = combined(cancelled, self._errors)
        self._errors.clear()
        if failure is not None:
            try:
                raise failure
            finally:
                # The traceback leads to these frames: they would keep each other, and with them
                # the values that they know of, until the garbage collector comes.
                del failure, cancelled

    async def _supervise(self) -> None:
        try:
            await self.closing.wait()
        finally:  # closing, or cancelled because the event loop is being torn down
            self.closing.set()
            for instance in self.instances:
                if not instance.given_up:
                    self.watch.give_up(instance)
            with CancelScope(shield=True):
                await self._stop(list(self.instances))

    async def _stop(self, instances: list[Instance]) -> None:
        self.watch.begin_several()
        try:
            await self._stop_all(instances[::-1])
        finally:
            self.watch.end_several()

    async def _stop_all(self, order: list[Instance]) -> None:
        if self._concurrent:  # each waits for its dependents by itself
            for instance in order:
                instance.ask_to_stop()
        for instance in order:
            instance.ask_to_stop()
            # asyncio may cancel this task once more; the rest is to be stopped all the same
            with suppress(get_cancelled_exc_class()):
                await finished(instance.ended)
            self._keep_no_frames(instance)


def _leave(instance: Instance) -> None:
    """Note that an instance has ended, and with it maybe the last on top of one that has, too."""
    left = [instance]
    while left:
        one = left.pop()
        if one.ended.is_set() and not one.dependents:
            one.gone.set()
            for other in one.dependencies:
                other.dependents.discard(one)
            left += one.dependencies
