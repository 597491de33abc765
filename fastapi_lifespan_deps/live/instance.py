"""Start and stop: one live value, and the one task that owns it."""

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from anyio import CancelScope, CapacityLimiter, Event, current_time, get_cancelled_exc_class

from fastapi_lifespan_deps.absence import ended_by_itself
from fastapi_lifespan_deps.declare.plan import Node
from fastapi_lifespan_deps.declare.provider import check_value, how_to_call
from fastapi_lifespan_deps.events import Events
from fastapi_lifespan_deps.exceptions import (
    LifespanTimeout,
    Step,
    UninitializedLifespanDependency,
    add_note,
    location_of,
    name_of,
)
from fastapi_lifespan_deps.see.spans import Spans
from fastapi_lifespan_deps.see.watch import Watch

from .entering import entered, explanation, position_of
from .tasks import Tasks, finished


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


class Supervision(Protocol):
    """What an instance needs of its supervisor, who is further down the data flow."""

    events: Events
    spans: Spans
    watch: Watch
    tasks: Tasks
    threads: CapacityLimiter
    retired: "set[Instance]"
    kept: MutableMapping[Any, Any]

    @property
    def is_closing(self) -> bool: ...
    def failed_to_start(self, instance: "Instance", /) -> None: ...
    def died(self, instance: "Instance", /) -> None: ...
    def ended(self, instance: "Instance", /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Scopes:
    """What cuts off an instance.

    Both are opened before the provider is entered and closed after it was left: a provider may
    open scopes of its own, and scopes must nest.
    """

    start: CancelScope = field(default_factory=CancelScope)  # no effect when it has started
    life: CancelScope = field(default_factory=CancelScope)  # then a shield


class Instance:
    """One live value. Its task waits for what it depends on, enters the provider, waits to be
    stopped, then for what depends on it, and leaves.

    The task never raises: what goes wrong is kept in `error`.
    """

    def __init__(self, recipe: Recipe, supervisor: "Supervision") -> None:
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
        self._context: AbstractAsyncContextManager[Any] | None = None  # while it is entered
        self._scopes = _Scopes()

    @property
    def node(self) -> Node:
        return self.recipe.node

    @property
    def provider(self) -> Callable[..., Any]:
        return self.node.provider

    def position(self) -> str:
        """What the provider does just now, for whoever watches it: see `position_of`."""
        return position_of(self._context, self.provider, self._supervisor.tasks.thread)

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
        span = self._supervisor.spans.of(provider, self)
        try:
            with self._scopes.start, self._scopes.life:
                await self._until_dependencies_started()
                began = self._since = current_time()
                if self.recipe.start_timeout is not None:
                    self._scopes.start.deadline = began + self.recipe.start_timeout
                events.tell("starting", provider)
                span.begin("start")
                self._supervisor.watch.begin(self, "start")
                self._context = self._entered()
                async with self._context as self.value:
                    check_value(provider, self.value)
                    self._scopes.life.shield = True
                    self.start_seconds = current_time() - began
                    self._supervisor.watch.end(self, is_done=True)
                    self.start_over.set()
                    events.tell("started", provider, seconds=self.start_seconds)
                    span.end()
                    try:
                        await self._until_stopped()
                    finally:
                        self.value = None
                        self._supervisor.watch.begin(self, "stop")
                        self._since = current_time()
                        if self.recipe.stop_timeout is not None:
                            self._scopes.life.deadline = self._since + self.recipe.stop_timeout
                        span.begin("stop")
                    events.tell("stopping", provider)
        except _DependencyFailed as error:
            self.error, self.given_up = error.failure, False
        except BaseException as error:
            step = "start" if not self.started else "serve" if self.died_of is self else "stop"
            note = f"`{name_of(provider)}` ({location_of(provider)}) failed to {step}"
            add_note(error, f"{note}. {explanation(error, how_to_call(provider))}".rstrip(". "))
            self.error = error
        finally:
            self._context = None
            self._supervisor.watch.end(self, is_done=self.started and self.error is None)
            self._note_timeout()
            self.end()
            span.end(self.error)

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
        supervisor = self._supervisor
        return entered(call, how_to_call(provider), supervisor.threads, supervisor.spans.carry)

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
            cut_off = self._scopes.start.cancel_called and not self.given_up
            step, seconds = "start", self.recipe.start_timeout
        else:
            cut_off = self._scopes.life.cancel_called
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
            self._scopes.start.cancel()

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
