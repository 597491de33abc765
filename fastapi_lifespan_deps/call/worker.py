"""Worker: a loop over messages, each handled by one call."""

import math
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from inspect import isawaitable, isroutine
from reprlib import Repr
from typing import Any, NamedTuple

import anyio
from anyio import CancelScope, CapacityLimiter, get_cancelled_exc_class
from anyio.abc import TaskGroup

from fastapi_lifespan_deps._compat import Kind, kind_of
from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.exceptions import (
    LifespanNotRunning,
    LifespanTimeout,
    Step,
    UnavailableLifespanDependency,
    name_of,
)
from fastapi_lifespan_deps.live.asking import Standing
from fastapi_lifespan_deps.live.entering import in_thread

from .calls import Invoke, invoking, is_cancelled
from .inject import original_of
from .order import bound_arguments, injected_names
from .signals import listening
from .streams import Stream
from .view import View

Handler = Callable[..., Any]
Messages = AsyncIterable[Any] | Callable[..., Any]
OnDone = Callable[[Any, Any], Any]
OnError = Callable[[Any, Exception], Any]

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

    stopped_by: signal.Signals | None
    """The first signal that came, if one came."""

    def __str__(self) -> str:
        *counts, _ = (f"{value} {name}" for name, value in self._asdict().items())
        by = f"stopped by {self.stopped_by.name}" if self.stopped_by else "no more messages"
        return f"{', '.join(counts)}: {by}"


async def run_worker(
    handler: Handler,
    messages: Messages,
    *,
    container: View,
    concurrency: int = 1,
    on_done: OnDone | None = None,
    on_error: OnError | None = None,
    call_timeout: float | None = None,
    grace_period: float = 30.0,
    signals: Collection[signal.Signals] = SIGNALS,
) -> WorkerSummary:
    """Handle messages, each by a call of its own, until there are no more or a signal comes.

    It takes at most `concurrency` messages at a time: none is asked for before there is a place
    for it. At the first error that nothing decides about, it takes no more, lets the running calls
    end, and raises that error.

    The first signal does the same: running calls have `grace_period` seconds, then they are
    cancelled, and their dependencies left. What runs in a thread cannot be cancelled, and is waited
    for. The second signal cancels at once, the third takes its default action. Signals come only to
    the main thread. The handlers that were there before are put back.

    Args:
        handler: a function, injected or not, that takes a message. One that is not `async` is
            called in a worker thread.
        messages: an async iterable, or a function that returns one. An injected async generator
            function may be given as it is: what it declares is held until the worker ends. It is
            closed at the end, after the last call.
        container: the running container, or that of an application. It must know what the handler
            declares: by `inject`, or by `handlers=`.
        concurrency: how many messages are handled at once.
        on_done: called with the message and the result when a call has ended, its clean-up
            included: the place to acknowledge. May be `async`. If it raises, the worker stops.
        on_error: called with the message and the error of a call. If it returns, the worker goes
            on; if it raises, the worker stops with that. May be `async`. It is not told of
            cancellations.
        call_timeout: seconds after which a call of an `async` handler is cancelled, and fails with
            `LifespanTimeout`.
        grace_period: seconds that running calls have when the worker stops.
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
    handler = original_of(handler)
    _check_numbers(concurrency, call_timeout, grace_period)
    worker = Worker(container._standing, handler, concurrency, call_timeout)
    if call_timeout is not None and not worker.is_async:
        raise ValueError(
            f"call_timeout={call_timeout!r}: `{name_of(handler)}` is not async, so it runs in a "
            "thread, which cannot be cancelled. Make it async, or give the time limit to what it "
            "waits for."
        )
    source = _source(messages, container._standing)
    loop = _Loop(worker, source, on_done, on_error, grace_period)
    with listening(signals, loop.hear):
        await loop.run(concurrency)
    return loop.result()


def _check_numbers(concurrency: object, call_timeout: object, grace_period: object) -> None:
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise ValueError(f"concurrency={concurrency!r}: give how many messages at once, 1 or more")
    if call_timeout is not None and not _seconds(call_timeout) > 0:
        raise ValueError(f"call_timeout={call_timeout!r}: give seconds, more than 0, or None")
    if not _seconds(grace_period) >= 0:
        raise ValueError(f"grace_period={grace_period!r}: give seconds, 0 or more")


def _seconds(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else math.nan  # type: ignore[return-value]


class Worker:
    """How one message is handled."""

    def __init__(
        self, at: Standing, handler: Handler, concurrency: int, call_timeout: float | None
    ) -> None:
        self.name = name_of(handler)
        kind = kind_of(handler)
        self.is_async = kind.is_async
        self._at = at
        self._handler = handler
        self._call_timeout = call_timeout
        self._invoke = invoking(handler, kind)
        if not kind.is_async:
            limiter = CapacityLimiter(concurrency)  # all threads of anyio's own may be fewer
            self._invoke = lambda args, kwargs: in_thread(
                lambda: handler(*args, **kwargs), limiter=limiter
            )
        at.run.calls.check_ready(at, handler)
        try:
            bound_arguments(handler, (None,), {}, injected_names(handler))
        except TypeError as error:
            raise TypeError(
                f"`{self.name}` cannot handle messages, each of which is its only argument by "
                f"position: {error}. Let it take the message, and declare the rest."
            ) from None

    def check_open(self) -> None:
        """Raise if the container is being left, and the message not to blame."""
        self._at.run.calls.check_open()

    async def call(self, message: Any) -> Any:
        """Handle a message, in time; wait for a value that is being refreshed."""
        seconds = math.inf if self._call_timeout is None else self._call_timeout
        with anyio.move_on_after(seconds) as scope:
            return await self._called_when_ready(message)
        assert scope.cancelled_caught
        step = Step(self.name, self._handler, "handles messages")
        raise LifespanTimeout(self._handler, "end", seconds, [step], option="call_timeout")

    async def _called_when_ready(self, message: Any) -> Any:
        has_begun = False

        def invoke(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
            nonlocal has_begun
            has_begun = True
            return self._invoke(args, kwargs)

        while True:
            try:
                return await self._called(message, invoke)
            except UnavailableLifespanDependency as error:
                if has_begun or error.__cause__ is not None:  # the refresh has failed
                    raise
            await self._at.run.refresher.over()

    async def _called(self, message: Any, invoke: Invoke) -> Any:
        try:
            return await self._at.run.calls.call(self._at, self._handler, (message,), {}, invoke)
        except get_cancelled_exc_class() as error:
            if is_cancelled():
                raise
            raise _not_by_us(f"`{self.name}`", error) from error


def _not_by_us(name: str, error: BaseException) -> RuntimeError:
    """What is raised for a cancellation of which nobody would hear."""
    found = RuntimeError(f"{name} was cancelled, and not by the worker")
    found.__cause__ = error
    return found


class _Loop:
    """The loop: takes messages, and lets as many calls run at once as there are places."""

    def __init__(
        self,
        worker: Worker,
        source: "_Source",
        on_done: OnDone | None,
        on_error: OnError | None,
        grace_period: float,
    ) -> None:
        self._worker = worker
        self._source = source
        self._on_done = on_done
        self._on_error = on_error
        self._grace_period = grace_period
        self._taking, self._waiting = CancelScope(), CancelScope()
        self._calls: dict[CancelScope, Any] = {}  # the message of each
        self._over = anyio.Event()  # nothing more is taken
        self._error: BaseException | None = None
        self._heard: list[signal.Signals] = []
        self._counts = dict.fromkeys(("taken", "done", "failed", "cancelled"), 0)

    def result(self) -> WorkerSummary:
        """The summary; or raise what has stopped the worker."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # whose frames have us
        return WorkerSummary(**self._counts, stopped_by=next(iter(self._heard), None))

    # Stop

    def hear(self, received: signal.Signals) -> None:
        self._heard.append(received)
        if len(self._heard) == 1:
            logger.info("%s: the worker takes no more messages", received.name)
            self._stop()
        else:
            logger.warning("%s again: running calls are cancelled", received.name)
            self._cancel()

    def _fail(self, error: BaseException) -> None:
        """Stop with an error; the first one is raised, the others are logged."""
        if self._error is None:
            self._error = error
        else:
            logger.error("Another error of the worker, while it stops", exc_info=error)
        self._stop()

    def _stop(self) -> None:
        """Take no more; running calls have the grace period from now on."""
        if self._waiting.deadline == math.inf:
            self._waiting.deadline = anyio.current_time() + self._grace_period
        self._over.set()

    def _cancel(self) -> None:
        self._waiting.cancel()

    @property
    def _is_stopping(self) -> bool:
        return self._over.is_set()

    # Run

    async def run(self, concurrency: int) -> None:
        """Take and handle messages to the end; errors are kept for `result`."""
        self._places = anyio.Semaphore(concurrency)
        self._idle = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._take, tasks)
            await self._over.wait()
            with self._waiting:
                await self._ended()
            if self._calls:
                self._cut_off()
                await self._ended()
            # Only now: what was taken may need what the source holds, to be acknowledged.
            self._taking.cancel()

    async def _ended(self) -> None:
        """Wait until no call runs."""
        while self._calls:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _cut_off(self) -> None:
        for scope in self._calls:
            scope.cancel()
        if not self._worker.is_async:
            logger.warning(
                "The worker waits for `%s` in threads, which cannot be cancelled: %s",
                self._worker.name,
                ", ".join(map(_shown.repr, self._calls.values())),
            )

    async def _take(self, tasks: TaskGroup) -> None:
        try:
            try:
                with self._taking:
                    await self._take_from(await self._source.open(), tasks)
            finally:
                await self._source.close()
        except get_cancelled_exc_class() as error:
            if is_cancelled():
                raise
            self._fail(_not_by_us("the source of messages", error))
        except BaseException as error:
            self._fail(error)
        finally:
            self._over.set()

    async def _take_from(self, messages: AsyncIterator[Any], tasks: TaskGroup) -> None:
        while True:
            await self._places.acquire()
            if self._is_stopping:
                return
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            if self._is_stopping:
                return  # it came too late, and was not taken
            self._counts["taken"] += 1
            scope = CancelScope()
            self._calls[scope] = message
            tasks.start_soon(self._handle, scope, message)

    async def _handle(self, scope: CancelScope, message: Any) -> None:
        is_settled = False
        try:
            with scope:
                is_settled = await self._settle(message)
        finally:
            if not is_settled:
                self._counts["cancelled"] += 1
                logger.warning("A message was neither done nor failed: %s", _shown.repr(message))
            del self._calls[scope]
            self._places.release()
            self._idle.set()

    async def _settle(self, message: Any) -> bool:
        """Handle a message; return whether it is done, or has failed."""
        try:
            self._worker.check_open()
        except LifespanNotRunning as error:
            self._fail(error)
            return False
        try:
            result = await self._worker.call(message)
        except get_cancelled_exc_class():
            raise
        except BaseException as error:
            await self._decide(message, error)
            self._counts["failed"] += 1
            return True
        try:
            await _told(self._on_done, message, result)
        except get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._fail(error)
            return False
        self._counts["done"] += 1
        return True

    async def _decide(self, message: Any, error: BaseException) -> None:
        """Let `on_error` decide; without it, stop."""
        if self._on_error is None or not isinstance(error, Exception):
            return self._fail(error)
        try:
            await _told(self._on_error, message, error)
        except get_cancelled_exc_class():
            logger.error("Nobody has decided about this error", exc_info=error)
            raise
        except BaseException as raised:
            self._fail(raised)


async def _told(callback: Callable[[Any, Any], Any] | None, message: Any, outcome: Any) -> None:
    if callback is not None:
        returned = callback(message, outcome)
        if isawaitable(returned):
            await returned


_shown = Repr()
_shown.maxstring = _shown.maxother = 200


class _Source:
    """Where messages come from: opened, and closed, in one task."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened
        self._closed: Callable[[], Any] | None = None

    async def open(self) -> AsyncIterator[Any]:
        messages = self._opened()
        if isawaitable(messages):
            messages = await messages
        if isinstance(messages, Stream):
            await messages.__aenter__()
        elif not isinstance(messages, AsyncIterable):
            raise _no_source(messages)
        iterator: AsyncIterator[Any] = aiter(messages)
        self._closed = getattr(iterator, "aclose", None)
        return iterator

    async def close(self) -> None:
        if self._closed is not None:
            with CancelScope(shield=True):
                await self._closed()


def _source(messages: Messages, at: Standing) -> _Source:
    """A source of messages; what cannot be one is refused."""
    if isinstance(messages, AsyncIterable):
        return _Source(lambda: messages)
    if not isroutine(messages):
        raise _no_source(messages)
    function = original_of(messages)
    if kind_of(function) is not Kind.ASYNC_GENERATOR:
        return _Source(messages)
    at.run.calls.check_ready(at, function)
    return _Source(lambda: Stream(at, function, (), {}, is_lasting=True))


def _no_source(messages: object) -> TypeError:
    return TypeError(
        f"messages={_shown.repr(messages)}: a worker needs an async iterable, or a function that "
        "returns one. The next item of a synchronous one would have to be awaited in a thread, "
        "which cannot be stopped: read from an asynchronous client of your broker."
    )
