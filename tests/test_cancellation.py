"""Clause 6 at every step: whenever a story is cancelled, what was entered is left once, in order.

A story is told in one task: an application or a container starts, serves, is refreshed and
overridden, and stops. It is cancelled at its first step, at its second, and so on to its last; by
`task.cancel()`, or by a cancel scope around it; once, or twice more while it unwinds. Then it must
be over, and the same application is started again.
"""

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, Any, get_args

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from fastapi import Depends as Stock
from fastapi.responses import StreamingResponse

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    LifespanNotRunning,
    UnavailableLifespanDependency,
    View,
    run_worker,
)
from fastapi_lifespan_deps.live.refresh import Policy
from tests.recording import named
from tests.stepping import PATIENCE, Hang, Steps

SETTLING = 50  # steps of a task after which nothing may be left of what is over


# --- What is written down


@dataclass(eq=False)
class Record:
    """What is known of a value, to the end and beyond: in which chapter it was started, and in
    which somebody asked for a fresh one.
    """

    name: str
    needs: "list[Record]"
    is_shared: bool
    chapter: int
    last_chapter: int = 0
    state: str = "alive"


@dataclass(eq=False)
class Value:
    """What a provider gives."""

    record: Record
    needs: "list[Value]"

    def use(self) -> str:
        """Tell its name, and what it is made of; nobody may ask when it has begun to end."""
        assert self.record.state == "alive", f"{self.record.name} is used when {self.record.state}"
        parts = ", ".join(need.use() for need in self.needs)
        return f"{self.record.name}({parts})" if parts else self.record.name


class Ledger(logging.Handler):
    """What happens in a story, and what is wrong with it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.clear()

    def clear(self) -> None:
        self.faults: list[str] = []
        self.chapter = 0  # of the story; what is started in one is started together
        self.records: list[Record] = []
        self.stopped: list[Record] = []
        self.values: list[weakref.ref[Value]] = []
        self.generators: list[Any] = []
        # The messages of a worker, each as a text.
        self.given: list[str] = []
        self.begun: list[str] = []
        self.done: list[str] = []
        self.cut_off: list[str] = []
        self.hooks: list[str] = []
        self.is_native = False  # how the story is cancelled

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "Calls are cancelled, for their container is left: %s":
            return  # one is made to last
        if record.msg == "A message was neither done nor failed: %s":
            self.cut_off.append(record.getMessage().rpartition(": ")[2])
            return
        self.faults.append(f"logged: {record.getMessage()} {record.exc_info or ''}")

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def turn(self, *names: str) -> None:
        """Begin a chapter, in which these are replaced."""
        self.chapter += 1
        for record in self.records:
            if record.name in names and record.state == "alive" and not record.last_chapter:
                record.last_chapter = self.chapter

    def enter(self, name: str, needs: list[Value], *, is_shared: bool = True) -> Value:
        for need in needs:
            self.check(need.record.state == "alive", f"{name} is given a dead {need.record.name}")
        below = [need.record for need in needs]
        value = Value(Record(name, below, is_shared, self.chapter), needs)
        self.records.append(value.record)
        self.values.append(weakref.ref(value))
        return value

    def begin_to_leave(self, record: Record) -> None:
        self.check(record.state == "alive", f"{record.name} is left twice")
        record.state = "stopping"
        for other in self.records:
            if record in other.needs:
                self.check(
                    other.state == "stopped", f"{record.name} is left before {other.name} is"
                )

    def leave(self, record: Record) -> None:
        self.check(record.state == "stopping", f"{record.name} is left to its end twice")
        record.state = "stopped"
        self.stopped.append(record)
        for need in record.needs:
            self.check(need.state == "alive", f"{record.name} has lived longer than {need.name}")

    def end(self, record: Record) -> None:
        """The same at once."""
        self.begin_to_leave(record)
        self.leave(record)

    def check_over(self, name: str = "") -> None:
        """Whoever waits for an end gets it when everything has been left, or all of a name."""
        for record in self.records:
            if name in ("", record.name):
                self.check(record.state == "stopped", f"{record.name} is {record.state} too late")

    def check_end(self, *, is_sequential: bool) -> None:
        """Everything was left, and what was started and replaced together in reverse order."""
        for record in self.records:
            self.check(record.state == "stopped", f"{record.name} is {record.state} in the end")
        for generator in self.generators:
            # Starlette leaves that of a stream to the garbage collector
            if generator.ag_frame is not None and generator.__name__ != "chunks":
                self.faults.append(f"{generator.__qualname__} is left open")
        settled = sorted(self.done + self.cut_off)
        was_once = len(set(settled)) == len(settled)
        # one may have come when the worker took no more
        is_all = set(self.begun) <= set(settled) <= set(self.given) and (
            len(self.given) - len(settled) <= 1
        )
        fault = f"of {self.given} {self.begun} were begun, and {settled} are settled"
        self.check(was_once and is_all, fault)
        self.check(self.hooks in ([], ["first", "second"]), f"only the hook {self.hooks} has run")
        self.hooks.clear()
        if is_sequential:
            groups: dict[tuple[int, int], list[Record]] = {}
            for record in self.stopped:
                if record.is_shared:
                    groups.setdefault((record.chapter, record.last_chapter), []).append(record)
            for stopped in groups.values():
                order = [record for record in self.records[::-1] if record in stopped]
                names = [[one.name for one in records] for records in (order, stopped)]
                self.check(order == stopped, f"expected {names[0]} to stop, not {names[1]}")

    def check_memory(self) -> None:
        self.generators.clear()
        for thread in threading.enumerate():
            if thread.name.startswith("AnyIO"):
                thread.join(PATIENCE)  # it ends, and has not forgotten yet what it was given
        gc.collect()
        alive = [value.record.name for ref in self.values if (value := ref()) is not None]
        self.check(not alive, f"{alive} are kept in memory")


def plain(ledger: Ledger, name: str, *needs: Callable[..., Any]) -> Any:
    """A generator without `try`: only a proper stop gets it to its end."""

    async def get(**values: Value) -> AsyncIterator[Value]:
        await checkpoint()
        value = ledger.enter(name, list(values.values()))
        yield value
        ledger.begin_to_leave(value.record)
        await checkpoint()
        await checkpoint()
        ledger.leave(value.record)

    return named(get, name, needs)


def careful(ledger: Ledger, name: str, *needs: Callable[..., Any]) -> Any:
    """One that is not through with its start when there is already something to leave."""

    async def get(**values: Value) -> AsyncIterator[Value]:
        value = ledger.enter(name, list(values.values()))
        try:
            await checkpoint()
            yield value
        finally:
            with anyio.CancelScope(shield=True):
                ledger.begin_to_leave(value.record)
                await checkpoint()
                ledger.leave(value.record)

    return named(get, name, needs)


def busy(ledger: Ledger, name: str, *needs: Callable[..., Any]) -> Any:
    """One that has a task, and uses in it what it needs."""

    async def work(value: Value) -> None:
        while True:
            value.use()
            await anyio.sleep(50)

    async def get(**values: Value) -> AsyncIterator[Value]:
        await checkpoint()
        value = ledger.enter(name, list(values.values()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, value)
            yield value
            await checkpoint()
            tasks.cancel_scope.cancel()
        ledger.begin_to_leave(value.record)
        await checkpoint()
        ledger.leave(value.record)

    return named(get, name, needs)


def threaded(ledger: Ledger, name: str, *needs: Callable[..., Any]) -> Any:
    """A synchronous one."""

    def get(**values: Value) -> Iterator[Value]:
        value = ledger.enter(name, list(values.values()))
        yield value
        ledger.end(value.record)

    return named(get, name, needs)


# --- Stories

ANSWER = "200 service(db(config), model(config))"
Ask = Callable[[str], Coroutine[Any, Any, str]]  # sends a request, or does without


class World:
    """What stories are told of: a few providers, an application, and a container."""

    others: TaskGroup  # of somebody else

    def __init__(self, start: Any, *, has_threads: bool) -> None:
        self.ledger = ledger = Ledger()
        self.has_threads = has_threads
        self.is_sequential = start == "sequential"
        self.get_config = get_config = plain(ledger, "config")
        third = threaded if has_threads else careful
        self.get_db = get_db = busy(ledger, "db", get_config)
        self.get_model = get_model = third(ledger, "model", get_config)
        self.get_service = get_service = plain(ledger, "service", get_db, get_model)
        self.get_fake = third(ledger, "fake", get_config)

        clock = Depends(plain(ledger, "clock"), scope="lifespan")
        db = Depends(get_db, scope="lifespan")
        service = Depends(get_service, scope="lifespan")

        async def get_session(db: Annotated[Value, db]) -> AsyncIterator[Value]:
            session = ledger.enter("session", [db], is_shared=False)
            try:
                await checkpoint()
                yield session
            finally:
                ledger.begin_to_leave(session.record)
                ledger.check(db.record.state == "alive", "a session has outlived its db")
                ledger.leave(session.record)

        async def get_note(db: Annotated[Value, db]) -> AsyncIterator[Value]:
            await checkpoint()
            note = ledger.enter("note", [db], is_shared=False)
            try:
                yield note
            finally:
                ledger.begin_to_leave(note.record)
                try:
                    await checkpoint()
                except anyio.get_cancelled_exc_class():
                    # no shield stops what asyncio throws into the task of the call
                    ledger.check(ledger.is_native, "what a call has entered is not left to its end")
                    raise
                finally:
                    ledger.leave(note.record)

        def get_part(db: Annotated[Value, db]) -> Iterator[Value]:
            part = ledger.enter("part", [db], is_shared=False)
            try:
                yield part
            finally:
                ledger.end(part.record)

        async def answer(
            service: Annotated[Value, service], session: Annotated[Value, Stock(get_session)]
        ) -> str:
            before = service.use()
            await checkpoint()
            session.use()
            ledger.check(service.use() == before, "a value has changed under a request")
            used = service.needs[0].needs[0], service.needs[1].needs[0]
            ledger.check(used[0] is used[1], "two generations are mixed")
            return before

        async def compute(
            service: Annotated[Value, service], note: Annotated[Value, Stock(get_note)]
        ) -> str:
            return await answer(service, note)

        async def last(service: Annotated[Value, service]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                service.use()

        async def lines(
            service: Annotated[Value, service], note: Annotated[Value, Stock(get_note)]
        ) -> AsyncIterator[str]:
            for _ in range(2):
                yield service.use()
                await checkpoint()
                note.use()

        async def first_hook() -> None:
            ledger.hooks.append("first")
            for _ in range(5):
                await checkpoint()

        async def second_hook() -> None:
            ledger.hooks.append("second")
            for _ in range(5):
                await checkpoint()

        async def stream(service: Annotated[Value, service]) -> StreamingResponse:
            gate = self.gate

            async def chunks() -> AsyncIterator[str]:
                yield service.use()
                gate.reached.set()
                await gate.opened.wait()
                yield service.use()

            return StreamingResponse(chunks())

        async def lifespan(app: Any, clock: Annotated[Value, clock]) -> AsyncIterator[None]:
            own = ledger.enter("lifespan", [clock], is_shared=False)
            try:
                await checkpoint()
                yield
            finally:
                ledger.end(own.record)

        async def handle(
            message: int,
            service: Annotated[Value, service],
            note: Annotated[Value, Stock(get_note)],
        ) -> str:
            ledger.begun.append(str(message))
            return await answer(service, note)

        async def messages(clock: Annotated[Value, clock]) -> AsyncIterator[int]:
            source = ledger.enter("source", [clock], is_shared=False)
            try:
                for number in range(4):
                    await checkpoint()
                    ledger.given.append(str(number))
                    yield number
            finally:
                ledger.end(source.record)

        def in_a_thread(
            service: Annotated[Value, service], part: Annotated[Value, Stock(get_part)]
        ) -> str:
            part.use()
            return service.use()

        self.get_note, self.compute, self.last, self.lines = get_note, compute, last, lines
        self.handle, self.messages, self.in_a_thread = handle, messages, in_a_thread
        handlers: list[Callable[..., Any]]
        handlers = [compute, last, lines, handle, messages, in_a_thread]
        self.app = LifespanFastAPI(
            lifespan=asynccontextmanager(lifespan),
            lifespan_start=start,
            handlers=handlers,
            openapi_url=None,
        )
        self.app.router.on_shutdown += [first_hook, second_hook]
        self.app.get("/answer")(answer)
        self.app.get("/stream")(stream)
        self.container = LifespanContainer(handlers=handlers, lifespan_start=start)
        self.gate = Gate()
        self.state: dict[str, Any] = {}  # of the lifespan
        self.kept: Any = None

    # Of an application

    async def application(self) -> None:
        """It runs by the lifespan protocol: the rest happens until it is told to shut down."""
        state = self.state = {}
        messages: list[str] = []

        async def receive() -> dict[str, Any]:
            if not messages:
                return {"type": "lifespan.startup"}
            await self.serve()
            await self.call(self.app.lifespan_container, with_others=True)
            self.ledger.turn()
            return {"type": "lifespan.shutdown"}

        async def send(message: Any) -> None:
            await checkpoint()
            messages.append(message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
        with self.over():
            await self.app(scope, receive, send)
        assert messages == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The application runs, whatever happens to the story, and is none the worse for it."""
        with self.over():
            async with self.app.router.lifespan_context(self.app) as state:
                self.state = dict(state or {})
                yield
                await settle()  # a refresh goes on
                self.app.dependency_overrides.clear()
                self.ledger.turn("fake", "service")
                assert await self.ask("/answer") == ANSWER
                for policy in get_args(Policy):
                    self.ledger.turn("config", "db", "model", "service")
                    await self.app.lifespan_container.refresh(self.get_config, policy=policy)
                    assert await self.ask("/answer") == ANSWER
                self.ledger.turn()

    @contextmanager
    def over(self, name: str = "") -> Iterator[None]:
        try:
            yield
        finally:
            self.ledger.check_over(name)

    async def serve(self) -> None:
        container = self.app.lifespan_container
        assert await self.ask("/answer") == ANSWER
        await self.refresh(container)
        await self.override(container, self.app.dependency_overrides, self.ask)
        await self.call(container)

    async def ask(self, path: str) -> str:
        """Send a request; the client stays to the end."""
        texts: list[str] = []
        came = False

        async def receive() -> dict[str, Any]:
            nonlocal came
            if came:
                await anyio.sleep_forever()
            came = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            await checkpoint()
            texts.append(str(message.get("status", "") or message.get("body", b"").decode()))

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "scheme": "http",
            "state": {**self.state},
        }
        await self.app(scope, receive, send)
        status, *rest = texts
        return f"{status} {''.join(rest)}".replace('"', "")

    async def refresh(self, container: View) -> None:
        ask, ledger = self.ask, self.ledger
        ledger.turn("model", "service")
        await container.refresh(self.get_model)
        assert await ask("/answer") == ANSWER
        gate = self.gate = Gate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "/stream")
            await gate.reached.wait()
            ledger.turn("db", "service")
            tasks.start_soon(partial(container.refresh, self.get_db, policy="resource_preserving"))
            with suppress(UnavailableLifespanDependency):
                while container[self.get_service]:
                    await checkpoint()
            assert (await ask("/answer")).startswith("503 ")
            gate.opened.set()
        assert await ask("/answer") == ANSWER
        ledger.turn("config", "db", "model", "service")
        draining = await container.refresh(self.get_config, drain_timeout=10)
        await draining.wait()

    async def override(self, container: View, overrides: dict[Any, Any], ask: Ask) -> None:
        ledger = self.ledger
        ledger.turn()
        overrides[self.get_model] = self.get_fake
        assert await ask("/answer") == "200 service(db(config), fake(config))"
        ledger.turn("fake", "service")
        await container.refresh(self.get_model)
        assert await ask("/answer") == "200 service(db(config), fake(config))"
        ledger.turn("fake", "service")
        overrides.clear()
        assert await ask("/answer") == ANSWER

    # Outside of requests

    async def call(self, container: View, *, with_others: bool = False) -> None:
        text = ANSWER.removeprefix("200 ")
        if with_others and not self.has_threads:  # whose time cannot be hurried
            self.others.start_soon(self.last_as_long_as, container)
        with self.over("note"):
            assert await container.call(self.compute) == text
        with self.over("note"):
            async with container.enter(self.get_note) as note:
                await checkpoint()
                note.use()
        items: Any = container.inject(self.lines)()
        with self.over("note"):
            async with aclosing(items):
                assert [item async for item in items] == [text, text]
        if self.has_threads:
            assert await container.call(self.in_a_thread) == text
            injected = container.inject(self.in_a_thread)
            assert await anyio.to_thread.run_sync(injected) == text

    async def last_as_long_as(self, container: View) -> None:
        """A call of somebody else's, which is waited for, and cut off when that takes too long."""
        with suppress(LifespanNotRunning):
            await container.call(self.last)

    async def alone(self) -> None:
        """A container without an application."""

        async def ask(path: str) -> str:
            answer = await container.call(self.compute)
            return f"200 {answer}"

        with self.over():
            async with self.container as container:
                await ask("")
                self.ledger.turn("model", "service")
                await container.refresh(self.get_model)
                self.ledger.turn("config", "db", "model", "service")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, "")
                    await checkpoint()
                    tasks.start_soon(
                        partial(container.refresh, self.get_config, policy="resource_preserving")
                    )
                    await checkpoint()
                    tasks.start_soon(container.refresh, self.get_config)
                await self.override(container, self.container.dependency_overrides, ask)
                await self.call(container, with_others=True)
                self.ledger.turn()

    async def worker(self) -> None:
        """A container whose worker handles a few messages, two at a time."""

        async def on_done(message: int, result: str) -> None:
            await checkpoint()
            self.ledger.done.append(str(message))

        with self.over():
            async with self.container as container:
                summary = await run_worker(
                    self.handle,
                    self.messages,
                    container=container,
                    concurrency=2,
                    on_done=on_done,
                    signals=(),
                )
        assert summary.done == 4

    async def again(self) -> None:
        """After all, everything starts and stops as if nothing had happened."""
        self.app.dependency_overrides.clear()
        self.container.dependency_overrides.clear()
        self.ledger.turn()
        async with self.app.router.lifespan_context(self.app) as state:
            self.state = dict(state or {})
            assert await self.ask("/answer") == ANSWER
        self.ledger.turn()
        async with self.container:
            await self.container.call(self.compute)


async def settle() -> None:
    for _ in range(SETTLING):
        await checkpoint()


class Gate:
    """Where a stream waits."""

    def __init__(self) -> None:
        self.reached, self.opened = anyio.Event(), anyio.Event()


# --- Cancellation


@dataclass(frozen=True)
class Way:
    """How a story is cancelled: by what, and how many steps after the first time again."""

    backend: str
    is_native: bool
    times: tuple[int, ...]


Story = Callable[[World], Awaitable[None]]
Around = Callable[[World], AbstractAsyncContextManager[None]]


def nothing(world: World) -> AbstractAsyncContextManager[None]:
    return nullcontext()


def tell(world: World, story: Story, way: Way, step: int, around: Around = nothing) -> int:
    """Tell a story, cancelled at a step if it is not 0; return how many steps it has had.

    What is `around` it is not cancelled.

    Everything that is wrong with it, and with another run after it, is raised.
    """
    steps, ledger = Steps(has_threads=world.has_threads), world.ledger
    length = 0

    async def main() -> None:
        nonlocal length
        with watched(ledger):
            before = {task.id for task in anyio.get_running_tasks()}
            async with anyio.create_task_group() as world.others:
                async with around(world):
                    first = steps.number
                    numbers = [first + step + after for after in way.times] if step else []
                    await (by_task if way.is_native else by_scopes)(
                        partial(story, world), steps, numbers, ledger
                    )
                    length = steps.number - first
                    steps.forget()
                await settle()
                left = [task.name for task in anyio.get_running_tasks() if task.id not in before]
                ledger.check(not left, f"{left} still run")
                world.others.cancel_scope.cancel()
            ledger.check_end(is_sequential=world.is_sequential)
            await world.again()
            ledger.check_end(is_sequential=world.is_sequential)

    ledger.clear()
    ledger.is_native = way.is_native
    steps.run(main, way.backend, seed=step)
    ledger.check_memory()
    assert not ledger.faults, f"cancelled at step {step}: " + "; ".join(ledger.faults)
    return length


async def by_task(
    story: Callable[[], Awaitable[None]], steps: Steps, numbers: list[int], ledger: Ledger
) -> None:
    """Tell a story in a task that is cancelled before these steps, as asyncio does it."""
    was_cancelled = False
    task = asyncio.ensure_future(story())

    def cancel() -> None:
        nonlocal was_cancelled
        was_cancelled = task.cancel() or was_cancelled

    for number in numbers:
        steps.plan(number, cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        error = task.exception()
        ledger.check(error is None, f"raised: {error!r}")
        ledger.check(error is not None or not was_cancelled, "the cancellation has got lost")


async def by_scopes(
    story: Callable[[], Awaitable[None]], steps: Steps, numbers: list[int], ledger: Ledger
) -> None:
    """Tell a story in scopes, of which the innermost is cancelled first."""
    scopes = [anyio.CancelScope() for _ in numbers]
    for number, scope in zip(numbers, scopes, strict=True):
        steps.plan(number, scope.cancel)

    async def task() -> None:
        with ExitStack() as stack:
            for scope in scopes[::-1]:
                stack.enter_context(scope)
            await story()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task, name="story")
    except Exception as error:
        ledger.faults.append(f"raised: {error!r}")


@contextmanager
def watched(ledger: Ledger) -> Iterator[None]:
    """Write down what is logged, left open, and reported by Python and the event loop."""
    logger = logging.getLogger("fastapi_lifespan_deps")
    firstiter, _ = hooks = sys.get_asyncgen_hooks()
    unraisable = sys.unraisablehook

    def begin(generator: Any) -> None:
        ledger.generators.append(generator)
        if firstiter is not None:
            firstiter(generator)

    def report(loop: object, context: dict[str, Any]) -> None:
        ledger.faults.append(f"asyncio: {context}")

    with suppress(RuntimeError):  # trio's loop has none
        asyncio.get_running_loop().set_exception_handler(report)
    logger.addHandler(ledger)
    sys.set_asyncgen_hooks(begin)
    sys.unraisablehook = lambda found: ledger.faults.append(f"unraisable: {found}")
    try:
        yield
    finally:
        logger.removeHandler(ledger)
        sys.set_asyncgen_hooks(*hooks)
        sys.unraisablehook = unraisable


# --- At every step

BY_TASK, BY_SCOPES, ON_TRIO = ("asyncio", True), ("asyncio", False), ("trio", False)
TIMES = {"once": (0,), "three times": (0, 2, 5)}
STORIES: dict[str, tuple[Story, Around]] = {
    "application": (World.application, nothing),
    "visit": (World.serve, World.serving),
    "container": (World.alone, nothing),
    "worker": (World.worker, nothing),
}
WAYS = {
    f"{backend} by {'task' if is_native else 'scopes'} {times}": Way(backend, is_native, after)
    for backend, is_native in (BY_TASK, BY_SCOPES, ON_TRIO)
    for times, after in TIMES.items()
}
# Each has a number, and begins with another step: most are left out, unless it is to be thorough.
CASES = list(enumerate(product(WAYS, STORIES, ("sequential", "concurrent"))))
IN_THREADS = list(enumerate(product(WAYS, ("application", "container"), ("sequential",))))
STRIDE = 47


def tell_often(world: World, name: str, way: str, first: int, stride: int) -> None:
    story, around = STORIES[name]
    length = tell(world, story, WAYS[way], 0, around)
    assert length > first % stride
    for step in range(1 + first % stride, length + 1, stride):
        tell(world, story, WAYS[way], step, around)


def case_name(case: tuple[int, Sequence[str]]) -> str:
    return "-".join(case[1])


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_a_story_that_is_cancelled_at_any_step_leaves_nothing_behind(
    case: tuple[int, Sequence[str]], is_thorough: bool
) -> None:
    number, (way, story, start) = case
    world = World(start, has_threads=False)
    tell_often(world, story, way, number, 1 if is_thorough else STRIDE)


@pytest.mark.no_cover
@pytest.mark.parametrize("case", IN_THREADS, ids=case_name)
def test_and_neither_does_one_with_threads(
    case: tuple[int, Sequence[str]], is_thorough: bool
) -> None:
    """They take their time, so what is done at a step is not always the same."""
    number, (way, story, start) = case
    world = World(start, has_threads=True)
    tell_often(world, story, way, 5 * number, 1 if is_thorough else 3 * STRIDE)


# --- What the check finds


async def hang(world: World) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.Event().wait()


async def leave_a_task(world: World) -> None:
    world.kept = asyncio.ensure_future(anyio.sleep(500))


async def leave_a_generator(world: World) -> None:
    world.kept = world.get_config()
    await anext(world.kept)


async def stop_in_the_wrong_order(world: World) -> None:
    first, second = world.ledger.enter("first", []), world.ledger.enter("second", [])
    world.ledger.end(first.record)
    world.ledger.end(second.record)


async def stop_what_is_needed(world: World) -> None:
    config = world.ledger.enter("config", [])
    model = world.ledger.enter("model", [config])
    world.ledger.end(config.record)
    world.ledger.end(model.record)


async def stop_twice(world: World) -> None:
    value = world.ledger.enter("value", [])
    world.ledger.end(value.record)
    world.ledger.end(value.record)


async def ignore_it(world: World) -> None:
    with suppress(asyncio.CancelledError):
        await anyio.sleep(1)


async def make_another_error_of_it(world: World) -> None:
    try:
        await anyio.sleep(1)
    except asyncio.CancelledError:
        raise ValueError from None


async def keep_a_value(world: World) -> None:
    world.kept = world.ledger.enter("value", [])
    world.ledger.end(world.kept.record)


async def drop_a_coroutine(world: World) -> None:
    hang(world)  # type: ignore[unused-coroutine]  # that is what is wrong


async def log_a_warning(world: World) -> None:
    logging.getLogger("fastapi_lifespan_deps").warning("something is wrong")


async def lose_a_message(world: World) -> None:
    world.ledger.given.append("0")
    world.ledger.begun.append("0")


WRONG: dict[Story, str] = {
    hang: "they wait for ever",
    leave_a_task: "still run",
    leave_a_generator: "config is alive in the end",
    stop_in_the_wrong_order: "to stop, not",
    stop_what_is_needed: "config is left before model is",
    stop_twice: "value is left twice",
    ignore_it: "the cancellation has got lost",
    make_another_error_of_it: "raised: ValueError",
    keep_a_value: "are kept in memory",
    drop_a_coroutine: "was never awaited",
    log_a_warning: "something is wrong",
    lose_a_message: "were begun",
}


@pytest.mark.parametrize("story", WRONG)
def test_what_is_wrong_with_a_story_is_found(story: Story) -> None:
    world = World("sequential", has_threads=False)
    with pytest.raises((AssertionError, Hang), match=WRONG[story]):
        tell(world, story, Way(*BY_TASK, TIMES["once"]), 3)
