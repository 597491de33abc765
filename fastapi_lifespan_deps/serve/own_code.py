"""Own code: what an application does itself when it starts and stops, watched while it does."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from fastapi_lifespan_deps.live.entering import position_in_loop
from fastapi_lifespan_deps.see.frames import called_by, generator_of, line_of
from fastapi_lifespan_deps.see.watch import Step, Watch


class OwnCode:
    """A hook or a lifespan function: it may take too long, as a provider may."""

    def __init__(self, function: Callable[..., Any], watch: Watch | None) -> None:
        self.provider = function
        self._watch = watch  # None where no run is under way
        self._thread = get_ident()
        self._awaited: object = None

    def position(self) -> str:
        """What it does just now: see `position_of`."""
        frames = called_by(self._thread, self._called.__code__)
        if frames:
            return f"runs at {line_of(frames, self.provider)}"
        return position_in_loop(self._awaited, self.provider, self._thread)

    async def call(self, step: Step, call: Callable[[], Any], *, is_async: bool) -> None:
        """Call a hook; as in FastAPI, a synchronous one runs in the event loop."""
        self.begin(step)
        is_done = False
        try:
            result = self._called(call)
            if is_async:
                self._awaited = result
                await result
            is_done = True
        finally:
            self.end(is_done=is_done)

    @staticmethod
    def _called(call: Callable[[], Any]) -> Any:
        return call()

    def begin(self, step: Step, awaited: object = None) -> None:
        """Have it watched from now on."""
        self._awaited = awaited
        if self._watch is not None:
            self._watch.begin(self, step)

    def end(self, *, is_done: bool) -> None:
        self._awaited = None
        if self._watch is not None:
            self._watch.end(self, is_done=is_done)


# Not by contextlib: a frozen exception does not get through its managers.


class Watched(AbstractAsyncContextManager[Any]):
    """The context of a lifespan function, watched while it is entered and while it is left."""

    def __init__(self, code: OwnCode, context: AbstractAsyncContextManager[Any]) -> None:
        self._code = code
        self._context = context

    async def __aenter__(self) -> Any:
        is_done = False
        self._code.begin("start", generator_of(self._context))
        try:
            state = await self._context.__aenter__()
            is_done = True
            return state
        finally:
            self._code.end(is_done=is_done)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        is_done = False
        self._code.begin("stop", generator_of(self._context))
        try:
            is_handled = await self._context.__aexit__(kind, error, traceback)
            is_done = True
            return is_handled
        finally:
            self._code.end(is_done=is_done)


class Stack:
    """Contexts that were entered, left in reverse; as contextlib's, but for frozen exceptions."""

    def __init__(self) -> None:
        self._entered: list[AbstractAsyncContextManager[Any]] = []

    async def enter_async_context(self, context: AbstractAsyncContextManager[Any]) -> Any:
        value = await context.__aenter__()
        self._entered.append(context)
        return value

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        left = error
        for context in reversed(self._entered):
            try:
                traceback = None if left is None else left.__traceback__
                if await context.__aexit__(left and type(left), left, traceback):
                    left = None
            except BaseException as raised:
                left = raised
        if left is not None and left is not error:
            try:
                raise left
            finally:
                del left, error  # see `Supervisor.close`
        return left is None and error is not None


class Synchronous(AbstractAsyncContextManager[Any]):
    """A context manager that is entered and left in the event loop."""

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self._context = context
        self.gen = generator_of(context)  # as contextlib's own have it

    async def __aenter__(self) -> Any:
        return self._context.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._context.__exit__(kind, error, traceback)
