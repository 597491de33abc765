"""Plan: from declarations and overrides to the nodes to start, in order. Pure data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from fastapi_lifespan_deps.exceptions import (
    DependencyScopeError,
    InvalidLifespanDependency,
    LifespanDependencyError,
    Step,
    draw_path,
    name_of,
)

from .options import NO_OPTIONS
from .params import (
    LIFESPAN_NOTE,
    Key,
    Place,
    check_cycle,
    name_step,
    requirements,
)
from .provider import check_callable

Provider = Callable[..., Any]

# Whose `dependency_overrides` apply: an application, or None for a router mounted on its own.
OverridesProvider = Any
Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Declaration(NamedTuple):
    """Something wants the value of `key`, and stands where these overrides hold."""

    overrides_provider: OverridesProvider
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


# What a key resolves to: a node, or why there is none.
Found = Node | Exception


@dataclass(frozen=True, slots=True)
class DeclaredOption:
    """An option that a declaration gives, and the way to that declaration."""

    value: Any
    path: tuple[Step, ...]


@dataclass(slots=True)
class Plan:
    """What each key resolves to under a set of overrides, and all nodes, in start order."""

    overrides: dict[OverridesProvider, Overrides]
    nodes: dict[Node, tuple[Step, ...]] = field(default_factory=dict)  # and a way to each
    resolved: dict[tuple[OverridesProvider, Key], Found] = field(default_factory=dict)
    # The same by provider, for each place where it is declared, and the other way round: the
    # nodes that take a node.
    behind: dict[Provider, list[tuple[OverridesProvider, Found]]] = field(default_factory=dict)
    dependents: dict[Node, list[Node]] = field(default_factory=dict)
    options: dict[tuple[Provider, str], DeclaredOption] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    # What was worked out of functions that are called (call/calls.py), as long as these live.
    orders: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    def note_options(self, key: Key, path: tuple[Step, ...]) -> None:
        """Note what a declaration asks for. Raise if another one asks for something else."""
        if key.options is NO_OPTIONS:
            return
        for name, value in key.options.items():
            first = self.options.setdefault((key.provider, name), DeclaredOption(value, path))
            if first.value != value:
                one, other = map(_shown, (first.value, value))
                raise InvalidLifespanDependency(
                    key.provider,
                    f"has {name}={one} in one place, and {name}={other} in another:"
                    f"\n\n{draw_path(first.path)}\n\n{draw_path(path)}\n\n"
                    "All places share what is started",
                    f"Set {name} in one of them: the others inherit it.",
                )

    def option(self, provider: Provider, name: str) -> Any:
        """What a provider's declarations give for an option of `Depends`; None if nothing."""
        found = self.options.get((provider, name))
        return None if found is None else found.value

    def resolve(self, overrides_provider: OverridesProvider, key: Key, found: Found) -> None:
        """Note what a key resolves to."""
        self.resolved[overrides_provider, key] = found
        self.behind.setdefault(key.provider, []).append((overrides_provider, found))

    def add(self, node: Node, path: tuple[Step, ...]) -> None:
        """Note a node, and a way to it. What it takes is here already."""
        if node not in self.nodes:
            self.nodes[node] = path
            for child in node.dependencies:
                self.dependents.setdefault(child, []).append(node)

    def nodes_behind(self, provider: Provider) -> set[Node]:
        """The nodes that a provider resolves to, and all that depend on them."""
        found: set[Node] = set()
        left = [node for _, node in self.behind.get(provider, ()) if isinstance(node, Node)]
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += self.dependents.get(node, ())
        return found


class Planner:
    """Makes plans, and gives equal nodes of successive plans one identity.

    So what an override does not touch keeps its node, and with it its running instance.
    """

    def __init__(self, *, has_application: bool = True) -> None:
        self._has_application = has_application
        self._known: WeakValueDictionary[tuple[Any, ...], Node] = WeakValueDictionary()

    def plan(
        self,
        declarations: Iterable[Declaration],
        overrides: dict[OverridesProvider, Overrides],
        originals: Plan | None = None,
    ) -> Plan:
        """Plan what is declared. The options of `originals`, without overrides, hold here too."""
        plan = Plan(overrides)
        if originals is not None:
            plan.options |= originals.options
        for declaration in declarations:
            if declaration.key is None:
                continue
            target = declaration.overrides_provider, declaration.key
            if isinstance(plan.resolved.get(target), Exception):
                continue
            try:
                plan.note_options(declaration.key, declaration.path)
            except LifespanDependencyError as error:
                plan.errors.append(error)  # another place has the value, with its options
                continue
            try:
                self._resolve(plan, *target, declaration.path)
            except Exception as error:  # whatever an override raises when it is looked at
                plan.resolve(*target, error)
                plan.errors.append(error)
        return plan

    def _resolve(
        self, plan: Plan, overrides_provider: OverridesProvider, key: Key, path: tuple[Step, ...]
    ) -> Node:
        found = plan.resolved.get((overrides_provider, key))
        if isinstance(found, Node):
            return found
        provider = plan.overrides.get(overrides_provider, {}).get(key.provider, key.provider)
        if provider is not key.provider:
            original, override = name_of(key.provider), name_of(provider)
            check_callable(provider, f"dependency_overrides[{original}] = {override}")
            note = f"{LIFESPAN_NOTE}, overrides {name_step(key.provider)}"
            path = (*path[:-1], Step(path[-1].label, provider, note))
        check_cycle(path)
        arguments: list[tuple[str, Node | None]] = []
        for requirement in requirements(provider, path):
            node = None
            if requirement.marker is None and not self._has_application:
                raise _without_application(provider, requirement.parameter, path)
            if requirement.marker is not None:
                child = requirement.marker.key(provider, requirement.parameter)
                branch = *path, requirement.step
                plan.note_options(child, branch)
                node = self._resolve(plan, overrides_provider, child, branch)
            arguments.append((requirement.parameter, node))
        identity = (provider, key.place, *((name, id(node)) for name, node in arguments))
        node = self._known.setdefault(identity, Node(provider, key.place, tuple(arguments)))
        plan.resolve(overrides_provider, key, node)
        plan.add(node, path)
        return node


def _shown(value: Any) -> str:
    return name_of(value) if callable(value) else str(value)


def _without_application(
    provider: Provider, parameter: str, path: tuple[Step, ...]
) -> DependencyScopeError:
    return DependencyScopeError(
        provider,
        parameter,
        "for there is none",
        [*path, Step(parameter, None, "the application")],
        "Start it with one, by `LifespanContainer.for_app(app)`",
        reason="is started outside of an application",
        otherwise="override `{name}`",
    )
