"""Run: one startup-to-shutdown of an application; what it declares, and what overrides that."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import get_ident
from typing import Any

from starlette.types import Scope

from ._compat import exit_stack, overrides_provider
from .binding import BoundCall, bind
from .collect import Function, Route
from .exceptions import UninitializedLifespanDependency
from .generation import Generation
from .instance import ApplicationStops, ended_by_itself
from .live import LiveValues
from .params import Key, Marker
from .plan import Declaration, Domain, Overrides, Plan, Planner
from .refresh import Refresher
from .tasks import DetachedTask, current_loop, logger


class Run(LiveValues):
    """One startup-to-shutdown of an application."""

    def __init__(
        self,
        app: Any,
        collect: Callable[[], Iterable[Route | Function]],
        *,
        concurrent: bool = False,
    ) -> None:
        super().__init__(app, concurrent=concurrent)
        self.thread = get_ident()
        self._loop = current_loop()
        # whether the event loop is running; if that is in our thread, we are in it (trio: always)
        self.is_running: Callable[[], bool] = getattr(self._loop, "is_running", lambda: True)
        self.refresher = Refresher(self, self.apply_overrides, self._follow_overrides)
        self._collect = collect
        self._sources: list[Route | Function] = []
        self._others: list[Function] = []
        self._planner = Planner()
        self._overriding: DetachedTask[None] | None = None
        self._applying: dict[Domain, Overrides] | None = None
        # The overrides of the current generation; None while others are being applied.
        self._in_force: Mapping[Domain, Overrides | None] = {}
        # Whether more than a look at the application's overrides tells that they have changed:
        # some are in force, or there are mounted applications.
        self.looks_closer = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the application has scope "lifespan"."""
        return not (self.current.plan.resolved or self.originals.resolved)

    def is_here(self) -> bool:
        """Whether we are in the event loop of this run."""
        return self._loop is current_loop()

    def covers(self, router: Any) -> bool:
        """Whether the routes of an application's router belong to this run."""
        return router.dependency_overrides_provider in self.current.plan.overrides

    # Start

    async def start(self, others: Iterable[Function] = ()) -> None:
        """Collect what the application declares, and others, and start what does not run yet.

        Called again when the application's own startup is over: it may have added routes.
        Raise the first error, of a declaration or of a start.
        """
        for instance in self.instances.values():
            if instance.casualty is not None:
                raise ended_by_itself(instance.casualty)
        self._others += others
        known = {id(source.target) for source in self._sources}
        self._sources = [*self._collect(), *self._others]
        is_new = not known or any(id(source.target) not in known for source in self._sources)
        if is_new or self.overrides_changed():
            await self.supervisor.tasks.detach(self._start, "startup").result()

    async def _start(self) -> None:
        async with self.changing:
            plan = self._plan_anew()
            for error in plan.errors:
                raise error
            bound: dict[tuple[int, int], BoundCall] = {}
            for source in self._sources:
                if isinstance(source, Route):
                    bind(source, bound)
            await self.change(plan, all_or_none=True)
            self._enforce(plan.overrides)

    def serve(self) -> None:
        """Note that the application serves from now on: values may be refreshed."""
        self.phase = "serving"
        self.refresher.keep_refreshing()

    # Override

    def overrides_changed(self) -> bool:
        """Whether overrides are not what the current generation was made for."""
        in_force = self._in_force.items()
        return any(domain.dependency_overrides != applied for domain, applied in in_force)

    def _enforce(self, overrides: Mapping[Domain, Overrides | None]) -> None:
        self._in_force = overrides
        self.looks_closer = len(overrides) > 1 or any(one != {} for one in overrides.values())

    async def apply_overrides(self) -> None:
        """Make the overrides that are set now effective. Failures are left to the requests."""
        instance = self.inside()
        if instance is not None and not instance.settled.is_set():
            return  # a provider that is starting sends the request: it would wait for itself
        while self.overrides_changed() and not self.supervisor.is_closing:
            wanted = self._overrides()
            if self._applying not in (None, wanted):
                for instance in self.coming.values():
                    instance.give_up_start()  # nobody wants it any more
            if wanted == self.current.plan.overrides:
                return
            if self._overriding is None:
                self._overriding = self.supervisor.tasks.detach(
                    self._override, "dependency overrides"
                )
            await self._overriding.result()

    async def _override(self) -> None:
        try:
            async with self.changing:
                await self._follow_overrides()
        except ApplicationStops:
            pass  # what needs a value is told so
        finally:
            self._overriding = None

    async def _follow_overrides(self) -> None:
        if not self.overrides_changed():
            return
        plan = self._plan_anew()
        for error in plan.errors:
            logger.error("A dependency override is not valid", exc_info=error)
        self._applying = plan.overrides
        self._enforce(dict.fromkeys(plan.overrides))
        try:
            await self.change(plan, all_or_none=False)
        finally:
            self._applying = None
            self._enforce(self.current.plan.overrides)
        if self.phase == "serving":
            self.refresher.keep_refreshing()

    # Plan

    def _plan_anew(self) -> Plan:
        overrides = self._overrides()
        self.originals = plan = self._plan({domain: {} for domain in overrides})
        if any(overrides.values()):
            plan = self._plan(overrides, plan)
        return plan

    def _overrides(self) -> dict[Domain, Overrides]:
        domains = {source.domain: None for source in self._sources if source.domain is not None}
        return {domain: dict(domain.dependency_overrides) for domain in (self.app, *domains)}

    def _plan(self, overrides: dict[Domain, Overrides], originals: Plan | None = None) -> Plan:
        errors: list[Exception] = []
        plan = self._planner.plan(self._declarations(overrides, errors), overrides, originals)
        plan.errors += errors
        return plan

    def _declarations(
        self, overrides: dict[Domain, Overrides], errors: list[Exception]
    ) -> Iterator[Declaration]:
        for source in self._sources:
            try:
                yield from source.declarations(overrides.get(source.domain, {}))
            except Exception as error:  # a wrong override is no other route's trouble
                errors.append(error)

    # Serve

    async def marked_value(self, generation: Generation, marker: Marker, scope: Scope) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound."""
        if marker.use_cache or marker.place:
            key = Key(marker.provider, marker.place)
            if (overrides_provider(scope), key) not in generation.plan.resolved:
                # FastAPI takes the override that is there when it gets to it. If that was set
                # after the request arrived, the request is pinned to its values as well.
                await self.apply_overrides()
                if generation is not self.current:
                    # A middleware may have copied the scope: only FastAPI knows when it ends.
                    generation = self.current
                    generation.pinned[id(scope)] = scope
                    exit_stack(scope).callback(self.release, generation, scope)
            return generation.value(overrides_provider(scope), key)
        raise UninitializedLifespanDependency(
            marker.provider,
            "it has use_cache=False, and its place is not known here: the route, or another one "
            "of the same router, was added while the application served, or the declaration "
            "stands in a dependency override",
            "Add routes before the application starts, or use the default use_cache=True.",
        )
