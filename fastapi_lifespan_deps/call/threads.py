"""Threads: synchronous calls, from any thread but that of the event loop."""

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any

from anyio import CancelScope, Event, get_cancelled_exc_class

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.exceptions import LifespanNotRunning
from fastapi_lifespan_deps.live.asking import Standing, pinned_here, under
from fastapi_lifespan_deps.live.generation import Pin
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.live.tasks import call_soon

from .calls import Calls, Cancellable, check_thread, filled
from .calls import taken as arguments_of
from .leaving import Entered, Failures, begin, end, enter, in_order, leave
from .order import Entry, Order


class Answer:
    """What somebody waits for in a thread, who may be interrupted; no lock is left held."""

    def __init__(self) -> None:
        self.is_begun = False
        self.is_there = False
        self._told: SimpleQueue[None] = SimpleQueue()
        self._value: Any = None
        self._error: BaseException | None = None

    def tell(self, value: Any = None, error: BaseException | None = None) -> None:
        self._value, self._error = value, error
        self.is_there = True
        self._told.put(None)

    def wait(self) -> None:
        while not self.is_there:
            self._told.get()

    def result(self) -> Any:
        self.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # whose frames have us
        return self._value


class Taken:
    """What a call has taken, to be given back once.

    It is given back in any case when nobody has this any more: a call may be interrupted where no
    `finally` sees it.
    """

    pin: Pin | None = None
    owners: "Sequence[Owner]" = ()

    def __init__(self, run: Run) -> None:
        self._run = run

    def give_back(self) -> None:
        for owner in self.owners:
            owner.finish()
        pin = self.pin
        if pin is not None:
            self._run.calls.finish(pin)
            if not pin.generation.give_back(pin):
                call_soon(self._run.loop, self._run.live.release, pin)
            self.pin = None

    def __del__(self) -> None:
        self.give_back()


class Owner:
    """The task in the event loop that enters and leaves the asynchronous dependencies of a call.

    It is asked from the thread of the call, which waits for each answer. `entered` is where the
    call notes what it has entered.
    """

    def __init__(self, run: Run, taken: Taken) -> None:
        self._run = run
        self._asked: deque[Asked] = deque()
        self._entered: list[Entered] = []
        self._scope: CancelScope | None = None
        self._is_cut_off = False
        self._is_over = False
        self._death: BaseException | None = None
        self._wake: Event | None = None
        self._context = copy_context()  # that of the call
        taken.owners = (*taken.owners, self)
        run.calls.begin(self, self)
        self._soon(self._start)

    def __str__(self) -> str:
        return "a dependency of a synchronous call"

    def _soon(self, function: Callable[[], None]) -> None:
        schedule = getattr(self._run.loop, "call_soon_threadsafe", None)
        (schedule or self._run.loop.run_sync_soon)(function)

    def _start(self) -> None:
        if self._wake is not None:
            return
        self._wake = Event()
        tasks = self._run.live.supervisor.tasks
        tasks.spawn(self._answer, self._end, "a synchronous call", self._context)

    def enter(self, entry: Entry, arguments: dict[str, Any], entered: list[Entered]) -> Any:
        """Enter a dependency there, and wait for its value; what is to be left is noted."""

        async def entering() -> Any:
            value = await enter(entry, arguments, self._entered)
            if entry.kind is Kind.ASYNC_GENERATOR:
                entered.append(self._entered[-1])
            return value

        return self.ask(entering, can_be_cut_off=True)

    def leave(self, one: Entered, error: BaseException | None) -> None:
        """Leave a dependency there, and wait for its end."""

        async def leaving() -> None:
            self._entered.remove(one)
            await leave(one, error)

        self.ask(leaving)

    def finish(self) -> None:
        """Let the task end; what an interrupted call has not left is left then."""
        self._is_over = True
        with suppress(RuntimeError):  # the event loop has ended
            self._soon(self._notify)

    def cancel(self) -> None:
        """Cut off what is being entered, or will be."""
        self._is_cut_off = True
        if self._scope is not None:
            self._scope.cancel()

    def ask(self, function: Callable[[], Awaitable[Any]], *, can_be_cut_off: bool = False) -> Any:
        """Have something done there, and wait until it is, also if that is interrupted."""
        answer = Answer()
        asked = function, answer, can_be_cut_off
        try:
            self._asked.append(asked)
            self._soon(self._notify)
            return answer.result()
        except BaseException:
            if not answer.is_there:
                self._soon(partial(self._settle, asked))
                answer.wait()
            raise

    def _settle(self, asked: "Asked") -> None:
        """See that something is answered, though whoever has asked was interrupted."""
        _, answer, can_be_cut_off = asked
        if answer.is_begun:
            if can_be_cut_off:
                self.cancel()
        elif asked not in self._asked or can_be_cut_off:  # it was not asked yet, or not begun
            with suppress(ValueError):
                self._asked.remove(asked)
            if not answer.is_there:
                answer.tell(error=InterruptedError())
        else:
            self._notify()

    def _notify(self) -> None:
        if self._death is not None:
            self._refuse(self._death)
        self._start()  # its maker may have been interrupted
        assert self._wake is not None
        self._wake.set()

    def _refuse(self, error: BaseException) -> None:
        while self._asked:
            self._asked.popleft()[1].tell(error=error)

    def _end(self) -> None:
        self._death = self._death or LifespanNotRunning(
            "its event loop ends", "Let calls end before the end of the container's block."
        )
        self._refuse(self._death)
        self._run.calls.finish(self)

    async def _answer(self) -> None:
        cancelled: BaseException | None = None
        # What is being entered can be cut off; what has been entered needs its end undisturbed.
        with CancelScope() as self._scope, CancelScope(shield=True) as shield:
            if self._is_cut_off:
                self._scope.cancel()
            try:
                while not self._is_over:
                    assert self._wake is not None
                    await self._wake.wait()
                    self._wake = Event()
                    while self._asked:
                        self._asked[0][1].is_begun = True
                        await self._do(*self._asked.popleft(), shield)
            except get_cancelled_exc_class() as error:
                # by a dependency that it holds, whose scope it is in, or at the loop's end
                cancelled = error
            failures = Failures()
            for one in in_order(self._entered):
                try:
                    await leave(one, failures.thrown or cancelled)
                except BaseException as error:
                    failures.note(error)
                    logger.error("A dependency of a call failed to end", exc_info=error)
            if cancelled is not None:
                self._entered.clear()
                failures.own = cancelled
                failures.settle("The call", is_cancelled=False)
                self._death = failures.result()

    async def _do(
        self,
        function: Callable[[], Awaitable[Any]],
        answer: Answer,
        can_be_cut_off: bool,
        shield: CancelScope,
    ) -> None:
        shield.shield = not can_be_cut_off
        try:
            value = await function()
        except BaseException as error:
            shield.shield = True
            if self._is_cut_off and isinstance(error, get_cancelled_exc_class()):
                error = LifespanNotRunning(
                    "it was left while a dependency of a synchronous call was entered, which took "
                    "too long",
                    "Let calls end before the end of the container's block.",
                )
            answer.tell(error=error)
        else:
            shield.shield = True
            answer.tell(value)


Asked = tuple[Callable[[], Awaitable[Any]], Answer, bool]

# What is done with the function, in the thread of the call; it may yield.
Steps = Callable[[tuple[Any, ...], dict[str, Any]], Generator[Any, None, Any]]


def call_in_thread(
    at: Standing, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a synchronous function in this thread, with its dependencies.

    The synchronous ones are entered and left in this thread, in this context; asynchronous ones
    in the event loop.
    """

    def once(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
        return function(*args, **kwargs)
        yield  # it is a generator all the same

    try:
        next(steps(at, function, once, args, kwargs))
    except StopIteration as stop:
        return stop.value


def steps(
    at: Standing,
    function: Callable[..., Any],
    body: Steps,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    closer: Cancellable | None = None,
) -> Generator[Any, None, Any]:
    """The steps of a synchronous call, each taken in the thread that asks for it.

    `closer` ends one that waits to be asked, when its container is left.
    """
    run, calls = at.run, at.run.calls
    calls.check_open()
    check_thread(run)
    taken = Taken(run)
    try:
        order, pin = _pinned(taken, run, at, function, kwargs)
        inner = Standing(run, at.overrides_provider, pin, under.get(None))
        calls.begin(pin, closer)
        token = under.set(inner)
        try:
            slots = calls.slots(order, inner, function, args, kwargs)
            if not order.entries:
                return (yield from body(*filled(order, slots, function, args, kwargs)))
            fill = partial(filled, order, slots, function, args, kwargs)
            return (yield from _called(taken, run, order, slots, body, fill))
        finally:
            under.reset(token)
    finally:
        taken.give_back()


def _pinned(
    taken: Taken, run: Run, at: Standing, function: Callable[..., Any], kwargs: dict[str, Any]
) -> tuple[Order, Pin]:
    calls: Calls = run.calls
    outer = at.pin or pinned_here(run)
    if outer is None and not run.overrides.have_changed():
        generation = run.current
        order = calls.order(generation, at.overrides_provider, function, kwargs)
        taken.pin = pin = Pin()
        pin.holder, pin.generation, pin.run, pin.more = order.holder, generation, run, None
        if not order.takes_container and generation.take(pin):
            return order, pin
        taken.pin = None
    owner = Owner(run, taken)

    async def pinning() -> tuple[Order, Pin]:
        found = await calls.pin(outer, at.overrides_provider, function, kwargs)
        taken.pin = found[1]
        return found

    found: tuple[Order, Pin] = owner.ask(pinning, can_be_cut_off=True)
    return found


def _called(
    taken: Taken,
    run: Run,
    order: Order,
    slots: list[Any],
    body: Steps,
    fill: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
) -> Generator[Any, None, Any]:
    stay = _Stay(run, order, taken)
    result = None
    try:
        for entry in order.entries:
            slots.append(stay.enter(entry, arguments_of(entry.arguments, slots)))
        result = yield from body(*fill())
    except GeneratorExit:  # nobody wants more of it, which is no error
        pass
    except BaseException as error:
        stay.failures.own = error
    stay.leave()
    stay.failures.check()
    return result


class _Stay:
    """What a call in a thread has entered, here and in the event loop."""

    def __init__(self, run: Run, order: Order, taken: Taken) -> None:
        is_async = any(entry.kind.is_async for entry in order.entries)
        self._owner = Owner(run, taken) if is_async else None
        self._entered: list[Entered] = []
        self.failures = Failures()

    def enter(self, entry: Entry, arguments: dict[str, Any]) -> Any:
        if entry.kind.is_async:
            assert self._owner is not None
            return self._owner.enter(entry, arguments, self._entered)
        if entry.kind is Kind.GENERATOR:
            return begin(entry, arguments, self._entered)
        return entry.call(**arguments)

    def leave(self) -> None:
        for one in in_order(self._entered):
            try:
                self._leave(one)
            except BaseException as error:
                self.failures.note(error)
                if getattr(one.generator, "gi_frame", None) is not None:
                    self._leave(one)  # an interruption came before it was resumed

    def _leave(self, one: Entered) -> None:
        if one.entry.kind is Kind.ASYNC_GENERATOR:
            assert self._owner is not None
            self._owner.leave(one, self.failures.thrown)
        else:
            end(one.generator, self.failures.thrown)
