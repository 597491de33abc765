"""Overrides: which of the application's `dependency_overrides` are in force."""

from collections.abc import Iterator, Mapping

import anyio

from fastapi_lifespan_deps.declare.plan import Overrides, OverridesProvider, Plan, Provider
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.events import Events
from fastapi_lifespan_deps.exceptions import grouped

from .supervisor import ApplicationStops
from .tasks import DetachedTask
from .values import LiveValues


class OverridesInForce:
    """Follows the overrides of an application, and of what is mounted in it."""

    def __init__(self, planning: Planning, live: LiveValues, events: Events) -> None:
        self.planning = planning
        self._events = events
        self._live = live
        self._task: DetachedTask[None] | None = None
        self._applying: Mapping[OverridesProvider, Overrides] | None = None
        # The overrides of the current generation; None while others are being applied.
        self._in_force: Mapping[OverridesProvider, Overrides | None] = {}
        # Whether more than a look at the application's overrides tells that they have changed:
        # some are in force, or there are mounted applications.
        self.must_compare = False

    def have_changed(self) -> bool:
        """Whether overrides are not what the current generation was made for."""
        in_force = self._in_force.items()
        return not all(
            _are_same(one.dependency_overrides or {}, applied) for one, applied in in_force
        )

    def enforce(self, overrides: Mapping[OverridesProvider, Overrides | None]) -> None:
        """Note the overrides that the current generation is made for."""
        self._in_force = overrides
        self.must_compare = len(overrides) > 1 or any(
            one is None or one for one in overrides.values()
        )

    async def apply(self) -> None:
        """Make the overrides that are set now effective. Failures are left to the requests."""
        live = self._live
        instance = live.inside()
        if instance is not None and not instance.start_over.is_set():
            return  # a provider that is starting sends the request: it would wait for itself
        while self.have_changed() and not live.supervisor.is_closing:
            wanted = self.planning.overrides()
            if self._applying is not None and not _are_all_same(self._applying, wanted):
                for instance in live.pending.values():
                    instance.give_up_start()  # nobody wants it any more
            if _are_all_same(wanted, live.current.plan.overrides):
                return
            if self._task is None:
                self._task = live.supervisor.tasks.detach(self._apply, "dependency overrides")
            await self._task.result()

    async def _apply(self) -> None:
        try:
            async with self._live.changing:
                await self.follow()
        except ApplicationStops:
            pass  # what needs a value is told so
        finally:
            self._task = None

    async def follow(self) -> None:
        """The same where `changing` is held."""
        if not self.have_changed():
            return
        began = anyio.current_time()
        plan = self.plan()
        changed = list(self._changed(plan.overrides))
        self._applying = plan.overrides
        self.enforce(dict.fromkeys(plan.overrides))
        try:
            await self._live.change(plan, all_or_none=False)
        finally:
            self._applying = None
            self.enforce(self._live.current.plan.overrides)
        if self._live.current.plan is plan:  # else others were set meanwhile
            self._events.tell(
                "overrides_applied",
                changed[0] if len(changed) == 1 else None,
                seconds=anyio.current_time() - began,
                error=grouped("several overrides are not valid", plan.errors),
            )

    def _changed(self, overrides: Mapping[OverridesProvider, Overrides]) -> Iterator[Provider]:
        """What is overridden by something else, or not any more."""
        for overrides_provider, wanted in overrides.items():
            in_force = self._in_force.get(overrides_provider) or {}
            for provider in dict.fromkeys((*in_force, *wanted)):
                if in_force.get(provider) is not wanted.get(provider):
                    yield provider

    def plan(self) -> Plan:
        """Plan what is declared, under the overrides that are set now."""
        self._live.originals, plan = self.planning.plans()
        return plan


def _are_same(some: Overrides, others: Overrides | None) -> bool:
    """Whether these are the same overrides."""
    some = dict(some)  # another thread may set some
    if others is None or len(some) != len(others):
        return False
    return all(key in others and _is_same(some[key], others[key]) for key in some)


def _is_same(one: object, other: object) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)  # a bound method is another object each time
    except Exception:  # it doesn't know how to compare
        return False


def _are_all_same(
    some: Mapping[OverridesProvider, Overrides], others: Mapping[OverridesProvider, Overrides]
) -> bool:
    return some.keys() == others.keys() and all(
        _are_same(overrides, others[one]) for one, overrides in some.items()
    )
