"""Run: one startup-to-shutdown of an application, and who does what in it."""

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

from starlette.types import Scope

from ._compat import overrides_provider
from .binding import BoundCall, bind
from .collect import Function, Route, Sources
from .exceptions import UninitializedLifespanDependency
from .generation import Generation, Pin
from .instance import ended_by_itself
from .live import LiveValues
from .overrides import OverridesInForce
from .params import Key, Marker
from .refresh import Refresher
from .tasks import current_loop


class Run:
    """One startup-to-shutdown of an application."""

    def __init__(self, app: Any, *, concurrent: bool = False) -> None:
        self.app = app
        self.live = LiveValues(app, concurrent=concurrent)
        self._sources = Sources()
        self.overrides = OverridesInForce(app, self._sources, self.live)
        self.refresher = Refresher(self.live, self.overrides)
        self.thread = get_ident()
        self._loop = current_loop()
        # whether the event loop is running; if that is in our thread, we are in it (trio: always)
        self.is_running: Callable[[], bool] = getattr(self._loop, "is_running", lambda: True)

    @property
    def current(self) -> Generation:
        """What requests that arrive now are pinned to."""
        return self.live.current

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the application has scope "lifespan"."""
        return not (self.current.plan.resolved or self.live.originals.resolved)

    def is_here(self) -> bool:
        """Whether we are in the event loop of this run."""
        return self._loop is current_loop()

    def covers(self, router: Any) -> bool:
        """Whether the routes of an application's router belong to this run."""
        return router.dependency_overrides_provider in self.current.plan.overrides

    async def start(
        self, sources: Iterable[Route | Function], others: Iterable[Function] = ()
    ) -> None:
        """Start what these declare and does not run yet; `others` are remembered.

        Called again when the application's own startup is over: it may have added routes.
        Raise the first error, of a declaration or of a start.
        """
        for instance in self.live.instances.values():
            if instance.died_of is not None:
                raise ended_by_itself(instance.died_of)
        if self._sources.update(sources, others) or self.overrides.have_changed():
            await self.live.supervisor.tasks.detach(self._start, "startup").result()

    async def _start(self) -> None:
        async with self.live.changing:
            plan = self.overrides.plan()
            for error in plan.errors:
                raise error
            bound: dict[tuple[int, int], BoundCall] = {}
            for source in self._sources:
                if isinstance(source, Route):
                    bind(source, bound)
            await self.live.change(plan, all_or_none=True)
            self.overrides.enforce(plan.overrides)

    def serve(self) -> None:
        """Note that the application serves from now on: values may be refreshed."""
        self.live.phase = "serving"
        if not self.is_empty:
            self.refresher.keep_refreshing()

    async def marked_value(self, pin: Pin, marker: Marker, scope: Scope) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound."""
        if marker.use_cache or marker.place:
            key = Key(marker.provider, marker.place)
            generation = pin.generation
            if (overrides_provider(scope), key) not in generation.plan.resolved:
                # FastAPI takes the override that is there when it gets to it. If that was set
                # after the request arrived, the request is pinned to its values as well.
                await self.overrides.apply()
                generation = self.current
                if generation not in pin.generations:
                    pin.others += (generation,)
                    generation.pins[pin] = None
            return generation.value(overrides_provider(scope), key)
        raise UninitializedLifespanDependency(
            marker.provider,
            "it has use_cache=False, and its place is not known here: the route, or another one "
            "of the same router, was added while the application served, or the declaration "
            "stands in a dependency override",
            "Add routes before the application starts, or use the default use_cache=True.",
        )
