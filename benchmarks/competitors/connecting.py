"""An application that has twenty connections, three deep, each opened over some of the others.

To open one takes a handshake, which is a wait for somebody else. Those of the first level are
opened by themselves, all others over two of the level before; the endpoint takes those of the last.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import sleep
from fastapi import FastAPI

LEVELS = (range(7), range(7, 14), range(14, 20))
COUNT = 20
LAST = LEVELS[-1]


def over(index: int) -> tuple[int, ...]:
    """Over which two this one is opened."""
    if index in LEVELS[0]:
        return ()
    level, column = divmod(index, 7)
    below = LEVELS[level - 1]
    return below[column], below[(column + 1) % 7]


class Connection:
    def __init__(self, over: Sequence[Any]) -> None:
        self.over = over
        self.is_open = True


class Handshakes:
    """The connections of one application, the providers that open them, and what is wrong."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.types = [type(f"Connection{index}", (Connection,), {}) for index in range(COUNT)]
        self.opened: list[list[Connection]] = [[] for _ in range(COUNT)]
        self.problems: list[str] = []

    async def connection(self, index: int, *over_these: Any) -> AsyncIterator[Any]:
        await sleep(self.seconds)
        if not self._are_opened(over_these, over(index)):
            self.problems.append(f"connection {index} was opened over {over_these!r}")
        connection = self.types[index](over_these)
        self.opened[index].append(connection)
        yield connection
        if not all(below.is_open for below in over_these):
            self.problems.append(f"connection {index} was closed after what it is over")
        connection.is_open = False

    def provider(self, index: int, annotation: Callable[[int], Any]) -> Callable[..., Any]:
        """The provider of one, whose parameters have these annotations."""

        async def connect() -> AsyncIterator[Any]:
            async for connection in self.connection(index):
                yield connection

        async def connect_over(left: Any, right: Any) -> AsyncIterator[Any]:
            async for connection in self.connection(index, left, right):
                yield connection

        provider = connect_over if over(index) else connect
        names = zip(("left", "right"), over(index), strict=False)
        provider.__annotations__ = {name: annotation(below) for name, below in names}
        provider.__annotations__["return"] = AsyncIterator[self.types[index]]  # type: ignore[name-defined]
        return provider

    def endpoint(self, annotation: Callable[[int], Any]) -> Callable[..., Any]:
        """An endpoint whose parameters have these annotations."""

        async def read(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> int:
            return self.right((a, b, c, d, e, f))

        names = zip("abcdef", LAST, strict=True)
        read.__annotations__ = {name: annotation(index) for name, index in names}
        return read

    def right(self, connections: Sequence[Any]) -> int:
        """How many of the last level these are, or 0 if one is none of them."""
        return len(connections) if self._are_opened(connections, LAST) else 0

    def problem(self) -> str | None:
        """What is wrong when the application has ended."""
        for index, opened in enumerate(self.opened):
            if len(opened) != 1:
                return f"connection {index} was opened {len(opened)} times"
            if opened[0].is_open:
                return f"connection {index} wasn't closed"
        return self.problems[0] if self.problems else None

    def _are_opened(self, found: Sequence[Any], expected: Sequence[int]) -> bool:
        return len(found) == len(expected) and all(
            [one] == self.opened[index] and one.is_open
            for one, index in zip(found, expected, strict=True)
        )


@dataclass(frozen=True)
class Connector:
    """A row of a table: an application whose connections are opened in some way."""

    name: str
    build: Callable[[Handshakes], FastAPI]
