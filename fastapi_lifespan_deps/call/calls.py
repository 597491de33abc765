"""Calls: functions are called with their dependencies, each call pinned to a generation."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import iscoroutine
from typing import Any, Protocol

import anyio
from anyio import CancelScope, CapacityLimiter, current_effective_deadline, get_cancelled_exc_class

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.absence import not_known
from fastapi_lifespan_deps.declare.plan import OverridesProvider
from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.exceptions import (
    LifespanDependencyError,
    LifespanNotRunning,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    name_of,
)
from fastapi_lifespan_deps.live.asking import Standing, pinned_here, under
from fastapi_lifespan_deps.live.entering import in_thread
from fastapi_lifespan_deps.live.generation import Generation, Pin, labels
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.live.tasks import call_soon, current_loop, current_task, finished

from .health import HealthChecks
from .leaving import Entered, Failures, enter, in_order, leave
from .order import Arguments, Order, bound_arguments, injected_names, order_of, rebound

# How long, in seconds, running calls may go on when their container is left.
GRACE = 10.0

NONE: frozenset[str] = frozenset()

# How many synchronous functions may run at once in worker threads: anyio's own number.
THREADS = 40


class Cancellable(Protocol):
    """What can be told to end: a cancel scope, or a stream that waits for who takes its items."""

    def cancel(self) -> None: ...


class Calls:
    """The calls of a run, from its start to its end.

    `container` makes what a function gets that takes the container.
    """

    def __init__(self, run: Run, container: Callable[[Standing], Any]) -> None:
        self._run = run
        self._container = container
        self.checks = HealthChecks(run)
        self._lock = threading.Lock()
        self._running: dict[object, Cancellable | None] = {}  # None: in a thread, which goes on
        # of their own: what functions wait for may need one of anyio's
        self._threads = CapacityLimiter(THREADS)
        # Its class is that of the event loop's kind, which is found once.
        self._scope: Callable[[], CancelScope] = type(CancelScope())
        self._is_closing = False
        self._listeners: list[Callable[[], None]] = []
        self._idle = anyio.Event()

    # Open and close

    def check_open(self) -> None:
        """Raise unless calls may begin here and now."""
        self._run.live.supervisor.tasks.check_process()
        self._check_not_closing()

    def _check_not_closing(self) -> None:
        if self._is_closing:
            raise LifespanNotRunning("it is being left", "Call before the end of its block.")

    def check_ready(self, at: Standing, function: Callable[..., Any]) -> None:
        """Raise unless a function can be called here and now, or when a refresh is over."""
        self._run.live.supervisor.tasks.check_loop()
        self.check_open()
        generation = self._run.current
        order = self.order(generation, at.overrides_provider, function, {})
        with suppress(UnavailableLifespanDependency):
            self._values(generation, at, order, function)

    async def ready(self, at: Standing, function: Callable[..., Any]) -> None:
        """Wait until what a function needs is not being refreshed."""
        while True:
            generation = self._run.current
            order = self.order(generation, at.overrides_provider, function, {})
            try:
                for key in order.keys:
                    generation.value(at.overrides_provider, key)
            except UninitializedLifespanDependency as error:
                is_coming = isinstance(error, UnavailableLifespanDependency)
                if not is_coming or not await self._run.refresher.over():
                    return  # let the call say so
            else:
                return

    def begin(self, pin: object, scope: "Cancellable | None") -> None:
        with self._lock:
            self._check_not_closing()
            self._running[pin] = scope

    def finish(self, pin: object) -> None:
        with self._lock:
            self._running.pop(pin, None)  # it may be said twice
            is_last = self._is_closing and not self._running
        if is_last:
            call_soon(self._run.loop, self._idle.set)

    @contextmanager
    def telling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Tell a listener when these are closed: no more calls begin."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def close(self) -> None:
        """Let running calls end; after a time cancel them, and wait until they were left.

        Checks of health are cut off, and not waited for.
        """
        self.checks.close()
        for listener in self._listeners:
            listener()
        with self._lock:
            self._is_closing = True
            if not self._running:
                return
        cancelled: BaseException | None = None
        try:
            with anyio.move_on_after(GRACE, shield=True):
                return await self._idle.wait()
        except get_cancelled_exc_class() as error:  # asyncio's own: the rest is to be done, too
            cancelled = error
        logger.warning(
            "Calls are cancelled, for their container is left: %s", labels(self._running)
        )
        for scope in list(self._running.values()):
            if scope is not None:
                scope.cancel()
        await finished(self._idle)
        if cancelled is not None:
            raise cancelled

    # Call

    def order(
        self,
        generation: Generation,
        overrides_provider: OverridesProvider,
        function: Callable[..., Any],
        explicit: Mapping[str, Any],
    ) -> Order:
        """The order of a function's dependencies, worked out once for a plan."""
        plan = generation.plan
        target = getattr(function, "__func__", function)
        names = NONE
        if explicit:
            names = frozenset(name for name in injected_names(function) if name in explicit)
        key = id(overrides_provider), names, target is function
        try:
            found: Order = plan.orders[target][key]
            return found
        except (KeyError, TypeError):  # of some, nothing can be known weakly
            overrides = plan.overrides.get(overrides_provider, {})
            order = order_of(function, overrides_provider, overrides, names)
            with suppress(TypeError):
                plan.orders.setdefault(target, {})[key] = order
            return order

    async def pin(
        self, outer: Pin | None, overrides_provider: OverridesProvider, function: Any, explicit: Any
    ) -> tuple[Order, Pin]:
        """Pin a call, as its outer one is, or to the values that are current."""
        if self._may_have_changed(outer):
            await self._run.overrides.apply()
        return self._pinned(outer, overrides_provider, function, explicit)

    def _may_have_changed(self, outer: Pin | None) -> bool:
        """Whether the overrides may have, of those that are not bound to an outer call."""
        run = self._run
        return (
            (outer is None or outer.has_asked)
            and (bool(run.overrides_provider.dependency_overrides) or run.overrides.must_compare)
            and run.overrides.have_changed()
        )

    def _pinned(
        self, outer: Pin | None, overrides_provider: OverridesProvider, function: Any, explicit: Any
    ) -> tuple[Order, Pin]:
        run = self._run
        if outer is None or outer.has_asked:
            generation = run.current
            order = self.order(generation, overrides_provider, function, explicit)
            pin = Pin.of(order.holder, generation, run)
        else:
            order = self.order(outer.generation, overrides_provider, function, explicit)
            pin = run.live.pin_beside(outer, order.holder)
        if order.takes_container:
            run.live.give_everything(pin)
        return order, pin

    async def call(
        self,
        at: Standing,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        invoke: "Invoke | None" = None,
    ) -> Any:
        """Call a function once, in this task; sync ones in a worker thread.

        `invoke` is how, if not so.
        """
        self._run.check_here()
        if self._is_closing:
            self._check_not_closing()
        outer = at.pin or pinned_here(self._run)
        if self._may_have_changed(outer):
            await self._run.overrides.apply()
        order, pin = self._pinned(outer, at.overrides_provider, function, kwargs)
        inner = Standing(at.run, at.overrides_provider, pin, under.get(None))
        token = under.set(inner)
        try:
            if invoke is None and order.kind is not Kind.COROUTINE:
                invoke = invoking(function, order.kind, self._threads)
            with self._scope() as scope:
                self.begin(pin, scope)
                try:
                    return await self._called(order, inner, function, invoke, args, kwargs)
                finally:
                    self.finish(pin)
            raise LifespanNotRunning(
                f"it was left while `{name_of(function)}` ran, which took too long to end",
                "Let calls end before the end of the container's block.",
            )
        finally:
            under.reset(token)
            if not pin.generation.give_back(pin):
                self._run.live.release(pin)

    def _values(
        self, generation: Generation, at: Standing, order: Order, function: Callable[..., Any]
    ) -> list[Any]:
        try:
            return generation.values_for(order.holder, at.overrides_provider, order.keys)
        except UninitializedLifespanDependency:
            for key in order.keys:
                if key.provider not in generation.plan.behind:
                    raise not_known(key.provider, function) from None
            raise

    def slots(
        self,
        order: Order,
        at: Standing,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[Any]:
        """What parameters are filled from; what is entered will be added."""
        assert at.pin is not None
        # looked up before anything is entered
        slots = self._values(at.pin.generation, at, order, function)
        if order.given:
            bound = bound_arguments(function, args, kwargs, dict(order.arguments))
            slots += [bound[name] for name in order.given]
        if order.takes_container:
            slots.append(self._container(at))
        return slots

    async def _called(
        self,
        order: Order,
        at: Standing,
        function: Callable[..., Any],
        invoke: "Invoke | None",
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        slots = self.slots(order, at, function, args, kwargs)
        if not order.entries:
            return await begun(function, invoke, *filled(order, slots, function, args, kwargs))
        entered: list[Entered] = []
        failures, result = Failures(), None
        # Opened before the first is entered, and closed after the last was left: they may open
        # scopes of their own, and scopes must nest.
        with self._scope() as scope:
            try:
                for entry in order.entries:
                    slots.append(await enter(entry, taken(entry.arguments, slots), entered))
                arguments = filled(order, slots, function, args, kwargs)
                result = await begun(function, invoke, *arguments)
            except BaseException as error:
                failures.own = error
            scope.shield = True
            for one in in_order(entered):
                try:
                    await leave(one, failures.thrown)
                except BaseException as error:
                    failures.note(error)
        if failures.thrown is not None:
            failures.settle(f"`{name_of(function)}`", is_cancelled=is_cancelled())
            failures.check()
        return result


Invoke = Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


def begun(
    function: Callable[..., Any],
    invoke: Invoke | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Awaitable[Any]:
    """The call of a function, to be awaited: a coroutine function is called as it is."""
    return function(*args, **kwargs) if invoke is None else invoke(args, kwargs)


def is_cancelled() -> bool:
    """Whether the task is cancelled that we are in, by whoever has started it."""
    if current_effective_deadline() == -math.inf:
        return True
    task = current_task()
    return isinstance(task, asyncio.Task) and task.cancelling() > 0


def taken(arguments: Arguments, slots: list[Any]) -> dict[str, Any]:
    return {name: slots[index] for name, index in arguments}


def filled(
    order: Order,
    slots: list[Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the function: the caller's, and what is injected."""
    injected = taken(order.arguments, slots)
    if order.rebinds:
        return rebound(function, args, kwargs, injected)
    return args, {**injected, **kwargs} if kwargs else injected


def invoking(
    function: Callable[..., Any], kind: Kind, threads: CapacityLimiter | None = None
) -> Invoke:
    """How a function is called once, in one of these threads; a stream is refused."""
    if kind is Kind.COROUTINE:
        return lambda args, kwargs: function(*args, **kwargs)
    if kind is Kind.FUNCTION:

        async def in_a_thread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = await in_thread(lambda: function(*args, **kwargs), limiter=threads)
            # a lambda around an async function, say: nobody else would await it
            return await value if iscoroutine(value) else value

        return in_a_thread
    raise LifespanDependencyError(
        f"`{name_of(function)}` is a generator function, and cannot be called once. Iterate over "
        "what `container.inject` makes of it; enter a dependency by `container.enter`."
    )


def is_in_loop(run: Run) -> bool:
    """Whether we are in the thread of the event loop, or in the loop itself."""
    return current_loop() is run.loop or threading.get_ident() == run.thread


def check_thread(run: Run) -> None:
    """Raise in the thread of the event loop: waiting for it there would never end."""
    if is_in_loop(run):
        raise LifespanNotRunning(
            "this is the thread of its event loop, which a synchronous call would block",
            "Write `await container.call(function)`, or call in a worker thread.",
        )
