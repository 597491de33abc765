"""Plan: from declarations and overrides to the nodes to start, in order. Pure data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .exceptions import (
    InvalidLifespanDependency,
    LifespanDependencyError,
    Step,
    draw,
    name_of,
)
from .params import (
    NO_OPTIONS,
    NOTE,
    Key,
    Place,
    check_callable,
    check_cycle,
    name_step,
    requirements,
)

# Whose `dependency_overrides` apply: an application, or None for a router mounted on its own.
Domain = Any
Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Declaration(NamedTuple):
    """Something wants the value of `key`, in the domain of whose overrides it stands."""

    domain: Domain
    key: Key | None  # None: the container, and with it any value
    path: tuple[Step, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Node:
    """One instance to start: a provider and the nodes that it takes (None: the application).

    Two nodes that are made of the same things are the same object.
    """

    provider: Callable[..., Any]
    place: Place | None
    arguments: tuple[tuple[str, "Node | None"], ...]

    @property
    def dependencies(self) -> list["Node"]:
        return [node for _, node in self.arguments if node is not None]


@dataclass(frozen=True, slots=True)
class Option:
    """A duration that a declaration asks for, and the way to that declaration."""

    seconds: float
    path: tuple[Step, ...]


@dataclass(slots=True)
class Plan:
    """What each key resolves to under a set of overrides, and all nodes, in start order."""

    overrides: dict[Domain, Overrides]
    nodes: dict[Node, tuple[Step, ...]] = field(default_factory=dict)  # and a way to each
    resolved: dict[tuple[Domain, Key], Node | LifespanDependencyError] = field(default_factory=dict)
    options: dict[tuple[Callable[..., Any], str], Option] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)

    def note_options(self, key: Key, path: tuple[Step, ...]) -> None:
        """Note what a declaration asks for. Raise if another one asks for something else."""
        if key.options is NO_OPTIONS:
            return
        for name, seconds in key.options.items():
            first = self.options.setdefault((key.provider, name), Option(seconds, path))
            if first.seconds != seconds:
                raise InvalidLifespanDependency(
                    key.provider,
                    f"has {name}={first.seconds} in one place, and {name}={seconds} in another:"
                    f"\n\n{draw(first.path)}\n\n{draw(path)}\n\n"
                    "All places share what is started",
                    f"Set {name} in one of them: the others inherit it.",
                )

    def seconds(self, provider: Callable[..., Any], option: str) -> float | None:
        """The duration that a provider's declarations ask for by an option of `Depends`."""
        found = self.options.get((provider, option))
        return None if found is None else found.seconds

    def standing_for(self, provider: Callable[..., Any]) -> set[Node]:
        """The nodes that `provider` resolves to, and all that depend on them."""
        found = (node for (_, key), node in self.resolved.items() if key.provider == provider)
        nodes = {node for node in found if isinstance(node, Node)}
        for node in self.nodes:
            if not nodes.isdisjoint(node.dependencies):
                nodes.add(node)
        return nodes


class Planner:
    """Makes plans, and gives equal nodes of successive plans one identity.

    So what an override does not touch keeps its node, and with it its running instance.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[Any, ...], Node] = WeakValueDictionary()

    def plan(
        self,
        declarations: Iterable[Declaration],
        overrides: dict[Domain, Overrides],
        originals: Plan | None = None,
    ) -> Plan:
        """Plan what is declared. The options of `originals`, without overrides, hold here too."""
        plan = Plan(overrides)
        if originals is not None:
            plan.options |= originals.options
        for declaration in declarations:
            if declaration.key is None:
                continue
            target = declaration.domain, declaration.key
            if isinstance(plan.resolved.get(target), LifespanDependencyError):
                continue
            try:
                plan.note_options(declaration.key, declaration.path)
            except LifespanDependencyError as error:
                plan.errors.append(error)  # another place has the value, with its options
                continue
            try:
                self._resolve(plan, *target, declaration.path)
            except LifespanDependencyError as error:
                plan.resolved[target] = error
                plan.errors.append(error)
        return plan

    def _resolve(self, plan: Plan, domain: Domain, key: Key, path: tuple[Step, ...]) -> Node:
        found = plan.resolved.get((domain, key))
        if isinstance(found, Node):
            return found
        provider = plan.overrides.get(domain, {}).get(key.provider, key.provider)
        if provider is not key.provider:
            original, override = name_of(key.provider), name_of(provider)
            check_callable(provider, f"dependency_overrides[{original}] = {override}")
            note = f"{NOTE}, overrides {name_step(key.provider)}"
            path = (*path[:-1], Step(path[-1].label, provider, note))
        check_cycle(path)
        arguments: list[tuple[str, Node | None]] = []
        for requirement in requirements(provider, path):
            node = None
            if requirement.marker is not None:
                child = requirement.marker.key(provider, requirement.parameter)
                branch = *path, requirement.step
                plan.note_options(child, branch)
                node = self._resolve(plan, domain, child, branch)
            arguments.append((requirement.parameter, node))
        identity = (provider, key.place, *((name, id(node)) for name, node in arguments))
        node = self._known.setdefault(identity, Node(provider, key.place, tuple(arguments)))
        plan.resolved[domain, key] = node
        plan.nodes.setdefault(node, path)
        return node
