"""Streams: generator functions that are called with their dependencies, item by item."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from threading import Lock, Thread
from typing import Annotated, Any, Self

from anyio import CancelScope, Event, get_cancelled_exc_class
from fastapi import Depends as FastAPIDepends

from fastapi_lifespan_deps.live.asking import Standing, pinned_here, under
from fastapi_lifespan_deps.live.entering import OneContext
from fastapi_lifespan_deps.live.tasks import current_task, finished

from .calls import check_thread, is_in_loop
from .order import CallHolder
from .threads import steps


class Stream(AbstractAsyncContextManager["Stream"], AsyncIterator[Any]):
    """The items of an asynchronous generator function.

    One task owns it: it enters the dependencies, takes each item when that is asked for, and
    leaves. So it makes no difference who asks, in which task, and whether he comes to the end.
    """

    def __init__(
        self,
        at: Standing,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        throws: bool = False,
        is_lasting: bool = False,
    ) -> None:
        # here, where the request or the call is known that asks for it
        self._at = at._replace(pin=at.pin or pinned_here(at.run))
        self._call = function, args, kwargs
        self._throws = throws  # an error of who takes the items is the function's
        self._is_lasting = is_lasting  # nobody can wait for its end
        self._asked, self._answered = Event(), Event()
        self._over = Event()
        self._scope = CancelScope()
        self.standing = at  # of the call, once it has entered what it needs
        self._is_idle = False
        self._is_closing = False
        self._is_through = False
        self._item: Any = None
        self._thrown: BaseException | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        tasks = self._at.run.live.supervisor.tasks
        tasks.check_loop()
        tasks.spawn(self._own, self._end, "a stream", copy_context())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._is_closing = True
        is_cut = self._throws and isinstance(error, get_cancelled_exc_class())
        # it is cancelled as we are; or makes something that nobody waits for any more
        if is_cut or not self._is_idle:
            self._scope.cancel()
        self._thrown = error if self._throws and not is_cut else None
        self._asked.set()
        await finished(self._over)
        failure, self._failure = self._failure, None
        if failure is not None and failure is not error:
            try:
                raise failure
            finally:
                del failure, error

    async def aclose(self) -> None:
        """Leave it."""
        await self.__aexit__(None, None, None)

    async def __anext__(self) -> Any:
        self._answered = Event()
        self._asked.set()
        if not (self._over.is_set() or self._is_through):
            await self._answered.wait()
        if self._over.is_set() or self._is_through:
            raise StopAsyncIteration
        assert self.standing.pin is not None
        self.standing.pin.extend().taker = current_task()
        item, self._item = self._item, None
        return item

    async def _own(self) -> None:
        function, args, kwargs = self._call
        try:
            with self._scope:
                await self._at.run.calls.call(self._at, function, args, kwargs, self._give)
        except BaseException as error:
            self._failure = error

    def _end(self) -> None:
        self._over.set()
        self._answered.set()

    async def _give(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.standing = under.get()
        if self._is_lasting:
            assert self.standing.pin is not None
            holder = self.standing.pin.holder
            assert isinstance(holder, CallHolder)
            self.standing.pin.holder = holder.lasting()
        items = self._call[0](*args, **kwargs)
        try:
            while await self._is_asked():
                self._item = await anext(items)
                self._answered.set()
        except StopAsyncIteration:
            if self._is_lasting:
                self._is_through = True
                self._answered.set()
                await self._is_asked()
        finally:
            await close(items)
        if self._thrown is not None:
            raise self._thrown

    async def _is_asked(self) -> bool:
        """Wait until somebody asks for an item; not if nobody will."""
        self._is_idle = True
        await self._asked.wait()
        self._is_idle, self._asked = False, Event()
        return not self._is_closing


class Entering(AbstractAsyncContextManager[Any]):
    """One dependency that is entered by itself, as a stream of its one value."""

    def __init__(self, at: Standing, provider: Callable[..., Any]) -> None:
        async def one(value: Any) -> AsyncIterator[Any]:
            yield value

        one.__annotations__["value"] = Annotated[Any, FastAPIDepends(provider)]
        self._made = partial(Stream, at, one, (), {}, throws=True)

    async def __aenter__(self) -> Any:
        self._stream = stream = await self._made().__aenter__()
        try:
            value = await anext(stream)
        except BaseException as error:
            await stream.__aexit__(type(error), error, None)
            raise
        self._token = under.set(stream.standing)
        return value

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with suppress(ValueError):  # it may be left in another task
            under.reset(self._token)
        await self._stream.__aexit__(kind, error, traceback)


async def close(items: AsyncIterator[Any]) -> None:
    """Close what can be closed. A task group that stands at a `yield` tells of it: no error."""
    aclose = getattr(items, "aclose", None)
    if aclose is None:
        return
    try:
        closed = aclose()
        if isawaitable(closed):
            await closed
    except BaseExceptionGroup as group:
        _, others = group.split(GeneratorExit)
        if others is not None:
            raise others from None


class StreamInThread(Iterator[Any]):
    """The items of a synchronous generator function, made in the threads that ask for them."""

    def __init__(
        self,
        at: Standing,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        def body(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
            return (yield from function(*args, **kwargs))

        self._run = at.run
        self._context = OneContext()  # what the function and its dependencies set stays theirs
        self._busy = Lock()
        self._steps = steps(at, function, body, args, kwargs, self)

    def __next__(self) -> Any:
        check_thread(self._run)
        with self._busy:
            return self._context(next, self._steps)

    def close(self) -> None:
        """Leave it. In the thread of the event loop nobody waits for that."""
        if is_in_loop(self._run):
            self.cancel()
        else:
            with self._busy:
                self._context(self._steps.close)

    def cancel(self) -> None:
        """Leave it in a thread, as soon as nobody is taking an item."""

        def close() -> None:
            with self._busy:
                self._context(self._steps.close)

        Thread(target=close, name="end of a stream").start()
