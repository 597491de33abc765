"""Worker: a loop over messages, each handled by one call."""

import asyncio
import inspect
import math
import signal
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable
from typing import Any, Literal, NamedTuple

import anyio
from anyio import (
    CancelScope,
    CapacityLimiter,
    current_effective_deadline,
    get_cancelled_exc_class,
)

from fastapi_lifespan_deps._compat import kind_of
from fastapi_lifespan_deps.declare.options import seconds_given
from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.exceptions import LifespanNotRunning, LifespanTimeout, Step, name_of
from fastapi_lifespan_deps.live.asking import Standing
from fastapi_lifespan_deps.live.tasks import current_task, finished

from .calls import invoking
from .inject import original_of
from .order import bound_arguments, injected_names
from .signals import listening
from .source import Messages, Source, shown
from .stopping import Stop
from .view import View

Handler = Callable[..., Any]
# Of a message and its result, or its error, and of what they declare.
OnDone = Callable[..., Any]
OnError = Callable[..., Any]

SIGNALS = signal.SIGTERM, signal.SIGINT


class WorkerSummary(NamedTuple):
    """What a worker has done with its messages, and what has stopped it."""

    taken: int
    """How many messages came."""

    done: int
    """How many were handled, and acknowledged by `on_done`."""

    failed: int
    """How many raised an error."""

    cancelled: int
    """How many were neither: cut off when the time was up, or never begun."""

    stopped_by: signal.Signals | Literal["its container"] | None
    """The first signal that came, or the end of its container; None if there were no more."""

    def __str__(self) -> str:
        *counts, _ = (f"{value} {name}" for name, value in self._asdict().items())
        by = getattr(self.stopped_by, "name", self.stopped_by)
        by = "no more messages" if by is None else f"stopped by {by}"
        return f"{', '.join(counts)}: {by}"


async def run_worker(
    handler: Handler,
    messages: Messages,
    *,
    container: View,
    concurrency: int = 1,
    on_done: OnDone | None = None,
    on_error: OnError | None = None,
    call_timeout: float | timedelta | None = None,
    grace_period: float | timedelta = 30.0,
    signals: Collection[signal.Signals] = SIGNALS,
) -> WorkerSummary:
    """Handle messages, each by a call of its own, until there are no more or a signal comes.

    Or until its container is being left, or its application stops, which is as a first signal.

    It takes at most `concurrency` messages at a time: none is asked for before there is a place
    for it. At the first error that nothing decides about, it takes no more, lets the running calls
    end, and raises that error.

    The first signal does the same. When it stops, running calls have `grace_period` seconds, then
    they are cancelled, and their dependencies left. What runs in a thread cannot be cancelled, and
    is waited for. The second signal cancels at once, the third takes its default action. Signals
    come only to the main thread. The handlers that were there before are put back; meanwhile those
    of the event loop (`loop.add_signal_handler`) are called, too. In an application that serves,
    signals are left to its server, unless `signals` are given.

    Args:
        handler: a function, injected or not, that takes a message. One that is not `async` is
            called in a worker thread.
        messages: an async iterable, or a function that returns one. A function may declare
            dependencies: those of an async generator function are held until it is closed, at the
            end, after the last call.
        container: the running container, or that of an application. It must know what the handler
            declares: by `inject`, or by `handlers=`.
        concurrency: how many messages are handled at once.
        on_done: called with the message and the result when a call has ended, its clean-up
            included: the place to acknowledge. May be `async`, and declare dependencies. If it
            raises, the worker stops.
        on_error: called with the message and the error of a call. If it returns, the worker goes
            on; if it raises, the worker stops with that. May be as `on_done`. It is not told of
            cancellations.
        call_timeout: seconds, or a `timedelta`, after which a call of an `async` handler is
            cancelled, and fails with `LifespanTimeout`. Waiting for a value that is being refreshed
            does not count.
        grace_period: seconds, or a `timedelta`, that running calls have when the worker stops.
        signals: which stop it; `()` for none.

    Returns:
        A `WorkerSummary`.

    Raises:
        LifespanNotRunning: the container does not run, or in another event loop.
        UninitializedLifespanDependency: the handler declares what was not started.
        Exception: what a call, `on_done`, `on_error` or `messages` has raised.

    Example:
        ```python
        async with container:
            await run_worker(handle, queue, container=container, on_done=acknowledge)
        ```
    """
    at = container._standing
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise ValueError(f"concurrency={concurrency!r}: give how many messages at once, 1 or more")
    limit = None if call_timeout is None else seconds_given("call_timeout", call_timeout)
    stop = Stop(seconds_given("grace_period", grace_period, may_be_0=True))
    loop = _Loop(
        Worker(at, handler, concurrency, limit),
        Source(messages, at),
        None if on_done is None else _Callback(at, on_done, "on_done"),
        None if on_error is None else _Callback(at, on_error, "on_error"),
        stop,
    )
    if signals is SIGNALS and at.run.serves_routes:
        signals = ()
        logger.info("The worker leaves signals to the server of the application")
    with listening(signals, stop.hear), at.run.calls.telling(stop.end):
        return await loop.run(concurrency)


class Worker:
    """How one message is handled."""

    def __init__(
        self, at: Standing, handler: Handler, concurrency: int, call_timeout: float | None
    ) -> None:
        if not callable(handler):
            raise TypeError(f"handler={handler!r}: give a function that takes a message")
        self._handler = handler = original_of(handler)
        self._at = at
        self._call_timeout = call_timeout
        self.name = f"`{name_of(handler)}`"
        kind = kind_of(handler)
        self.is_async = kind.is_async
        # of its own: all the threads of others may be fewer
        self._invoke = invoking(handler, kind, CapacityLimiter(concurrency))
        at.run.calls.check_ready(at, handler)
        _check_takes(handler, ["message"], f"{self.name} cannot handle messages")
        if call_timeout is not None and not self.is_async:
            raise ValueError(
                f"call_timeout={call_timeout!r}: {self.name} is not async, so it runs in a thread, "
                "which cannot be cancelled. Make it async, or give the time limit to what it waits "
                "for."
            )

    @property
    def is_open(self) -> bool:
        """Whether its container is not being left."""
        with suppress(LifespanNotRunning):
            self._at.run.calls.check_open()
            return True
        return False

    async def call(self, message: Any) -> Any:
        """Handle a message, in time; before, wait for the values that are being refreshed."""
        calls, cancelled = self._at.run.calls, None
        await calls.ready(self._at, self._handler)
        seconds = math.inf if self._call_timeout is None else self._call_timeout
        with anyio.move_on_after(seconds):
            try:
                return await calls.call(self._at, self._handler, (message,), {}, self._invoke)
            except get_cancelled_exc_class() as error:
                cancelled = error
                raise
        step = Step("worker", self._handler, "is called with a message")
        timeout = LifespanTimeout(self._handler, "end", seconds, [step], option="call_timeout")
        for note in getattr(cancelled, "__notes__", ()):  # what its clean-up has raised
            timeout.add_note(note)
        raise timeout


class _Callback:
    """A function of the user that is told the end of a call; it may declare dependencies."""

    def __init__(self, at: Standing, function: Callable[..., Any], name: str) -> None:
        if not callable(function):
            raise TypeError(f"{name}={function!r}: give a function")
        self.name = f"`{name}`"
        self._at = at
        self._function = original_of(function)
        self._is_injected = self._function is not function or bool(injected_names(function))
        problem = f"{name}={name_of(function)} cannot be called"
        _check_takes(self._function, ["message", "outcome"], problem)
        if self._is_injected:
            at.run.calls.check_ready(at, self._function)

    async def __call__(self, message: Any, outcome: Any) -> None:
        if self._is_injected:
            await self._at.run.calls.call(self._at, self._function, (message, outcome), {})
            return
        returned = self._function(message, outcome)
        if isawaitable(returned):
            await returned


def _check_takes(function: Callable[..., Any], arguments: list[str], problem: str) -> None:
    try:
        inspect.signature(function)
    except ValueError:
        return  # it tells nothing of its parameters
    try:
        bound_arguments(function, tuple(arguments), {}, injected_names(function))
    except TypeError as error:
        raise TypeError(
            f"{problem}: with {' and '.join(arguments)} by position, Python says: {error}"
        ) from None


async def _told_apart(name: str, awaitable: Awaitable[Any]) -> Any:
    """Await something. A cancellation of others is made an error: nobody would hear of it."""
    cancelled: BaseException
    try:
        return await awaitable
    except get_cancelled_exc_class() as error:
        cancelled = error
    except BaseExceptionGroup as group:
        found, others = group.split(get_cancelled_exc_class())
        if found is None:
            raise
        if others is not None:
            raise others from None
        cancelled = found
        while isinstance(cancelled, BaseExceptionGroup):  # one stands for all
            cancelled = cancelled.exceptions[0]
    if current_effective_deadline() == -math.inf:
        if getattr(cancelled, "__notes__", None):
            logger.error("%s was cancelled, and its clean-up failed", name, exc_info=cancelled)
        raise cancelled
    task = current_task()
    while isinstance(task, asyncio.Task) and task.cancelling():
        task.uncancel()
    raise RuntimeError(f"{name} was cancelled, and not by the worker") from cancelled


class _Loop:
    """The loop: takes messages, and lets as many calls run at once as there are places."""

    def __init__(
        self,
        worker: Worker,
        source: Source,
        on_done: _Callback | None,
        on_error: _Callback | None,
        stop: Stop,
    ) -> None:
        self._worker = worker
        self._source = source
        self._on_done = on_done
        self._on_error = on_error
        self._stop = stop
        self._asking: CancelScope | None = None  # of what the source is asked
        self._calls: dict[CancelScope, Any] = {}  # the message of each
        self._left = anyio.Event()  # nothing runs any more
        self._counts = dict.fromkeys(("taken", "done", "failed", "cancelled"), 0)

    # Run

    async def run(self, concurrency: int) -> WorkerSummary:
        """Take and handle messages to the end; then raise what has stopped the worker."""
        self._places = anyio.Semaphore(concurrency)
        self._idle = anyio.Event()
        try:
            async with anyio.create_task_group() as source:
                source.start_soon(self._take)
                await self._run_calls()
        except BaseException:
            if self._stop.error is not None:
                logger.error("The worker was cancelled after this error", exc_info=self._stop.error)
            raise
        self._stop.check()
        return WorkerSummary(**self._counts, stopped_by=next(iter(self._stop.heard), None))

    async def _run_calls(self) -> None:
        limit = CancelScope()
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._limit, limit)
                try:
                    await self._stop.over.wait()
                finally:
                    self._stop.over.set()  # cancelled: a message that comes now is too late
                while self._calls:
                    self._idle = anyio.Event()
                    await self._idle.wait()
                limit.cancel()
        finally:
            for message in self._calls.values():  # asyncio's own cancellation: they never began
                self._name(message)
            # Only now: what was taken may need what the source holds, to be acknowledged.
            self._left.set()
            if self._asking is not None:
                self._asking.cancel()

    async def _limit(self, limit: CancelScope) -> None:
        """Cancel the calls that run when the grace period is over."""
        with limit:
            await self._stop.is_limited.wait()
            with anyio.move_on_after(self._stop.grace_period):
                await self._stop.hurry.wait()
            for scope in self._calls:
                scope.cancel()
            if self._calls and not self._worker.is_async:
                logger.warning(
                    "The worker waits for %s in threads, which cannot be cancelled: %s",
                    self._worker.name,
                    ", ".join(map(shown, self._calls.values())),
                )

    # Take

    async def _take(self) -> None:
        # One scope from beginning to end: the source may open others, and scopes must nest.
        with CancelScope() as scope:
            try:
                await _told_apart("the source of messages", self._take_all(scope))
            except get_cancelled_exc_class():
                if not scope.cancel_called:
                    raise
            except BaseException as error:
                self._stop.fail(error)
            finally:
                self._stop.over.set()
                await self._close(scope)

    async def _take_all(self, scope: CancelScope) -> None:
        self._asking = scope
        messages = await self._source.open()
        self._asking = None
        while True:
            await self._places.acquire()
            if self._stop.over.is_set():
                return
            self._asking = scope
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            finally:
                self._asking = None
            if self._stop.over.is_set():
                return  # it came too late, and was not taken
            self._counts["taken"] += 1
            self._calls[call := CancelScope()] = message
            self._tasks.start_soon(self._handle, call, message)
            del message, call

    async def _close(self, scope: CancelScope) -> None:
        """Close the source when all calls have ended."""
        # If it was cancelled, the source was asked for a message, and has no scope of its own open.
        closing = CancelScope() if scope.cancel_called else scope
        closing.shield = True
        if closing is not scope:
            with closing:
                return await self._close_within(closing)
        await self._close_within(closing)

    async def _close_within(self, closing: CancelScope) -> None:
        try:
            await finished(self._left)  # also if what the source holds was cancelled
        finally:
            if self._stop.is_limited.is_set():
                closing.deadline = anyio.current_time() + self._stop.grace_period
            await self._closed()

    async def _closed(self) -> None:
        try:
            await _told_apart("the source of messages", self._source.close())
        except get_cancelled_exc_class():
            logger.warning("The source of messages did not close within the grace period")
            raise
        except BaseException as error:
            self._stop.fail(error)

    # Handle

    async def _handle(self, call: CancelScope, message: Any) -> None:
        is_settled = False
        try:
            with call:
                is_settled = await self._settle(message)
        finally:
            del self._calls[call]
            self._places.release()
            self._idle.set()
            if not is_settled:
                self._name(message)

    def _name(self, message: Any) -> None:
        self._counts["cancelled"] += 1
        logger.warning("A message was neither done nor failed: %s", shown(message))

    async def _settle(self, message: Any) -> bool:
        """Handle a message; return whether it is done, or has failed."""
        try:
            result = await _told_apart(self._worker.name, self._worker.call(message))
        except get_cancelled_exc_class():
            raise
        except BaseException as error:
            if isinstance(error, LifespanNotRunning) and not self._worker.is_open:
                self._stop.fail(error)  # the message is not to blame
                return False
            await self._decide(message, error)
            self._counts["failed"] += 1
            return True
        if self._on_done is not None:
            try:
                await _told_apart(self._on_done.name, self._on_done(message, result))
            except get_cancelled_exc_class():
                raise
            except BaseException as error:
                self._stop.fail(error)
                return False
        self._counts["done"] += 1
        return True

    async def _decide(self, message: Any, error: BaseException) -> None:
        """Let `on_error` decide; without it, stop."""
        if self._on_error is None or not isinstance(error, Exception):
            return self._stop.fail(error)
        try:
            await _told_apart(self._on_error.name, self._on_error(message, error))
        except get_cancelled_exc_class():
            logger.error("Nobody has decided about this error", exc_info=error)
            raise
        except BaseException as raised:
            self._stop.fail(raised)
