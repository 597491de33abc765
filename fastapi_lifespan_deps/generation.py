"""A generation: one consistent set of live values, and the requests that are pinned to it."""

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:
    from .container import Run

from ._compat import exit_stack, matched_dependant, overrides_provider
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
        run: "Run",
        plan: Plan,
        instances: dict[Node, Instance],
        failures: dict[Node, BaseException],
    ) -> None:
        self.run = run
        self.plan = plan
        self.instances = {node: instances[node] for node in plan.nodes if node in instances}
        self.failures = failures
        # What is pinned to it, by id. A scope tells what route the request is on.
        self.requests: dict[int, Scope | Site] = {}
        # A synchronous endpoint asks in a worker thread; what dies meanwhile must not be kept.
        self._lock = Lock()

    def __missing__(self, site: Site) -> dict[str, Any]:
        with self._lock:
            values = [(name, self.value(site.domain, key)) for name, key in site.parameters]
            self[site] = found = {name: value for name, value in values if name is not None}
            return found

    def clear(self) -> None:
        with self._lock:
            super().clear()

    def value(self, domain: Domain, key: Key) -> Any:
        """The live value of a key. Raise `UninitializedLifespanDependency` if there is none."""
        found = self.plan.resolved.get((domain, key)) or self.plan.resolved.get((None, key))
        if found is None and any(
            (domain, key.provider) == (other, placed.provider)
            for other, placed in self.plan.resolved
        ):
            raise UninitializedLifespanDependency(
                key.provider,
                "it has use_cache=False wherever it is declared here, so there is no one value",
                "Declare it as a parameter, or once with the default use_cache=True.",
            )
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
        if instance.casualty is not None:
            raise ended_by_itself(instance.casualty)
        if not instance.is_alive:
            raise UninitializedLifespanDependency(
                key.provider,
                "it has been stopped",
                "The application is stopping, or another override is in force and nobody knew that "
                "this request would need the old value.",
            )
        return instance.value

    async def marked_value(self, marker: Marker, scope: Scope) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound."""
        if marker.use_cache or marker.place:
            key = Key(marker.provider, marker.place)
            generation = self
            if (overrides_provider(scope), key) not in self.plan.resolved:
                # FastAPI takes the override that is there when it gets to it. If that was set
                # after the request arrived, the request is pinned to its values as well.
                if self.run.overrides_changed():
                    await self.run.apply_overrides()
                generation = self.run.current
                if generation is not self:
                    # A middleware may have copied the scope: only FastAPI knows when it ends.
                    generation.requests[id(scope)] = scope
                    exit_stack(scope).callback(self.run.release, generation, scope)
            return generation.value(overrides_provider(scope), key)
        raise UninitializedLifespanDependency(
            marker.provider,
            "it has use_cache=False, and its place is not known here: the route, or another one "
            "of the same router, was added while the application served, or the declaration "
            "stands in a dependency override",
            "Add routes before the application starts, or use the default use_cache=True.",
        )

    def held(self) -> set[Node]:
        """The nodes that the pinned requests can reach."""
        nodes: set[Node] = set()
        for pinned in list(self.requests.values()):
            for target in self._targets(pinned):
                if target is None:
                    return set(self.plan.nodes)
                found = self.plan.resolved.get(target)
                if isinstance(found, Node):
                    _add_with_dependencies(found, nodes)
        return nodes

    def _targets(self, pinned: Scope | Site) -> Iterator[tuple[Domain, Key] | None]:
        """What a request may still ask for; None: anything."""
        if isinstance(pinned, Site):
            yield from ((pinned.domain, key) for _, key in pinned.parameters)
        elif (dependant := matched_dependant(pinned)) is None:  # it has not got to its route
            yield None
        else:
            domain = overrides_provider(pinned)
            overrides = self.plan.overrides.get(domain, {})
            for declaration in declared(dependant, domain, overrides):
                key = declaration.key
                yield None if key is None else (declaration.domain, key)

    def _failed(self, key: Key, problem: str) -> UninitializedLifespanDependency:
        return UninitializedLifespanDependency(
            key.provider, problem, "The exception that caused this one says why."
        )


def ended_by_itself(instance: Instance) -> UninitializedLifespanDependency:
    """The error of what needs an instance that died."""
    error = UninitializedLifespanDependency(
        instance.node.provider,
        "it ended by itself while serving",
        "It is not started again. The exception that caused this one, if any, says what happened.",
    )
    error.__cause__ = instance.error
    return error


def _add_with_dependencies(node: Node, nodes: set[Node]) -> None:
    if node not in nodes:
        nodes.add(node)
        for dependency in node.dependencies:
            _add_with_dependencies(dependency, nodes)
