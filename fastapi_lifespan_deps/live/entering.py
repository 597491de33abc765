"""Entering: call a provider of any kind, in the event loop or in a worker thread, and leave it."""

import threading
from collections.abc import AsyncIterator, Callable
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

from .tasks import finished


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
