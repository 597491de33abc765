"""A generation: one consistent set of live values, and the requests that are pinned to it."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from types import CodeType, FrameType
from typing import Any, TypeVar

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

F = TypeVar("F", bound=Callable[..., Any])

# Set in the scope of a request that has asked for a refresh.
ASKED_KEY = "fastapi_lifespan_deps_asked"

_serving: set[CodeType] = set()  # filled on import, by the decorator below


def serves_requests(function: F) -> F:
    """Mark a coroutine function that serves the request of its parameter `scope`."""
    _serving.add(function.__code__)
    return function


def asking() -> Iterator[Scope]:
    """The scopes of the requests in whose code we are, innermost first.

    Found on the stack, when somebody asks: a context variable would make what a request pays
    larger by a fifth. So it knows the task that serves a request, not others that this has started.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in _serving:
            yield frame.f_locals["scope"]
        frame = frame.f_back


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Why a node has no instance: a refresh has stopped it, and not started it again."""

    retry_after: int
    failure: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """What a route may use: the instances that it declares, and through the container any."""

    dependant: Dependant
    instances: frozenset[Instance]
    takes_container: bool


class Generation(dict[Site, Callable[..., Any]]):
    """The callable of each site, given its values; worked out when a request first asks for it.

    A request is pinned to the generation that was current when it arrived, and finds it in its
    ASGI scope.
    """

    def __init__(
        self,
        run: Any,
        plan: Plan,
        instances: Mapping[Node, Instance],
        failures: Mapping[Node, BaseException],
        withdrawn: Mapping[Node, Withdrawn],
    ) -> None:
        self.run = run
        self.plan = plan
        self.instances = {node: instances[node] for node in plan.nodes if node in instances}
        self.failures = failures
        self.withdrawn = withdrawn
        # What is pinned to it, by id. A scope tells what route the request is on.
        self.pinned: dict[int, Scope | Site] = {}
        self.replaced = Event()  # another one is current, or the run ends
        self._everything = frozenset(self.instances.values())
        self._reaches: dict[int, Reach] = {}
        # A synchronous endpoint asks in a worker thread; what dies meanwhile must not be kept.
        self._lock = Lock()

    def __missing__(self, site: Site) -> Callable[..., Any]:
        with self._lock:
            self[site] = filled = site.filled(self.values_of(site))
            return filled

    def values_of(self, site: Site) -> dict[str, Any]:
        """The value of each of its parameters."""
        values = [(name, self.value(site.domain, key)) for name, key in site.parameters]
        return {name: value for name, value in values if name is not None}

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

    def holders(self, instances: Collection[Instance]) -> list[Scope | Site]:
        """What is pinned and may still use one of the instances."""
        return [
            pinned
            for pinned in self.pinned.values()
            if not self.reached(pinned).isdisjoint(instances)
        ]

    def is_held(self, instance: Instance) -> bool:
        return any(instance in self.reached(pinned) for pinned in self.pinned.values())

    @property
    def has_unmatched(self) -> bool:
        """Whether a request that is pinned has not got to its route."""
        return any(
            not isinstance(pinned, Site) and self.reach(pinned) is None
            for pinned in self.pinned.values()
        )

    def reached(self, pinned: Scope | Site) -> frozenset[Instance]:
        """The instances that what is pinned may still use.

        When a request has asked for a refresh, its container gives it the new ones.
        """
        if isinstance(pinned, Site):
            return self._resolved((pinned.domain, key) for _, key in pinned.parameters)
        reach = self.reach(pinned)
        if reach is None or (reach.takes_container and ASKED_KEY not in pinned):
            return self._everything
        return reach.instances

    def reach(self, scope: Scope) -> Reach | None:
        """What the route of a request may use; None while it has not got to its route."""
        if (dependant := matched_dependant(scope)) is None:
            return None
        reach = self._reaches.get(id(dependant))
        if reach is None:
            domain = overrides_provider(scope)
            overrides = self.plan.overrides.get(domain, {})
            found = list(declared(dependant, domain, overrides))
            instances = self._resolved((one.domain, one.key) for one in found if one.key)
            takes_container = any(one.key is None for one in found)
            reach = self._reaches[id(dependant)] = Reach(dependant, instances, takes_container)
        return reach

    def _resolved(self, keys: Iterable[tuple[Domain, Key]]) -> frozenset[Instance]:
        found = (self.plan.resolved.get(target) for target in keys)
        nodes = (node for node in found if isinstance(node, Node))
        left = [self.instances[node] for node in nodes if node in self.instances]
        reached: set[Instance] = set()
        while left:
            instance = left.pop()
            if instance not in reached:
                reached.add(instance)
                left += instance.dependencies
        return frozenset(reached)

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


def labels(pinned: Iterable[Scope | Site]) -> str:
    """The routes of requests, and what else holds values, for a person to read."""
    counted = Counter(
        f"`{name_of(one.call)}`" if isinstance(one, Site) else route_label(one) for one in pinned
    )
    return ", ".join(
        f"{label} ({count} requests)" if count > 1 else label for label, count in counted.items()
    )
