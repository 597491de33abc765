"""Start and stop: one live value, and the one task that owns it."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
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

from .entering import entered
from .exceptions import (
    LifespanTimeout,
    Step,
    UninitializedLifespanDependency,
    name_of,
    together,
    where,
)
from .plan import Node
from .signature import underlying
from .tasks import Tasks, finished, logger

# How many synchronous dependencies of one run may be starting or stopping at a time.
MAX_THREADS = 8

# How many errors a run keeps for its end, the latest; each was logged when it happened.
MAX_ERRORS = 100


class Instance:
    """One live value. Its task waits for what it depends on, enters the provider, waits to be
    stopped, then for what depends on it, and leaves.

    The task never raises: what goes wrong is kept in `error`.
    """

    def __init__(
        self,
        node: Node,
        arguments: dict[str, Any],
        supervisor: "Supervisor",
        path: tuple[Step, ...] = (),
        start_timeout: float | None = None,
        stop_timeout: float | None = None,
    ) -> None:
        self.node = node
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = False
        self.start_seconds = 0.0  # how long that took
        self.given_up = False  # nobody waits for the start any more
        # What ended by itself: this instance, or one that it depends on.
        self.casualty: Instance | None = None
        self.settled = Event()  # started, or failed to
        self.ended = Event()
        self.dependencies = [other for other in arguments.values() if isinstance(other, Instance)]
        # What has begun, and not ended, on top of this one; and those that it is itself on top of.
        self.dependents: set[Instance] = set()
        self._below: set[Instance] = set()
        self.companions: list[Instance] = []  # that are given up if this one fails to start
        self._arguments = arguments
        self._supervisor = supervisor
        self._path = path
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._stop = Event()
        # Both are opened before the provider is entered and closed after it was left: a
        # provider may open scopes of its own, and scopes must nest.
        self._starting = CancelScope()  # cancelled to cut off a start; no effect afterwards
        self._living = CancelScope()  # shields what started from every cancellation around it

    @property
    def is_alive(self) -> bool:
        """Whether the value may be used."""
        return self.started and not self._stop.is_set() and not self.ended.is_set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    async def run(self) -> None:
        """Own the value from entry to exit; the body of the instance's task."""
        provider = self.node.provider
        name = name_of(provider)
        current_instance.set(self)
        try:
            with self._starting, self._living:
                await self._until_dependencies_started()
                began = current_time()
                if self._start_timeout is not None:
                    self._starting.deadline = began + self._start_timeout
                logger.debug("Starting `%s`", name)
                async with self._entered() as self.value:
                    self._living.shield = True
                    self.started = True
                    self.start_seconds = current_time() - began
                    self.settled.set()
                    logger.debug("Started `%s`", name)
                    try:
                        await self._until_stopped()
                    finally:
                        self.value = None
                        if self._stop_timeout is not None:
                            self._living.deadline = current_time() + self._stop_timeout
                    logger.debug("Stopping `%s`", name)
            if self.started:
                logger.debug("Stopped `%s`", name)
        except _DependencyFailed as error:
            self.error, self.given_up = error.failure, False
        except BaseException as error:
            step = "start" if not self.started else "serve" if self.casualty is self else "stop"
            error.add_note(f"`{name}` ({where(provider)}) failed to {step}")
            self.error = error
        finally:
            self._note_timeout()
            self.end()

    async def _until_dependencies_started(self) -> None:
        for other in self.dependencies:
            await other.settled.wait()
            if not other.started:
                raise _DependencyFailed(other.error)
        self.inherit_casualty()
        if self.casualty is not None:
            raise _DependencyFailed(ended_by_itself(self.casualty))

    def _entered(self) -> AbstractAsyncContextManager[Any]:
        provider = self.node.provider
        arguments = {
            name: other.value if isinstance(other, Instance) else other
            for name, other in self._arguments.items()
        }
        call = partial(provider, **arguments)
        return entered(call, underlying(provider), self._supervisor.threads)

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
                await finished(other.ended)

    def _note_timeout(self) -> None:
        if not self.started:
            cut_off = self._starting.cancel_called and not self.given_up
            step, seconds = "start", self._start_timeout
        else:
            cut_off = self._living.cancel_called
            step, seconds = "stop", self._stop_timeout
        if cut_off and seconds is not None:
            cause = self.error if isinstance(self.error, Exception) else None
            self.error = LifespanTimeout(self.node.provider, step, seconds, self._path)
            self.error.__cause__ = cause

    def end(self) -> None:
        """Note that the task is over. It may have been cancelled before it began."""
        if self.ended.is_set():
            return
        self.settled.set()
        if not self.started and not self.given_up:
            if self.error is None or isinstance(self.error, get_cancelled_exc_class()):
                # Nobody has cancelled whoever waits for it: it must not look so.
                name = name_of(self.node.provider)
                self.error = RuntimeError(f"`{name}` was cancelled while it started")
            for other in self.companions:
                other.give_up_start()
        self.companions = []
        self.ended.set()
        for other in self._below:
            other.dependents.discard(self)
            for dependent in self.dependents:  # this one has died before them
                dependent.put_on(other)
        if self.started and not self.is_stopping:
            self._die()
        self._supervisor.ended(self)

    def put_on(self, other: "Instance") -> None:
        """Let another instance not end before this one."""
        other.dependents.add(self)
        self._below.add(other)

    def _die(self) -> None:
        if self.casualty is not self:
            self.casualty = self
            self._supervisor.died(self)

    def inherit_casualty(self) -> None:
        """Be a casualty if something that it depends on is one."""
        for other in self.dependencies:
            self.casualty = self.casualty or other.casualty

    def give_up_start(self) -> None:
        """Cancel the start. If it got as far as its value, it counts as started nevertheless."""
        if not self.settled.is_set():
            self.given_up = True
            self._starting.cancel()

    def ask_to_stop(self) -> None:
        """Let the code after `yield` run, once what depends on it has ended."""
        self.give_up_start()
        if not self.is_stopping:
            self._stop.set()
            self._supervisor.forget_values()


# The instance whose provider is being run, also in the tasks that it starts.
current_instance: ContextVar[Instance] = ContextVar("fastapi_lifespan_deps_instance")


class _DependencyFailed(Exception):
    """Something that an instance depends on has not started, for the reason that is given."""

    def __init__(self, failure: BaseException | None) -> None:
        self.failure = failure


def ended_by_itself(instance: Instance) -> UninitializedLifespanDependency:
    """The error of what needs an instance that died."""
    error = UninitializedLifespanDependency(
        instance.node.provider,
        "it ended by itself while serving",
        "A refresh starts it again. The exception that caused this one, if any, says what "
        "happened.",
    )
    error.__cause__ = instance.error
    return error


class ApplicationStops(RuntimeError):
    """Something was to start when the run had begun to end."""


class Supervisor:
    """Starts the instances of a run, and stops them in reverse, whatever happens."""

    def __init__(self, forget_values: Callable[[], None], *, concurrent: bool) -> None:
        self.instances: list[Instance] = []  # that have begun and not ended, in start order
        self.threads = CapacityLimiter(MAX_THREADS)
        self._concurrent = concurrent
        self.forget_values = forget_values  # called when a value may be used no more
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
                instance.companions = instances
            for other in instance.dependencies:
                instance.put_on(other)
            self.instances.append(instance)
            self.tasks.spawn(instance.run, instance.end, name_of(instance.node.provider))
            if not self._concurrent:
                await instance.settled.wait()
                if all_or_none and not instance.started:
                    return
        for instance in instances:
            await instance.settled.wait()

    def died(self, instance: Instance) -> None:
        """Tell what depends on an instance, and the run, that it ends by itself."""
        for other in self.instances:  # in start order: what it depends on has been told
            other.inherit_casualty()
        self.forget_values()
        self.tasks.detach(partial(self._tell_death, instance), "death of a lifespan dependency")

    async def _tell_death(self, instance: Instance) -> None:
        # What it died of is known when it has been left. That should be at once.
        name = name_of(instance.node.provider)
        with move_on_after(1) as slow:
            await instance.ended.wait()
        logger.error("`%s` ended by itself while serving", name, exc_info=instance.error)
        if slow.cancelled_caught:
            await instance.ended.wait()
            logger.error("`%s` has been cleaned up", name, exc_info=instance.error)

    def ended(self, instance: Instance) -> None:
        """Note what went wrong at the end of an instance; `close` raises it."""
        self.instances.remove(instance)
        name, error = name_of(instance.node.provider), instance.error
        if not instance.started:
            # whoever wanted the start is told; when the run ends, that may be nobody
            error = error if self.is_closing and isinstance(error, Exception) else None
        elif error is not None and instance.casualty is not instance and not self.is_closing:
            logger.error("`%s` failed to stop", name, exc_info=error)
        if error is not None:
            self._errors.append(error)

    def retire(self, instances: list[Instance]) -> None:
        """Stop some instances in the background, in reverse; errors are raised at the end."""
        if instances and not self.is_closing:  # else all are being stopped
            self.tasks.spawn(
                partial(self._stop, instances), lambda: None, "old lifespan dependencies"
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
        failure = together(cancelled, self._errors)
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
