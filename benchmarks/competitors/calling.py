"""One way to call a function outside of requests: what it is given, and whether that is left."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

from anyio import CancelScope
from anyio.lowlevel import checkpoint

VERIFIED_CALLS = 10


class Engine:
    """What all calls share. It counts the sessions that begin and end."""

    opened = 0
    closed = 0
    is_slow = False  # whether to close a session takes an await


class Session:
    """What each call has of its own, and closes."""

    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine.opened += 1

    async def close(self) -> None:
        if self.engine.is_slow:
            await checkpoint()
        self.engine.closed += 1

    def close_now(self) -> None:
        self.engine.closed += 1


class Calls:
    """The functions that one contestant is to call, and the providers of what they take.

    All have the same bodies, whatever their annotations. The functions hand what they have got to
    `count`, which is `len`. Only while `verify` looks on it is something else: so what is measured
    is what was verified.
    """

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.count: Callable[[tuple[Any, ...]], int] = len

    def make_engine(self) -> Engine:
        """It must happen once."""
        self.engines.append(Engine())
        return self.engines[-1]

    async def get_engine(self) -> Engine:
        return self.make_engine()

    def session(self, engine: Any = Engine) -> Callable[..., AsyncIterator[Session]]:
        """An asynchronous generator function, whose parameter has this annotation."""

        async def get_session(engine: Engine) -> AsyncIterator[Session]:
            session = Session(engine)
            yield session
            await session.close()

        get_session.__annotations__["engine"] = engine
        return get_session

    def sync_session(self, engine: Any = Engine) -> Callable[..., Iterator[Session]]:
        """A synchronous one."""

        def get_session(engine: Engine) -> Iterator[Session]:
            session = Session(engine)
            yield session
            session.close_now()

        get_session.__annotations__["engine"] = engine
        return get_session

    # The functions that are called, with these annotations

    def taking_session(self, engine: Any = Engine, session: Any = Session) -> Callable[..., Any]:
        async def handle(message: int, engine: Engine, session: Session) -> int:
            return self.count((engine, session))

        handle.__annotations__ |= {"engine": engine, "session": session}
        return handle

    def taking_engine(self, engine: Any = Engine) -> Callable[..., Any]:
        async def handle(message: int, engine: Engine) -> int:
            return self.count((engine,))

        handle.__annotations__["engine"] = engine
        return handle

    def sync_taking_session(
        self, engine: Any = Engine, session: Any = Session
    ) -> Callable[..., Any]:
        def handle(message: int, engine: Engine, session: Session) -> int:
            return self.count((engine, session))

        handle.__annotations__ |= {"engine": engine, "session": session}
        return handle

    def sync_taking_engine(self, engine: Any = Engine) -> Callable[..., Any]:
        def handle(message: int, engine: Engine) -> int:
            return self.count((engine,))

        handle.__annotations__["engine"] = engine
        return handle

    # Whether it did what it should

    async def verify(self, call: Callable[[int], Awaitable[Any]]) -> str | None:
        """Call a few times. Say what is wrong if anything isn't shared, or left, as it should."""
        problems: list[str] = []
        sessions: list[Session] = []

        def count(found: tuple[Any, ...]) -> int:
            engine, *own = found
            if engine is not self.engines[0]:
                problems.append(f"it got {engine!r}, not the engine")
            for session in own:
                sessions.append(session)
                if session.engine is not engine:
                    problems.append("its session got another engine")
                if engine.opened != engine.closed + 1:
                    problems.append("an earlier session goes on, or its own has ended")
            return len(found)

        self.count = count
        try:
            for message in range(VERIFIED_CALLS):
                await call(message)
        finally:
            self.count = len
        problems = [*filter(None, [self.not_left()]), *problems]
        if len(self.engines) != 1:
            problems.append(f"it made {len(self.engines)} engines")
        if sessions and len(set(sessions)) != VERIFIED_CALLS:
            problems.append(f"it made {len(set(sessions))} sessions for {VERIFIED_CALLS} calls")
        return problems[0] if problems else None

    async def is_shielded(self, call: Callable[[int], Awaitable[Any]]) -> bool:
        """Whether the session of a call that is cancelled is closed to the end."""
        [engine] = self.engines
        with CancelScope() as scope:
            self.count = lambda found: scope.cancel() or len(found)
            engine.is_slow = True
            # What a library makes of a cancellation is not the question.
            with suppress(Exception):
                await call(0)
        return self.not_left() is None

    def not_left(self) -> str | None:
        """What is wrong if a session goes on though no call does."""
        opened = sum(engine.opened for engine in self.engines)
        closed = sum(engine.closed for engine in self.engines)
        if opened == closed:
            return None
        return f"does not leave: {opened} sessions began, {closed} ended"


# What makes a call with a message: awaited, unless it happens in a thread.
Call = Callable[[int], Any]
Start = Callable[[Calls], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True)
class Caller:
    """A row of a table: a way to call a function, and the same by hand."""

    name: str
    start: Start
    baseline: Start
    in_thread: bool = False
    # As of the contestants of a request: for what budgets are about.
    visits_per_round: int = 1
