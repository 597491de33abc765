"""Run: one startup-to-shutdown of an application, and who does what in it."""

import warnings
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import get_ident
from typing import Any, Literal, Protocol, Self, get_args

import anyio
import anyio.from_thread
from starlette.types import Scope

from fastapi_lifespan_deps._compat import overrides_provider_of
from fastapi_lifespan_deps.absence import unknown_place
from fastapi_lifespan_deps.declare.collect import Route, Source, Sources
from fastapi_lifespan_deps.declare.doubts import doubts
from fastapi_lifespan_deps.declare.options import in_seconds
from fastapi_lifespan_deps.declare.params import SCOPE_KEY, Key, Marker
from fastapi_lifespan_deps.declare.plan import OverridesProvider
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.events import Events, Listener, check_listener
from fastapi_lifespan_deps.exceptions import combined
from fastapi_lifespan_deps.see.providers import spans_of
from fastapi_lifespan_deps.see.summary import Summary
from fastapi_lifespan_deps.see.watch import Watch

from .generation import Generation, Pin
from .overrides import OverridesInForce
from .refresh import Refresher
from .supervisor import Supervisor
from .tasks import current_loop, this_process
from .values import LiveValues

LifespanStart = Literal["sequential", "concurrent"]


# Stands for an option that is not given, where None means something.
UNCHANGED: Any = ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What an application, or a container by itself, asks of each of its runs."""

    is_concurrent: bool = False
    listeners: tuple[Listener, ...] = ()
    slow_after: float | None = 10.0  # seconds
    observers: "tuple[Observer, ...]" = ()  # told of each run when it is made

    def changed(
        self,
        lifespan_start: LifespanStart | None = None,
        on_lifespan_event: Listener | None = None,
        slow_after: float | timedelta | None = UNCHANGED,
    ) -> Self:
        """These, but for what is given; raise if it makes no sense."""
        changes: dict[str, Any] = {}
        if lifespan_start is not None:
            if lifespan_start not in get_args(LifespanStart):
                known = " or ".join(map(repr, get_args(LifespanStart)))
                raise ValueError(f"lifespan_start={lifespan_start!r}: use {known}")
            changes["is_concurrent"] = lifespan_start == "concurrent"
        if on_lifespan_event is not None:
            check_listener(on_lifespan_event)
            changes["listeners"] = (on_lifespan_event,)
        if slow_after is not UNCHANGED:
            seconds = None if slow_after is None else in_seconds(slow_after)
            if seconds is not None and not seconds > 0:
                raise ValueError(
                    f"slow_after={slow_after!r}: give seconds, more than 0, a timedelta, or None"
                )
            changes["slow_after"] = seconds
        return replace(self, **changes)

    def observed_by(self, observer: "Observer") -> Self:
        """These, with one more observer."""
        return replace(self, observers=(*self.observers, observer))


class Binder(Protocol):
    """What makes routes take their values; see serve/binding.py."""

    def bind(self, route: Route, /) -> None: ...


class Run:
    """One startup-to-shutdown, of an application or of a container by itself.

    `identity` tells whose run it is, `overrides_provider` whose overrides hold, and `application`
    is what a provider gets that takes it, if there is one. `binder` makes what binds routes.
    """

    def __init__(
        self,
        identity: object,
        overrides_provider: OverridesProvider,
        application: Any,
        options: RunOptions,
        *,
        binder: Callable[[Any], "Binder"] | None = None,
    ) -> None:
        self.identity = identity
        self.overrides_provider = overrides_provider
        self._binder = binder
        self.events = Events(*options.listeners)
        spans = spans_of(application)
        self.events.listen(spans.hear)
        supervisor = Supervisor(
            self.events, Watch(options.slow_after), spans, concurrent=options.is_concurrent
        )
        self.live = LiveValues(application, supervisor)
        self.events.listen(Summary(self.live, is_concurrent=options.is_concurrent))
        self._sources = Sources()
        planning = Planning(
            overrides_provider, self._sources, has_application=application is not None
        )
        self.overrides = OverridesInForce(planning, self.live, self.events)
        self.refresher = Refresher(self.live, self.overrides, self.events)
        self.loop = self.live.supervisor.tasks.loop
        self.thread = self.live.supervisor.tasks.thread
        self._is_trio = not isinstance(self.loop, AbstractEventLoop)
        # whether the event loop is running; if that is in our thread, we are in it (trio: always)
        self.is_running: Callable[[], bool] = getattr(self.loop, "is_running", lambda: True)
        self._since = anyio.current_time()  # when it began to start, or to stop
        self.is_over = False
        self.calls: Any = None  # it is further down the data flow: call/calls.py
        for observer in options.observers:
            observer(self)

    @property
    def current(self) -> Generation:
        """What requests that arrive now are pinned to."""
        return self.live.current

    @property
    def serves_routes(self) -> bool:
        """Whether it is that of an application that serves, and not of a container by itself."""
        return self._binder is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the application has scope "lifespan"."""
        return not (self.current.plan.resolved or self.live.originals.resolved)

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was started here, and not before a fork."""
        return self.live.supervisor.tasks.process is this_process.token

    def is_here(self) -> bool:
        """Whether we are in the event loop of this run."""
        return self.loop is current_loop()

    def check_here(self) -> None:
        """Raise unless we are in the event loop of this run. It costs as little as can be."""
        tasks = self.live.supervisor.tasks
        tasks.check_process()
        if self._is_trio or get_ident() != self.thread or not self.is_running():
            tasks.check_loop()

    def covers(self, router: Any) -> bool:
        """Whether the routes of an application's router belong to this run."""
        return router.dependency_overrides_provider in self.current.plan.overrides

    async def start(
        self,
        sources: Iterable[Source],
        others: Iterable[Source] = (),
        unstarted: Iterable[Source] = (),
    ) -> None:
        """Start what these declare and does not run yet; `others` are remembered.

        The options that `unstarted` ones declare hold, too.

        Called again when the application's own startup is over: it may have added routes.
        Raise the first error, of a declaration or of a start.
        """
        for instance in self.live.instances.values():
            if instance.died_of is not None:
                raise instance.died_of.death()
        self._sources.unstarted += unstarted
        if self._sources.update(sources, others) or self.overrides.have_changed():
            await self.live.supervisor.tasks.detach(self._start, "startup").result()

    async def _start(self) -> None:
        async with self.live.changing:
            plan = self.overrides.plan()
            for error in plan.errors:
                raise error
            if self._binder is not None:
                binder = self._binder(self.overrides_provider)
                for source in self._sources:
                    if isinstance(source, Route):
                        binder.bind(source)
            await self.live.change(plan, all_or_none=True)
            self.overrides.enforce(plan.overrides)

    def serve(self) -> None:
        """Note that the application serves from now on: values may be refreshed."""
        for doubt in doubts(self._sources, self.current.plan):
            warnings.warn(doubt, stacklevel=1)
        self.live.phase = "serving"
        self.events.tell("up", seconds=anyio.current_time() - self._since)

    def begin_to_stop(self) -> None:
        """Note that the application serves no more."""
        self.live.phase = "stopping"
        self.live.supervisor.spans.shut_down()
        self._since = anyio.current_time()

    def end(self, failure: BaseException | None) -> None:
        """Note that everything has stopped; `failure` is raised to whoever runs the application."""
        self.is_over = True
        seconds = anyio.current_time() - self._since
        self.events.tell("down", seconds=seconds, error=failure, is_raised=True)

    def follow(self, pin: Pin, scope: Scope) -> Pin:
        """The pin of a scope that is a copy of that of a pinned request, as middleware makes one.

        So the values of the route are held that this copy has come to.
        """
        if get_ident() == self.thread:
            return self.live.following(pin, scope)
        return anyio.from_thread.run_sync(self.live.following, pin, scope)

    async def marked_value(self, pin: Pin | None, marker: Marker, scope: Scope) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound.

        Without a pin it is the current value, which nobody keeps alive for who asks.
        """
        if not (marker.use_cache or marker.place):
            raise unknown_place(marker.provider)
        key = Key(marker.provider, marker.place)
        generation = self.current if pin is None else pin.generation
        if pin is None or (overrides_provider_of(scope), key) not in generation.plan.resolved:
            # FastAPI takes the override that is there when it gets to it. If that was set after
            # the request arrived, the request is pinned to its values as well.
            await self.overrides.apply()
            generation = self.current
            if pin is not None and generation not in pin.generations:
                pin.extend().others += (generation,)
                generation.pins[pin] = None
        return generation.value(overrides_provider_of(scope), key)


Observer = Callable[[Run], object]


class Runs:
    """The runs of an application that are alive: several, if it is started again meanwhile."""

    def __init__(self) -> None:
        self.only: Run | None = None
        """The run that is alive, if there was no other one beside it: it serves every request."""

        self.have_values = False
        """Whether one has, or has had, lifespan dependencies. Without any, all is as in FastAPI."""

        self._alive: list[Run] = []
        self._closing: list[Run] = []

    def open(self, run: Run) -> bool:
        """Let requests find the run. Return whether they did not already."""
        is_new = run not in self._alive
        if is_new:
            self.only = None if self._alive else run
            self._alive.append(run)
        self.have_values = self.have_values or not run.is_empty
        return is_new

    def leave(self, run: Run) -> None:
        """Let requests find the run no more."""
        if run in self._alive:
            self._alive.remove(run)
        if run is self.only:
            self.only = None

    async def close(self, run: Run) -> None:
        """Let requests find the run no more, and stop what is left of it."""
        self.leave(run)
        self._closing.append(run)
        try:
            await run.live.close()
        finally:
            self._closing.remove(run)

    def find(self, scope: Scope | None = None) -> Run | None:
        """The run in this event loop. Of several it is the one that the lifespan state in `scope`
        names; the latest if that names none, or one whose application has passed the request on.
        """
        named: Run | None = None
        if scope is not None and self.only is None:
            named = (scope.get("state") or {}).get(SCOPE_KEY)
        for run in reversed(self._alive):
            is_named = named is None or named is run or named.identity is not run.identity
            if is_named and run.is_here():
                return run
        return None

    @property
    def latest_here(self) -> Run | None:
        """The run in this event loop, also while it is closing."""
        here = [run for run in (*self._closing, *self._alive) if run.is_here()]
        return here[-1] if here else None

    # What there is to say where a request finds none (absence.py)

    @property
    def are_there(self) -> bool:
        return bool(self._alive)

    @property
    def are_here(self) -> bool:
        return self.find() is not None

    @property
    def are_empty(self) -> bool:
        run = self.find()
        return run is not None and run.is_empty

    @property
    def are_elsewhere(self) -> bool:
        """Whether there are some, closing ones among them, in other event loops only."""
        return bool(self._closing or self._alive) and self.latest_here is None


class Leaving(AbstractAsyncContextManager[None]):
    """Takes every step on the way out, whatever happened inside and in the other steps.

    Not by contextlib: an exception that is frozen does not get through its managers.
    """

    def __init__(
        self, run: Run | None, steps: Callable[[], Iterable[Callable[[], Awaitable[None]]]]
    ) -> None:
        self._run = run
        self._steps = steps

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self, kind: object, failure: BaseException | None, traceback: object
    ) -> None:
        errors = []
        for step in self._steps():
            try:
                await step()
            except BaseException as error:
                errors.append(error)
        is_serving = self._run is not None and self._run.live.phase != "starting"
        found = combined(failure, errors, is_serving=is_serving)
        if found is not None and found is not failure:
            try:
                raise found
            finally:
                del found, failure, errors  # see `Supervisor.close`
