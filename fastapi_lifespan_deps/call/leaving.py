"""Leaving: the dependencies of a call are entered one by one, and left in reverse."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from anyio import CapacityLimiter, get_cancelled_exc_class

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.exceptions import combined, name_of
from fastapi_lifespan_deps.live.entering import OneContext, in_thread

from .order import Entry


class Entered(NamedTuple):
    """A generator of a call that has yielded its value, and is to be left."""

    entry: Entry
    generator: Any
    context: OneContext | None  # of one whose steps are taken in worker threads


async def enter(entry: Entry, arguments: Mapping[str, Any], entered: list[Entered]) -> Any:
    """Enter a dependency in the event loop, or in a worker thread; what is to be left is noted."""
    kind = entry.kind
    if kind is Kind.COROUTINE:
        return await entry.call(**arguments)
    if kind is Kind.ASYNC_GENERATOR:
        generator = entry.call(**arguments)
        try:
            value = await anext(generator)
        except StopAsyncIteration:
            raise _never_yielded(entry) from None
        entered.append(Entered(entry, generator, None))
        return value
    context = OneContext()
    if kind is Kind.FUNCTION:
        return await in_thread(context, lambda: entry.call(**arguments))
    return await in_thread(context, begin, entry, arguments, entered, context)


def begin(
    entry: Entry,
    arguments: Mapping[str, Any],
    entered: list[Entered],
    context: OneContext | None = None,
) -> Any:
    """Enter a synchronous generator in this thread."""
    generator = entry.call(**arguments)
    # Before, for this may be interrupted; what has failed, or has not begun, takes leave easily.
    entered.append(Entered(entry, generator, context))
    try:
        return next(generator)
    except StopIteration:
        raise _never_yielded(entry) from None


def _never_yielded(entry: Entry) -> RuntimeError:
    return RuntimeError(
        f"`{name_of(entry.call)}` came to its end without a `yield`. Let it yield on every way."
    )


async def leave(one: Entered, error: BaseException | None) -> None:
    """Leave a dependency; an error is thrown into it. Raise what it raises, unless it is that."""
    generator = one.generator
    if one.entry.kind is not Kind.ASYNC_GENERATOR:
        await _end_in_thread(one, error)
        return
    try:
        await (anext(generator) if error is None else generator.athrow(error))
    except StopAsyncIteration:
        return  # it is through; what it has swallowed is raised to the caller all the same
    except BaseException as raised:
        if not _is_the_same(raised, error):
            raise
        return
    await generator.aclose()
    raise RuntimeError(f"`{name_of(generator)}` didn't stop after its `yield`")


async def _end_in_thread(one: Entered, error: BaseException | None) -> None:
    context: Callable[..., Any] = one.context or OneContext()
    cancelled: BaseException | None = None
    began = False

    def ending() -> None:
        nonlocal began
        began = True
        end(one.generator, error)

    while not began:
        try:
            # A limiter of its own: the end must not wait for the threads of others.
            await in_thread(context, ending, limiter=CapacityLimiter(1))
        except get_cancelled_exc_class() as raised:  # asyncio's own, while it waits for a thread
            cancelled = raised
    if cancelled is not None:
        raise cancelled


def end(generator: Generator[Any, Any, Any], error: BaseException | None) -> None:
    """The same for a synchronous generator, in this thread."""
    try:
        if error is None:
            next(generator)
        else:
            generator.throw(error)
    except StopIteration:
        return
    except BaseException as raised:
        if not _is_the_same(raised, error):
            raise
        return
    generator.close()
    raise RuntimeError(f"`{name_of(generator)}` didn't stop after its `yield`")


def _is_the_same(raised: BaseException, error: BaseException | None) -> bool:
    """Whether it is what was thrown in; Python makes another one of a `StopIteration`."""
    is_stop = isinstance(error, StopIteration | StopAsyncIteration)
    return raised is error or (is_stop and raised.__cause__ is error)


def in_order(entered: list[Entered]) -> list[Entered]:
    """These, as they are to be left: what has scope="function" first, each in reverse."""
    if len(entered) < 2:
        return entered
    left = entered[::-1]
    return [
        *(one for one in left if one.entry.is_early),
        *(o for o in left if not o.entry.is_early),
    ]


class Failures:
    """What goes wrong in a call: the function's own error, and those of its dependencies."""

    def __init__(self) -> None:
        self.own: BaseException | None = None
        self._others: list[BaseException] = []

    @property
    def thrown(self) -> BaseException | None:
        """What is thrown into the dependencies that are left next."""
        return self.own or (self._others[0] if self._others else None)

    def settle(self, name: str, *, is_cancelled: bool) -> None:
        """Note whether who called was cancelled. If not, a dependency has cancelled the call.

        Then what that raises counts, or that it does not tell why.
        """
        cancelled = get_cancelled_exc_class()
        if is_cancelled or not isinstance(self.own, cancelled):
            return
        self.own = None
        self._others = [one for one in self._others if not isinstance(one, cancelled)]
        if not self._others:
            self._others = [RuntimeError(f"{name} was cancelled by one of its dependencies")]

    def note(self, error: BaseException) -> None:
        """Note what a dependency has raised when it was left."""
        if all(error is not one for one in self._others):
            self._others.append(error)

    def result(self) -> BaseException | None:
        """What to raise to the caller: the function's own error, with the others as notes."""
        if not self._others:
            return self.own
        return combined(
            self.own, self._others, is_serving=False, heading="Then, in a dependency of the call:"
        )

    def check(self) -> None:
        """Raise that."""
        failure = self.result()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
                self.own, self._others = None, []  # whose frames have us
