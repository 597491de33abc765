"""Start and stop: one live value, and the one task that owns it from entry to exit."""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from contextvars import copy_context
from functools import partial
from inspect import isasyncgenfunction, iscoroutine, iscoroutinefunction, isgeneratorfunction
from typing import Any

from anyio import (
    CancelScope,
    CapacityLimiter,
    Event,
    from_thread,
    get_cancelled_exc_class,
    to_thread,
)

from .exceptions import name_of, together, where
from .plan import Node
from .signature import underlying

logger = logging.getLogger("fastapi_lifespan_deps")

# How many synchronous dependencies of one run may be starting or stopping at a time.
MAX_THREADS = 8


class Instance:
    """One live value. Its task enters the provider, waits to be stopped, and leaves it.

    The task never raises: what goes wrong is kept in `error`.
    """

    def __init__(
        self, node: Node, dependencies: list["Instance"], supervisor: "Supervisor"
    ) -> None:
        self.node = node
        self.dependencies = dependencies
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = False
        # What ended by itself: this instance, or one that it depends on.
        self.casualty: Instance | None = None
        self.inherit_casualty()
        self.settled = Event()  # started, or failed to
        self.ended = Event()
        self._stop = Event()
        self._supervisor = supervisor
        # Both are opened before the provider is entered and closed after it was left: a
        # provider may open scopes of its own, and scopes must nest.
        self._starting = CancelScope()  # cancelled to give up a start; no effect afterwards
        self._living = CancelScope()  # shields what started from every cancellation around it

    @property
    def is_alive(self) -> bool:
        """Whether the value may be used."""
        return self.started and not self._stop.is_set() and not self.ended.is_set()

    async def run(self, context: AbstractAsyncContextManager[Any]) -> None:
        """Own the value from entry to exit; the body of the instance's task."""
        name = name_of(self.node.provider)
        try:
            logger.debug("Starting `%s`", name)
            with self._starting, self._living:
                async with context as self.value:
                    self._living.shield = True
                    self.started = True
                    self.settled.set()
                    logger.debug("Started `%s`", name)
                    try:
                        await self._until_stopped()
                    finally:
                        self.value = None
                    logger.debug("Stopping `%s`", name)
            logger.debug("Stopped `%s`", name)
        except BaseException as error:
            step = "start" if not self.started else "stop" if self._stop.is_set() else "serve"
            error.add_note(f"`{name}` ({where(self.node.provider)}) failed to {step}")
            self.error = error
        finally:
            self.end()

    async def _until_stopped(self) -> None:
        try:
            await self._stop.wait()
        except get_cancelled_exc_class():
            # Nothing around the provider gets through the shield, so what was cancelled is the
            # provider itself: its task group failed, its time was up. The value is dead, and
            # leaving raises why. Or asyncio ends and cancels every task: stay till it's our turn.
            if not self._supervisor.is_closing:
                raise
            with suppress(get_cancelled_exc_class()):
                await finished(self._stop)

    def end(self) -> None:
        """Note that the task is over. It may have been cancelled before it began."""
        if self.ended.is_set():
            return
        self.settled.set()
        self.ended.set()
        if self.started and not self._stop.is_set():
            self.casualty = self
            self._supervisor.crashed(self)

    def inherit_casualty(self) -> None:
        """Be a casualty if something that it depends on is one."""
        for other in self.dependencies:
            self.casualty = self.casualty or other.casualty

    def give_up_start(self) -> None:
        """Cancel the start. If it got as far as its value, it counts as started nevertheless."""
        self._starting.cancel()

    async def stop(self) -> None:
        """Let the code after `yield` run, to its end; what it raises is kept in `error`."""
        if not self.settled.is_set():
            self.give_up_start()
        self._stop.set()
        await finished(self.ended)


class Supervisor:
    """Starts the instances of a run, and stops them in reverse, whatever happens.

    Its task, like theirs, belongs to the event loop, not to the task that started the
    application: a run may be entered in one task and left in another.
    """

    def __init__(self, on_crash: Callable[[Instance], None]) -> None:
        self._on_crash = on_crash
        self._instances: list[Instance] = []  # in start order, until they have ended
        self._errors: list[BaseException] = []
        self._task: object = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = Event()
        self._closed = Event()
        self._threads = CapacityLimiter(MAX_THREADS)
        # What starts later, for a request, is not that request's.
        self._context = copy_context()

    @property
    def is_closing(self) -> bool:
        """Whether the run ends, or the event loop under it."""
        cancelled = isinstance(self._task, asyncio.Task) and self._task.cancelling() > 0
        return cancelled or self._closing.is_set()

    async def start(self, instance: Instance, arguments: dict[str, Any]) -> None:
        """Start an instance and wait for its value. Raise what the provider raises.

        Cancelled, it returns when the start is over; `instance.started` tells how it ended.
        """
        provider = instance.node.provider
        if self.is_closing:
            raise RuntimeError(f"`{name_of(provider)}` cannot start: the application stops")
        if self._task is None:
            self._task = self.spawn(self._supervise, self._closed.set, "lifespan dependencies")
        self._instances.append(instance)
        context = entered(partial(provider, **arguments), underlying(provider), self._threads)
        self.spawn(partial(instance.run, context), instance.end, name_of(provider))
        cancelled: BaseException | None = None
        try:
            await instance.settled.wait()
        except BaseException as error:
            cancelled = error
            instance.give_up_start()
            with suppress(get_cancelled_exc_class()):
                await finished(instance.settled)
        if not instance.started and instance in self._instances:
            self._instances.remove(instance)
        if cancelled is not None:
            if isinstance(instance.error, Exception):
                together(cancelled, [instance.error])
            raise cancelled
        if not instance.started:
            failure, instance.error = instance.error, None
            if failure is None or isinstance(failure, get_cancelled_exc_class()):
                # Nobody has cancelled the caller: it must not look so.
                failure = RuntimeError(f"`{name_of(provider)}` was cancelled while it started")
            try:
                raise failure
            finally:
                # The traceback leads to these frames: they would keep each other, and with them
                # the values that they know of, until the garbage collector comes.
                del failure

    def crashed(self, instance: Instance) -> None:
        """Tell those that depend on an instance, and the run, that it ended by itself."""
        for other in self._instances:  # in start order: what it depends on has been told
            other.inherit_casualty()
        self._on_crash(instance)

    def retire(self, instances: list[Instance]) -> None:
        """Stop some instances in the background, in reverse; errors are raised at the end."""
        if not self.is_closing:  # else all are being stopped
            self.spawn(partial(self._stop, instances), lambda: None, "old lifespan dependencies")

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
        self._errors = []
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, cancelled  # see `start`

    def spawn(
        self, function: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None], name: str
    ) -> object:
        """Start a task that belongs to the event loop alone; call `end` when it is over."""
        context = self._context.copy()
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
        self._tasks.add(task)  # the loop itself would not keep it alive
        # also if it is cancelled before its first step, which no `finally` in it would see
        task.add_done_callback(lambda _: end())
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self) -> None:
        try:
            await self._closing.wait()
        finally:  # closing, or cancelled because the event loop is being torn down
            self._closing.set()
            with CancelScope(shield=True):
                await self._stop(list(self._instances))

    async def _stop(self, instances: list[Instance]) -> None:
        for instance in reversed(instances):
            # asyncio may cancel this task once more; the rest is to be stopped all the same
            with suppress(get_cancelled_exc_class()):
                for other in list(self._instances):
                    if instance in other.dependencies:  # being stopped, perhaps by another call
                        await finished(other.ended)
            with suppress(get_cancelled_exc_class()):
                await instance.stop()
            if instance in self._instances:
                self._instances.remove(instance)
                if instance.error is not None:
                    self._errors.append(instance.error)


@asynccontextmanager
async def entered(
    call: Callable[[], Any], kind: Any, threads: CapacityLimiter
) -> AsyncIterator[Any]:
    """Call a provider of any kind; go on after its `yield` at the end.

    `kind` is the function that says how to call it (signature.underlying). No name here holds
    the value, so that the code after `yield` can give its memory back.
    """
    # One context for both ends, so that a context variable that was set can be reset.
    run = partial(_in_thread, threads, copy_context().run)
    async with AsyncExitStack() as stack:
        if isasyncgenfunction(kind):
            yield await stack.enter_async_context(_context(call(), asynccontextmanager))
        elif isgeneratorfunction(kind):
            context = _context(await run(call), contextmanager)
            yield await stack.enter_async_context(_InThread(context, run))
        elif iscoroutinefunction(kind):
            yield await call()
        else:
            value = await run(call)
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


async def _in_thread(threads: CapacityLimiter, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a worker thread, and stay until it is through: what it enters must be left again.

    No cancel scope cuts the waiting short, but asyncio does when the event loop ends.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    began, done = threading.Event(), Event()
    try:
        await to_thread.run_sync(
            _work, began, outcome, done, partial(call, *arguments), limiter=threads
        )
    except get_cancelled_exc_class():
        if not began.is_set():
            raise
        with suppress(get_cancelled_exc_class()):
            await finished(done)
    value, error = outcome.pop()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # see `Supervisor.start`


def _work(
    began: threading.Event,
    outcome: list[tuple[Any, BaseException | None]],
    done: Event,
    call: Callable[[], Any],
) -> None:
    began.set()
    try:
        outcome.append((call(), None))
    except BaseException as error:
        outcome.append((None, error))
    from_thread.run_sync(done.set)


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
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return sys.modules["trio"].lowlevel.current_trio_token()
