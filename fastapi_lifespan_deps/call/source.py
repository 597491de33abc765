"""Source: where the messages of a worker come from."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from inspect import isawaitable, isclass
from reprlib import Repr
from typing import Any

from fastapi_lifespan_deps._compat import Kind, kind_of
from fastapi_lifespan_deps.live.asking import Standing

from .inject import original_of
from .order import injected_names
from .streams import Stream, close

Messages = AsyncIterable[Any] | Callable[..., Any]

LENGTH = 200  # of a message, where it is shown
_repr = Repr()
_repr.maxstring = _repr.maxother = LENGTH


def shown(message: object) -> str:
    """A message as a person reads it, cut short; whatever its `repr` does."""
    if isinstance(message, str | bytes | bytearray) and len(message) > LENGTH:
        return f"{message[:LENGTH]!r}..."
    try:
        return _repr.repr(message)
    except Exception:
        return object.__repr__(message)


class Source:
    """An iterator over messages, from the call that makes it to its end.

    Opened and closed in one task. What an injected one declares is held until it is closed.
    """

    def __init__(self, messages: Messages, at: Standing) -> None:
        self._messages = messages
        self._at = at
        self._iterator: AsyncIterator[Any] | None = None
        if isinstance(messages, AsyncIterable):
            return
        if not callable(messages) or isclass(messages):
            raise no_source(messages)
        function = original_of(messages)
        if function is not messages or injected_names(function):
            at.run.calls.check_ready(at, function)

    async def open(self) -> AsyncIterator[Any]:
        messages = await self._opened()
        if not isinstance(messages, AsyncIterable):
            raise no_source(messages)
        self._iterator = aiter(messages)
        return self._iterator

    async def _opened(self) -> Any:
        messages, at = self._messages, self._at
        if isinstance(messages, AsyncIterable):
            return messages
        function = original_of(messages)
        if kind_of(function) is Kind.ASYNC_GENERATOR:
            stream = Stream(at, function, (), {}, is_lasting=True)
            return await stream.__aenter__()
        if function is not messages or injected_names(function):
            return await at.run.calls.call(at, function, (), {})
        returned = messages()
        return await returned if isawaitable(returned) else returned

    async def close(self) -> None:
        if self._iterator is not None:
            await close(self._iterator)


def no_source(messages: object) -> TypeError:
    return TypeError(
        f"messages={shown(messages)}: a worker needs an async iterable, or a function that returns "
        "one. The next item of a synchronous one would have to be awaited in a thread, which "
        "cannot be stopped: read from an asynchronous client of your broker."
    )
