"""Entering: call a provider of any kind, in the event loop or in a worker thread, and leave it."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from contextvars import Context, copy_context
from functools import partial
from inspect import iscoroutine
from traceback import walk_tb
from typing import Any

from anyio import (
    CancelScope,
    CapacityLimiter,
    Event,
    from_thread,
    get_cancelled_exc_class,
    to_thread,
)

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.see.frames import above, awaiting, called_by, generator_of, line_of
from fastapi_lifespan_deps.see.spans import Carry

from .tasks import finished


def entered(
    call: Callable[[], Any], kind: Kind, threads: CapacityLimiter, carry: Carry | None = None
) -> AbstractAsyncContextManager[Any]:
    """A context manager that calls a provider of any kind, and is left by its code after `yield`.

    `kind` says how to call it. Nothing here holds the value, so that the code after `yield` can
    give its memory back; and nothing is between the provider and who enters it, for contextlib's
    own managers lose an exception that is frozen.
    """
    if kind is Kind.ASYNC_GENERATOR:
        context: AbstractAsyncContextManager[Any] = _context(call(), asynccontextmanager)
        return context
    return (_InThread if kind is Kind.GENERATOR else _Called)(call, kind, threads, carry)


def position_of(context: object, provider: Callable[..., Any], loop_thread: int) -> str:
    """What a provider does that is entered, or left: `waits at app/db.py:9`; "" if nobody knows.

    May be asked in any thread, and goes on meanwhile.
    """
    thread = context.thread if isinstance(context, _Apart) else None
    if thread is not None:
        frames = called_by(thread, OneContext.__call__.__code__)
        return f"runs at {line_of(frames, provider)}" if frames else ""
    if isinstance(context, _Apart):
        if context.waits_for_thread:
            return "waits for a thread"
        return position_in_loop(context.coroutine, provider, loop_thread)
    return position_in_loop(generator_of(context), provider, loop_thread)


def position_in_loop(awaited: object, provider: Callable[..., Any], loop_thread: int) -> str:
    """The same of a coroutine or a generator that an event loop runs."""
    frames = list(awaiting(awaited))
    if not frames:
        return ""
    running = above(loop_thread, lambda frame: frame is frames[0])
    verb = "runs" if running else "waits"
    return f"{verb} at {line_of(running or frames, provider)}"


class OneContext:
    """One context for both ends, so that a context variable that was set can be reset.

    Made in the thread: there anyio has noted that no event loop runs. What `carry` takes from the
    context of a later call, and sets in this one, is as it is there.
    """

    def __init__(self, carry: Carry | None = None) -> None:
        self._context: Context | None = None
        self._carry = carry
        self.thread: int | None = None  # while it runs in one
        self.is_awaited = False  # by somebody who has asked for a thread

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if self._context is None:
            self._context = copy_context()
        elif self._carry is not None:
            self._context.run(self._carry())
        self.thread = threading.get_ident()  # before it is noted that it waits no more
        self.is_awaited = False
        try:
            return self._context.run(call, *arguments)
        finally:
            self.thread = None


class _Apart(AbstractAsyncContextManager[Any]):
    """A provider that is called apart from who enters it: in threads, or as a coroutine."""

    def __init__(
        self, call: Callable[[], Any], kind: Kind, threads: CapacityLimiter, carry: Carry | None
    ) -> None:
        self._call = call
        self._kind = kind
        self._one_context = OneContext(carry)
        self._threads = threads
        self.coroutine: Any = None  # that is awaited now

    async def _run(self, call: Callable[..., Any]) -> Any:
        self._one_context.is_awaited = True
        return await in_thread(self._one_context, call, limiter=self._threads, goes_on=True)

    @property
    def thread(self) -> int | None:
        """The thread in which it runs now."""
        return self._one_context.thread

    @property
    def waits_for_thread(self) -> bool:
        """Whether all threads are taken."""
        return self._one_context.is_awaited


class _Called(_Apart):
    """A function that has nothing to do at the end."""

    async def __aenter__(self) -> Any:
        if self._kind is Kind.COROUTINE:
            return await self._awaited(self._call())
        value = await self._run(self._call)
        # a lambda around an async function, say: a coroutine is of no use to many requests
        return await self._awaited(value) if iscoroutine(value) else value

    async def _awaited(self, coroutine: Any) -> Any:
        self.coroutine = coroutine
        try:
            return await coroutine
        finally:
            self.coroutine = None

    async def __aexit__(self, *exc_info: object) -> None: ...


def _context(result: Any, make: Callable[..., Any]) -> Any:
    """What a generator function returned, as a context manager; a decorated one gives it so."""
    if isinstance(result, AbstractContextManager | AbstractAsyncContextManager):
        return result
    if iscoroutine(result):
        result.close()  # nobody will await it
    if not isinstance(result, Iterator | AsyncIterator):
        raise TypeError(
            "FastAPI takes it for a generator function, for that is what it wraps, and it "
            f"returned a `{type(result).__name__}`, over which nobody can iterate"
        )
    return make(lambda: result)()


def explanation(error: BaseException, kind: Kind) -> str:
    """What there is to add to the error of a start."""
    if not isinstance(error, RuntimeError):
        return ""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    # contextlib says so of the provider, and not of something that the provider calls
    is_ours = frames[-2].f_globals.get("__package__") == __package__
    if error.args == ("generator didn't yield",) and is_ours:
        return "It came to its end without a `yield`. Let it yield on every way, `None` if need be."
    if "event loop" in str(error) and not kind.is_async:
        return (
            "It is no `async def`, so it is called in a worker thread, where no event loop runs. "
            "Make it one, and what it makes belongs to the application's event loop."
        )
    return ""


class _InThread(_Apart):
    """A generator function that is entered and left in worker threads."""

    async def __aenter__(self) -> Any:
        self._context = _context(await self._run(self._call), contextmanager)
        return await self._run(self._context.__enter__)

    async def __aexit__(self, *exc_info: object) -> None:
        began = False

        def leave() -> None:
            nonlocal began
            began = True
            self._context.__exit__(None, None, None)

        with CancelScope(shield=True):
            while True:
                try:
                    await self._run(leave)
                    return
                except get_cancelled_exc_class():  # asyncio ends while this waits for a thread
                    if began:
                        raise


async def in_thread(
    call: Callable[..., Any],
    *arguments: Any,
    limiter: CapacityLimiter | None = None,
    goes_on: bool = False,
) -> Any:
    """Call in a worker thread, and stay until it is through: what it enters must be left again.

    No cancel scope cuts the waiting short, but asyncio's own cancellation does. It is raised when
    the thread is through; with `goes_on` it is not, for a call that has begun.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    began, done = threading.Event(), Event()
    try:
        await to_thread.run_sync(
            _work, began, outcome, done, partial(call, *arguments), limiter=limiter
        )
    except get_cancelled_exc_class():
        if not began.is_set():
            raise
        with suppress(get_cancelled_exc_class()):
            await finished(done)
        if not goes_on:
            raise
    value, error = outcome.pop()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # see `Supervisor.close`


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
