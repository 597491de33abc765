"""Start and stop: one live value, and the one task that owns it from entry to exit."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from inspect import isasyncgenfunction, iscoroutine, iscoroutinefunction, isgeneratorfunction
from typing import Any

import anyio
import anyio.abc
from anyio import CancelScope, CapacityLimiter, Event, get_cancelled_exc_class, to_thread

from .exceptions import name_of, together
from .plan import Node
from .signature import underlying

# How many synchronous dependencies of one run may be starting or stopping at a time.
MAX_THREADS = 8


@asynccontextmanager
async def entered(
    call: Callable[[], Any], kind: Any, threads: CapacityLimiter
) -> AsyncIterator[Any]:
    """Call a provider of any kind; go on after its `yield` at the end.

    `kind` is the function that says how to call it (signature.underlying). No name here holds
    the value, so that the code after `yield` can give its memory back.
    """
    run = partial(to_thread.run_sync, limiter=threads)
    async with AsyncExitStack() as stack:
        if isasyncgenfunction(kind):
            yield await stack.enter_async_context(_context(call(), asynccontextmanager))
        elif isgeneratorfunction(kind):
            context = _context(await run(call), contextmanager)
            yield await stack.enter_async_context(_InThread(context, run))
        elif iscoroutinefunction(kind):
            yield await call()
        else:
            # in a list: trio lets no coroutine through
            [value] = await run(lambda: [call()])
            # a lambda around an async function, say: a coroutine is of no use to many requests
            yield await value if iscoroutine(value) else value


def _context(result: Any, make: Callable[..., Any]) -> Any:
    """What a generator function returned, as a context manager; a decorated one gives it so."""
    if isinstance(result, AbstractContextManager | AbstractAsyncContextManager):
        return result
    return make(lambda: result)()


class _InThread(AbstractAsyncContextManager[Any]):
    """A context manager that is entered and left in worker threads."""

    def __init__(self, context: AbstractContextManager[Any], run: Callable[..., Any]) -> None:
        self._context = context
        self._run = run

    async def __aenter__(self) -> Any:
        return await self._run(self._context.__enter__)

    async def __aexit__(self, *exc_info: object) -> None:
        await self._run(self._context.__exit__, None, None, None)


class Instance:
    """One live value. Its task enters the provider, waits to be stopped, and leaves it.

    The task never raises: what goes wrong is kept in `error`. So one instance's failure does
    not end the task group in which its siblings live.
    """

    def __init__(self, node: Node, on_crash: Callable[["Instance"], None]) -> None:
        self.node = node
        self._on_crash = on_crash
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = False
        self.settled = Event()  # started, or failed to
        self.ended = Event()
        self._stop = Event()
        # Both are opened before the provider is entered and closed after it was left: a
        # provider may open scopes of its own, and scopes must nest.
        self._starting = CancelScope()  # cancelled to give up a start; no effect afterwards
        self._living = CancelScope()  # shields what started from every cancellation around it

    @property
    def is_alive(self) -> bool:
        """Whether the value may be used."""
        return self.started and not self._stop.is_set() and not self.ended.is_set()

    @property
    def has_crashed(self) -> bool:
        """Whether it ended without being told to."""
        return self.started and not self._stop.is_set() and self.ended.is_set()

    async def run(self, context: AbstractAsyncContextManager[Any]) -> None:
        """Own the value from entry to exit; the body of the instance's task."""
        try:
            with self._starting, self._living:
                async with context as self.value:
                    self._living.shield = True
                    self.started = True
                    self.settled.set()
                    try:
                        await self._until_stopped()
                    finally:
                        self.value = None
        except BaseException as error:
            self.error = error
        finally:
            self.settled.set()
            self.ended.set()
            if self.has_crashed:
                self._on_crash(self)

    async def _until_stopped(self) -> None:
        while not self._stop.is_set():
            try:
                await self._stop.wait()
            except get_cancelled_exc_class():
                # Either the event loop is being torn down and cancels every task: stay, the
                # supervisor stops all in order. Or the provider's own scope was cancelled,
                # because its task group failed: then the value is dead, and leaving raises why.
                if anyio.current_effective_deadline() == -math.inf:
                    raise

    def give_up_start(self) -> None:
        """Cancel the start. If it got as far as its value, it counts as started nevertheless."""
        self._starting.cancel()

    async def stop(self) -> BaseException | None:
        """Let the code after `yield` run; return what it raised."""
        if not self.settled.is_set():
            self.give_up_start()
        self._stop.set()
        await finished(self.ended)
        return self.error


class Supervisor:
    """The task that holds the task group of a run's instances, and stops them in reverse.

    It belongs to the event loop, not to the task that started the application: a run may be
    entered in one task and left in another.
    """

    def __init__(self, on_crash: Callable[[Instance], None]) -> None:
        self._on_crash = on_crash
        self._instances: list[Instance] = []  # in start order, until they have ended
        self._errors: list[BaseException] = []
        self._group: anyio.abc.TaskGroup | None = None
        self._task: object = None
        self._ready = Event()
        self._closing = Event()
        self._closed = Event()
        self._threads = CapacityLimiter(MAX_THREADS)

    async def start(self, node: Node, arguments: dict[str, Any]) -> Instance:
        """Start one node and wait for its value. Raise what the provider raises."""
        if self._closing.is_set():
            raise RuntimeError(f"`{name_of(node.provider)}` cannot start: the application stops")
        if self._task is None:
            self._task = _spawn(self._supervise)
        await self._ready.wait()
        assert self._group is not None
        instance = Instance(node, self._on_crash)
        self._instances.append(instance)
        context = entered(
            partial(node.provider, **arguments), underlying(node.provider), self._threads
        )
        self._group.start_soon(instance.run, context, name=name_of(node.provider))
        try:
            await instance.settled.wait()
        except BaseException:
            instance.give_up_start()
            await finished(instance.settled)
            raise
        finally:
            if not instance.started:
                self._instances.remove(instance)
        if not instance.started:
            raise instance.error or RuntimeError(
                f"`{name_of(node.provider)}` was stopped while it was starting"
            )
        return instance

    def retire(self, instances: list[Instance]) -> None:
        """Stop some instances in the background, in reverse; errors are raised at the end."""
        if self._group is not None and not self._closing.is_set():  # else all are being stopped
            self._group.start_soon(self._stop, instances)

    async def close(self) -> None:
        """Stop everything in reverse, whatever happens to the caller; raise what went wrong."""
        self._closing.set()
        cancelled = None
        if self._task is not None:
            try:
                await finished(self._closed)
            except get_cancelled_exc_class() as error:
                cancelled = error
        failure = together(cancelled, self._errors)
        if failure is not None:
            raise failure

    async def _supervise(self) -> None:
        try:
            async with anyio.create_task_group() as self._group:
                self._ready.set()
                try:
                    await self._closing.wait()
                finally:  # closing, or cancelled because the event loop is being torn down
                    self._closing.set()
                    with CancelScope(shield=True):
                        await self._stop(list(self._instances))
        finally:
            self._closed.set()

    async def _stop(self, instances: list[Instance]) -> None:
        for instance in reversed(instances):
            error = await instance.stop()
            if instance in self._instances:
                self._instances.remove(instance)
                if error is not None:
                    self._errors.append(error)


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


def current_loop() -> object:
    """What tells the event loops of a process apart."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def _spawn(function: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Start a task that belongs to the event loop alone."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.spawn_system_task(function)
    return asyncio.get_running_loop().create_task(function())
