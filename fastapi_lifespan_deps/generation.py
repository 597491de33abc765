"""A generation: one consistent set of live values, and the pins of those who use it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from anyio import Event
from fastapi.dependencies.models import Dependant
from starlette.types import Scope

from ._compat import matched_dependant, overrides_provider, route_label
from .collect import Site, declared
from .exceptions import (
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    name_of,
)
from .instance import Instance, ended_by_itself
from .params import Key
from .plan import Domain, Node, Plan


class Pin:
    """Who uses values, a request or a lifespan function, pinned to a generation.

    A request finds its pin in its ASGI scope.
    """

    # No `__init__`: every request makes one, and a call of it can be measured. What most of them
    # leave as it is stands in the class.
    holder: "Scope | Site"  # a scope tells what route the request is on
    generation: "Generation"
    run: Any = None  # it is further down the data flow: who finds a pin finds it so
    others: "tuple[Generation, ...]" = ()  # later ones, whose values it has been given too
    has_asked: bool = False  # for a refresh: then its container gives it the new values

    @property
    def is_lasting(self) -> bool:
        """Whether it ends with the application, not before."""
        return isinstance(self.holder, Site)

    @property
    def generations(self) -> "tuple[Generation, ...]":
        """Those whose values it may still use."""
        return self.generation, *self.others

    def __str__(self) -> str:
        holder = self.holder
        return f"`{name_of(holder.call)}`" if isinstance(holder, Site) else route_label(holder)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Why a node has no instance: a refresh has stopped it, and not started it again."""

    retry_after: int
    failure: BaseException | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reachable:
    """What a route or a lifespan function may use of a generation."""

    of: Dependant | Site | None  # kept alive, so that its id tells it from others
    instances: frozenset[Instance]
    by_container: bool = False  # through the container any other as well, until it asks


class Generation(dict[Site, Callable[..., Any]]):
    """The callable of each site, given its values; worked out when a request first asks for it.

    A request is pinned to the generation that was current when it arrived. Only the current one
    keeps what it has worked out.
    """

    # One generation is not another, though its values be equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]  # a dict has none

    def __init__(
        self,
        plan: Plan,
        instances: Mapping[Node, Instance],
        failures: Mapping[Node, BaseException],
        withdrawn: Mapping[Node, Withdrawn],
    ) -> None:
        self.plan = plan
        self.instances = {node: instances[node] for node in plan.nodes if node in instances}
        self.failures = failures
        self.withdrawn = withdrawn
        # Who is pinned to it; when it isn't current any more, with what he holds.
        self.pins: dict[Pin, Reachable | None] = {}
        self.replaced = Event()  # another one is current, or the run ends
        self._everything: Reachable | None = None
        self._reachable: dict[int, Reachable] = {}
        self._is_current = True
        # A synchronous endpoint asks in a worker thread; what dies meanwhile must not be kept.
        self._lock = Lock()

    def __missing__(self, site: Site) -> Callable[..., Any]:
        with self._lock:
            filled = site.filled(self.values_of(site))
            if self._is_current:
                self[site] = filled
            return filled

    def values_of(self, site: Site) -> dict[str, Any]:
        """The value of each of its parameters."""
        values = [(name, self.value(site.domain, key)) for name, key in site.parameters]
        return {name: value for name, value in values if name is not None}

    def clear(self) -> None:
        """Let each site be worked out anew, and be found without what is gone."""
        with self._lock:
            super().clear()

    def retire(self) -> None:
        """Keep nothing any more: another one is current."""
        with self._lock:
            self._is_current = False
            super().clear()
        self.replaced.set()

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
        if instance is None and found in self.withdrawn:
            raise self._withdrawn(key, self.withdrawn[found])
        if instance is None:
            raise self._failed(key, "it failed to start") from self.failures.get(found)
        if instance.died_of is not None:
            raise ended_by_itself(instance.died_of)
        if not instance.is_alive:
            raise UninitializedLifespanDependency(
                key.provider,
                "it has been stopped",
                "The application is stopping, or a refresh or another override has replaced it and "
                "nobody knew, or waited any longer, for this request to use the old value.",
            )
        return instance.value

    @property
    def everything(self) -> Reachable:
        if self._everything is None:
            self._everything = Reachable(None, frozenset(self.instances.values()))
        return self._everything

    def held_by(self, pin: Pin) -> Reachable:
        """What a pin may still use."""
        reachable = self.reachable_by(pin)
        if reachable is None:
            return self.everything
        return self.everything if reachable.by_container and not pin.has_asked else reachable

    def reachable_by(self, pin: Pin) -> Reachable | None:
        """What it may use by its declarations; None for a request that hasn't got to its route."""
        holder = pin.holder
        if isinstance(holder, Site):
            keys = ((holder.domain, key) for _, key in holder.parameters)
            return Reachable(holder, self._resolved(keys))
        if (dependant := matched_dependant(holder)) is None:
            return None
        reachable = self._reachable.get(id(dependant))
        if reachable is None:
            domain = overrides_provider(holder)
            overrides = self.plan.overrides.get(domain, {})
            found = list(declared(dependant, domain, overrides))
            instances = self._resolved((one.domain, one.key) for one in found if one.key)
            by_container = any(one.key is None for one in found)
            reachable = Reachable(dependant, instances, by_container)
            self._reachable[id(dependant)] = reachable
        return reachable

    def _resolved(self, keys: Iterable[tuple[Domain, Key]]) -> frozenset[Instance]:
        nodes = [self.plan.resolved.get(target) for target in keys]
        left = [
            self.instances[node]
            for node in nodes
            if isinstance(node, Node) and node in self.instances
        ]
        found: set[Instance] = set()
        while left:
            instance = left.pop()
            if instance not in found:
                found.add(instance)
                left += instance.dependencies
        return frozenset(found)

    def _failed(self, key: Key, problem: str) -> UninitializedLifespanDependency:
        return UninitializedLifespanDependency(
            key.provider, problem, "The exception that caused this one says why."
        )

    def _withdrawn(self, key: Key, withdrawn: Withdrawn) -> UnavailableLifespanDependency:
        if withdrawn.failure is None:
            problem, advice = "it is being refreshed", "Try again when that is done."
        else:
            problem = "a refresh has stopped it, and failed to start it again"
            advice = "The exception that caused this one says why. Refresh it again."
        error = UnavailableLifespanDependency(key.provider, problem, advice, withdrawn.retry_after)
        error.__cause__ = withdrawn.failure
        return error


def labels(pins: Iterable[Pin]) -> str:
    """The routes of requests, and what else holds values, for a person to read."""
    counted = Counter(map(str, pins))
    return ", ".join(
        f"{label} ({count} requests)" if count > 1 else label for label, count in counted.items()
    )
