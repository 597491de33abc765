"""A generation: one consistent set of live values, and the requests that are pinned to it."""

from collections.abc import Iterator
from typing import Any

from starlette.types import Scope

from ._compat import matched_dependant
from .collect import Site, declared
from .exceptions import UninitializedLifespanDependency
from .instance import Instance
from .params import Key, Marker
from .plan import Domain, Node, Plan


class Generation(dict[Site, dict[str, Any]]):
    """What each site is given, worked out when a request first asks for it.

    A request is pinned to the generation that was current when it arrived, and finds it in its
    ASGI scope.
    """

    def __init__(
        self,
        app: Any,
        plan: Plan,
        instances: dict[Node, Instance],
        failures: dict[Node, BaseException],
    ) -> None:
        self.app = app
        self.plan = plan
        self.instances = {node: instances[node] for node in plan.nodes if node in instances}
        self.failures = failures
        # By id; the scope tells what route the request is on. None: it may use any value.
        self.requests: dict[int, Scope | None] = {}

    def __missing__(self, site: Site) -> dict[str, Any]:
        values = [(name, self.value(site.domain, key)) for name, key in site.parameters]
        self[site] = {name: value for name, value in values if name is not None}
        return self[site]

    def value(self, domain: Domain, key: Key) -> Any:
        """The live value of a key. Raise `UninitializedLifespanDependency` if there is none."""
        found = self.plan.resolved.get((domain, key)) or self.plan.resolved.get((None, key))
        if found is None:
            raise UninitializedLifespanDependency(
                key.provider,
                "nothing asked for it when the application started",
                "Declare it in a route, a dependency or a hook that exists at startup; routes "
                "that the lifespan function adds count.",
            )
        if not isinstance(found, Node):
            raise self._failed(key, "the override that is in force is not valid") from found
        instance = self.instances.get(found)
        if instance is None:
            raise self._failed(key, "it failed to start") from self.failures.get(found)
        if instance.has_crashed:
            raise self._failed(key, "it ended by itself while serving") from instance.error
        if not instance.is_alive:
            raise self._failed(key, "it has been stopped")
        return instance.value

    def marked_value(self, marker: Marker, app: Any) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound."""
        if marker.use_cache or marker.place:
            return self.value(self.domain(app), Key(marker.provider, marker.place))
        raise UninitializedLifespanDependency(
            marker.provider,
            "it has use_cache=False, and its place is not known here: the route, or another one "
            "of the same router, was added while the application served, or the declaration "
            "stands in a dependency override",
            "Add routes before the application starts, or use the default use_cache=True.",
        )

    def domain(self, app: Any) -> Domain:
        """Whose overrides apply to a request that reached `app`, the innermost application."""
        return app if app in self.plan.overrides else self.app

    def held(self) -> set[Node]:
        """The nodes that the pinned requests can reach."""
        nodes: set[Node] = set()
        for scope in list(self.requests.values()):
            dependant = None if scope is None else matched_dependant(scope)
            if scope is None or dependant is None:
                return set(self.plan.nodes)
            domain = self.domain(scope.get("app"))
            overrides = self.plan.overrides.get(domain, {})
            for declaration in declared(dependant, domain, overrides):
                if declaration.key is None:
                    return set(self.plan.nodes)
                found = self.plan.resolved.get((declaration.domain, declaration.key))
                if isinstance(found, Node):
                    nodes.update(_with_dependencies(found))
        return nodes

    def _failed(self, key: Key, problem: str) -> UninitializedLifespanDependency:
        return UninitializedLifespanDependency(
            key.provider, problem, "The exception that caused this one says why."
        )


def _with_dependencies(node: Node) -> Iterator[Node]:
    yield node
    for dependency in node.dependencies:
        yield from _with_dependencies(dependency)
