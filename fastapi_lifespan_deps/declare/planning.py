"""Planning: from all that declares something, and the overrides that are set, to a plan."""

from collections.abc import Iterable

from .collect import Sources
from .plan import Declaration, Overrides, OverridesProvider, Plan, Planner


class Planning:
    """Plans what sources declare, again whenever overrides have changed. It starts nothing.

    `overrides_provider` is whose overrides those follow that have none of their own.
    """

    def __init__(
        self, overrides_provider: OverridesProvider, sources: Sources, *, has_application: bool
    ) -> None:
        self.sources = sources
        self._overrides_provider = overrides_provider
        self._planner = Planner(has_application=has_application)

    def overrides(self) -> dict[OverridesProvider, Overrides]:
        """Those that are set now, by whose they are."""
        providers = (source.overrides_provider for source in self.sources)
        own = self._overrides_provider
        found = dict.fromkeys((own, *(one for one in providers if one is not None)))
        return {
            overrides_provider: dict(overrides_provider.dependency_overrides or {})
            for overrides_provider in found
        }

    def plans(self) -> tuple[Plan, Plan]:
        """The plan without overrides, and that under those which are set now: may be the same."""
        overrides = self.overrides()
        options = Planner().plan(self.sources.options(), {})
        originals = plan = self._plan(
            {overrides_provider: {} for overrides_provider in overrides}, options
        )
        if any(overrides.values()):
            plan = self._plan(overrides, originals)
        return originals, plan

    def checked(self) -> Plan:
        """The plan under the overrides that are set now. Raise the first thing wrong with it."""
        _, plan = self.plans()
        for error in plan.errors:
            raise error
        return plan

    def declarations(self, plan: Plan) -> Iterable[Declaration]:
        """What was planned."""
        return self.sources.declarations(plan.overrides, [])

    def _plan(
        self, overrides: dict[OverridesProvider, Overrides], originals: Plan | None = None
    ) -> Plan:
        failures: list[Exception] = []
        declarations = self.sources.declarations(overrides, failures)
        plan = self._planner.plan(declarations, overrides, originals)
        plan.errors += failures
        return plan
