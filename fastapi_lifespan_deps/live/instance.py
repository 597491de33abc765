"""Start and stop: one live value, and the one task that owns it."""

import asyncio
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import (
    CancelScope,
    CapacityLimiter,
    Event,
    current_time,
    get_cancelled_exc_class,
    move_on_after,
)

from fastapi_lifespan_deps.absence import ended_by_itself
from fastapi_lifespan_deps.declare.plan import Node
from fastapi_lifespan_deps.declare.provider import check_value, how_to_call
from fastapi_lifespan_deps.events import Events
from fastapi_lifespan_deps.exceptions import (
    LifespanTimeout,
    Step,
    UninitializedLifespanDependency,
    add_note,
    combined,
    location_of,
    name_of,
)

from .entering import entered, explanation
from .tasks import Tasks, finished

# How many synchronous dependencies of one run may be starting or stopping at a time.
MAX_THREADS = 8

# How many errors a run keeps for its end, the latest; each was logged when it happened.
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an instance is made of: a node, what its provider takes, and the time that it has.

    `path` is a way to a declaration of it, for messages; durations are in seconds.
    """

    node: Node
    arguments: Mapping[str, Any]
    path: tuple[Step, ...] = ()
    start_timeout: float | None = None
    stop_timeout: float | None = None


class Instance:
    """One live value. Its task waits for what it depends on, enters the provider, waits to be
    stopped, then for what depends on it, and leaves.

    The task never raises: what goes wrong is kept in `error`.
    """

    def __init__(self, recipe: Recipe, supervisor: "Supervisor") -> None:
        self.recipe = recipe
        self.value: Any = None
        self.error: BaseException | None = None
        self.start_seconds: float | None = None  # how long the start took
        self.given_up = False  # nobody waits for the start any more
        # What ended by itself: this instance, or one that it depends on.
        self.died_of: Instance | None = None
        # What has begun, is not gone, and takes this one.
        self.dependents: set[Instance] = set()
        self.start_over = Event()  # started, or failed to
        self.ended = Event()
        self.gone = Event()  # ended, and so has all that depends on it: it may have died first
        self._supervisor = supervisor
        self._stop = Event()
        self._since: float | None = None  # when it began to start, or to stop
        # Both are opened before the provider is entered and closed after it was left: a
        # provider may open scopes of its own, and scopes must nest.
        self._start_scope = CancelScope()  # cancelled to cut off a start; no effect afterwards
        self._life_scope = CancelScope()  # shields what started from every cancellation around it

    @property
    def node(self) -> Node:
        return self.recipe.node

    @property
    def dependencies(self) -> list["Instance"]:
        """What it takes, and so must not end before it."""
        return [other for other in self.recipe.arguments.values() if isinstance(other, Instance)]

    @property
    def started(self) -> bool:
        return self.start_seconds is not None

    @property
    def is_alive(self) -> bool:
        """Whether the value may be used."""
        return self.started and not self.is_stopping and not self.ended.is_set()

    @property
    def is_stopping(self) -> bool:
        """Whether it stops, or is about to: others may be stopped before."""
        return self._stop.is_set() or self in self._supervisor.retired

    async def run(self) -> None:
        """Own the value from entry to exit; the body of the instance's task."""
        provider, events = self.node.provider, self._supervisor.events
        current_instance.set(self)
        try:
            with self._start_scope, self._life_scope:
                await self._until_dependencies_started()
                began = self._since = current_time()
                if self.recipe.start_timeout is not None:
                    self._start_scope.deadline = began + self.recipe.start_timeout
                events.tell("starting", provider)
                async with self._entered() as self.value:
                    check_value(provider, self.value)
                    self._life_scope.shield = True
                    self.start_seconds = current_time() - began
                    self.start_over.set()
                    events.tell("started", provider, seconds=self.start_seconds)
                    try:
                        await self._until_stopped()
                    finally:
                        self.value = None
                        self._since = current_time()
                        if self.recipe.stop_timeout is not None:
                            self._life_scope.deadline = self._since + self.recipe.stop_timeout
                    events.tell("stopping", provider)
        except _DependencyFailed as error:
            self.error, self.given_up = error.failure, False
        except BaseException as error:
            step = "start" if not self.started else "serve" if self.died_of is self else "stop"
            note = f"`{name_of(provider)}` ({location_of(provider)}) failed to {step}"
            add_note(error, f"{note}. {explanation(error, how_to_call(provider))}".rstrip(". "))
            self.error = error
        finally:
            self._note_timeout()
            self.end()

    async def _until_dependencies_started(self) -> None:
        for other in self.dependencies:
            await other.start_over.wait()
            if not other.started:
                raise _DependencyFailed(other.error)
            self.died_of = self.died_of or other.died_of
        if self.died_of is not None:
            raise _DependencyFailed(self.died_of.death())

    def _entered(self) -> AbstractAsyncContextManager[Any]:
        provider = self.node.provider
        arguments = {
            name: other.value if isinstance(other, Instance) else other
            for name, other in self.recipe.arguments.items()
        }
        call = partial(provider, **arguments)
        return entered(call, how_to_call(provider), self._supervisor.threads)

    async def _until_stopped(self) -> None:
        try:
            await self._stop.wait()
        except get_cancelled_exc_class():
            # Nothing around the provider gets through the shield, so what was cancelled is the
            # provider itself: its task group failed, its time was up. The value is dead, and
            # leaving raises why. Or asyncio ends and cancels every task: stay till it's our turn.
            if not self._supervisor.is_closing:
                self._die()
                raise
            with suppress(get_cancelled_exc_class()):
                await finished(self._stop)
        for other in list(self.dependents):
            with suppress(get_cancelled_exc_class()):
                await finished(other.gone)

    def _note_timeout(self) -> None:
        if not self.started:
            cut_off = self._start_scope.cancel_called and not self.given_up
            step, seconds = "start", self.recipe.start_timeout
        else:
            cut_off = self._life_scope.cancel_called
            step, seconds = "stop", self.recipe.stop_timeout
        if cut_off and seconds is not None:
            cause = self.error if isinstance(self.error, Exception) else None
            self.error = LifespanTimeout(self.node.provider, step, seconds, self.recipe.path)
            self.error.__cause__ = cause

    def end(self) -> None:
        """Note that the task is over. It may have been cancelled before it began."""
        if self.ended.is_set():
            return
        self.start_over.set()
        if not self.started and not self.given_up:
            if self.error is None or isinstance(self.error, get_cancelled_exc_class()):
                # Nobody has cancelled whoever waits for it: it must not look so.
                name = name_of(self.node.provider)
                self.error = RuntimeError(f"`{name}` was cancelled while it started")
            self._supervisor.failed_to_start(self)
        self.ended.set()
        if self.started and not self.is_stopping:
            self._die()
        self._supervisor.ended(self)

    @property
    def seconds(self) -> float | None:
        """How long the start has lasted, or the stop; None where neither has begun."""
        return None if self._since is None else current_time() - self._since

    def _die(self) -> None:
        if self.died_of is not self:
            self.died_of = self
            self._supervisor.died(self)

    def death(self) -> UninitializedLifespanDependency:
        """The error of what needs this instance, which ended by itself."""
        return ended_by_itself(self.node.provider, self.error)

    def give_up_start(self) -> None:
        """Cancel the start. If it got as far as its value, it counts as started nevertheless."""
        if not self.start_over.is_set():
            self.given_up = True
            self._start_scope.cancel()

    def ask_to_stop(self) -> None:
        """Let the code after `yield` run, once what depends on it has ended."""
        self.give_up_start()
        if not self._stop.is_set():
            self._stop.set()
            self._supervisor.kept.clear()


# The instance whose provider is being run, also in the tasks that it starts.
current_instance: ContextVar[Instance] = ContextVar("fastapi_lifespan_deps_instance")


class _DependencyFailed(Exception):
    """Something that an instance depends on has not started, for the reason that is given."""

    def __init__(self, failure: BaseException | None) -> None:
        self.failure = failure


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


class ApplicationStops(RuntimeError):
    """Something was to start when the run had begun to end."""


class Supervisor:
    """Starts the instances of a run, and stops them in reverse, whatever happens."""

    def __init__(self, events: Events, *, concurrent: bool) -> None:
        self.events = events
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
        if not slow.cancelled_caught:
            self.events.tell("died", provider, error=instance.error)
            return
        self.events.tell("died", provider)
        await instance.ended.wait()
        self._tell_end(instance)

    def _tell_end(self, instance: Instance) -> None:
        provider, seconds, error = instance.node.provider, instance.seconds, instance.error
        if not instance.started:
            is_raised = instance in self._starting_with or instance.given_up
            if not isinstance(error, Exception) and instance.given_up:
                error = RuntimeError("nobody waits for the start any more: another one has failed")
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
            with CancelScope(shield=True):
                await self._stop(list(self.instances))

    async def _stop(self, instances: list[Instance]) -> None:
        order = instances[::-1]
        if self._concurrent:  # each waits for its dependents by itself
            for instance in order:
                instance.ask_to_stop()
        for instance in order:
            instance.ask_to_stop()
            # asyncio may cancel this task once more; the rest is to be stopped all the same
            with suppress(get_cancelled_exc_class()):
                await finished(instance.ended)
