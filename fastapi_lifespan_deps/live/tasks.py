"""Tasks that belong to an event loop, and not to whoever has started them."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from threading import get_ident
from typing import Any, Generic, TypeVar

from anyio import CancelScope, Event, get_cancelled_exc_class

from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.exceptions import LifespanNotRunning

T = TypeVar("T")


class ThisProcess:
    """What tells this process from those that it was forked from, without a system call."""

    def __init__(self) -> None:
        self.renew()
        register = getattr(os, "register_at_fork", lambda **_: None)  # Windows knows no forks
        register(after_in_child=self.renew)

    def renew(self) -> None:
        self.token = object()


this_process = ThisProcess()


class Tasks:
    """The tasks of a run.

    They belong to the event loop, not to the task that started the application: a run may be
    entered in one task and left in another.
    """

    def __init__(self) -> None:
        self.loop = current_loop()
        self.thread = get_ident()
        self.process = this_process.token
        self._spawned: set[asyncio.Task[None]] = set()
        self._detached: set[DetachedTask[Any]] = set()
        # What starts later, for a request, is not that request's.
        self._context = copy_context()

    @property
    def unfinished(self) -> list[Event]:
        """What is set when the detached tasks that there are now have ended."""
        return [task.done for task in self._detached]

    def remember(self, variable: ContextVar[T], value: T) -> None:
        """Set a context variable for all tasks that start from now on."""
        self._context.run(variable.set, value)

    def prepare(self, function: Callable[[], object]) -> None:
        """Change the context of all tasks that start from now on."""
        self._context.run(function)

    def check_loop(self, *, or_none: bool = False) -> None:
        """Raise unless we are in their event loop; or, with `or_none`, in a thread without one."""
        self.check_process()
        loop = current_loop()
        if loop is not self.loop and not (or_none and loop is None):
            raise LifespanNotRunning(
                "it runs in another event loop",
                "Ask in its event loop, and so in its thread: in a coroutine or a callback there. "
                "From the thread of a `def` endpoint, write `anyio.from_thread.run(container."
                "refresh, provider)`; under `container.sync()`, use what that gives.",
            )

    def check_process(self) -> None:
        """Raise in a process that was forked: the event loop did not come along."""
        if self.process is not this_process.token:
            raise LifespanNotRunning(
                "this is another process than that which started it, by a fork",
                "Start the container in each process, after the fork.",
            )

    def detach(
        self, function: Callable[[], Coroutine[Any, Any, T]], name: str, *, tells: bool = False
    ) -> "DetachedTask[T]":
        """Do something in a task of its own, to its end.

        With `tells` it makes known itself what goes wrong; otherwise that is logged where nobody
        waits for it.
        """
        task = DetachedTask(function, name, tells)

        def end() -> None:
            task.done.set()
            self._detached.discard(task)

        self._detached.add(task)
        self.spawn(task.run, end, name)
        return task

    def spawn(
        self,
        function: Callable[[], Coroutine[Any, Any, None]],
        end: Callable[[], None],
        name: str,
        context: Context | None = None,
    ) -> object:
        """Start a task that belongs to the event loop alone; call `end` when it is over."""
        context = self._context.copy() if context is None else context
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():

            async def system_task() -> None:
                try:
                    await function()
                finally:
                    end()

            return trio.lowlevel.spawn_system_task(system_task, name=name, context=context)
        loop = asyncio.get_running_loop()
        task = loop.create_task(function(), name=name, context=context)
        self._spawned.add(task)  # the loop itself would not keep it alive
        # also if it is cancelled before its first step, which no `finally` in it would see
        task.add_done_callback(lambda _: end())
        task.add_done_callback(self._spawned.discard)
        return task


class GivenUp(RuntimeError):
    """Nobody wants any more what was to be done, so it is no failure."""


class DetachedTask(Generic[T]):
    """What is done in a task of its own, to its end, whatever happens to those who wait for it."""

    def __init__(
        self, function: Callable[[], Coroutine[Any, Any, T]], name: str, tells: bool
    ) -> None:
        self.done = Event()
        self._function = function
        self._name = name
        self._tells = tells
        self._waiting = 0
        self._result: T
        self._error: BaseException | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for the result, and is told what goes wrong."""
        return self._waiting > 0

    async def run(self) -> None:
        """The body of the task, which never raises."""
        try:
            self._result = await self._function()
        except get_cancelled_exc_class():
            self._error = RuntimeError("the event loop ends")
            raise
        except BaseException as error:
            self._error = error
            is_told = self._tells or self.is_awaited or isinstance(error, GivenUp)
            if not is_told:  # whoever asked for it has gone
                logger.error("The %s failed", self._name, exc_info=error)

    async def result(self) -> T:
        """Wait for the end. Raise what it raised."""
        self._waiting += 1
        try:
            await self.done.wait()
        finally:
            self._waiting -= 1
        if self._error is not None:
            raise self._error
        return self._result


async def finished(event: Event) -> None:
    """Wait for an event to the end, and only then let a cancellation through."""
    cancelled = None
    with CancelScope(shield=True):
        while not event.is_set():
            try:
                await event.wait()
            except get_cancelled_exc_class() as error:  # asyncio's own, which no shield stops
                cancelled = error
    if cancelled is not None:
        raise cancelled


def current_loop() -> Any:
    """What tells the event loops of a process apart; None where there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        with suppress(KeyError, RuntimeError):
            return sys.modules["trio"].lowlevel.current_trio_token()
        return None


def current_task() -> object:
    """The task that runs in this event loop; None in a callback."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return sys.modules["trio"].lowlevel.current_task()


def call_soon(loop: Any, function: Callable[..., object], *arguments: object) -> None:
    """Call in an event loop, from another thread; nothing happens if the loop has ended."""
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    with suppress(RuntimeError):  # trio's RunFinishedError is one
        schedule(function, *arguments)
