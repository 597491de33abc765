"""Graph: what is planned, or runs, and what depends on what. Plain data, shown in three ways."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi_lifespan_deps.declare.plan import Declaration, Node, Plan, Provider
from fastapi_lifespan_deps.exceptions import (
    LifespanDependencyError,
    Step,
    draw_path,
    location_of,
    name_of,
)

# What a dependency of a graph is, at the moment: only planned, or what has become of it.
LifespanState = Literal["planned", "running", "stopping", "stopped", "dead", "withdrawn", "failed"]

# How many routes the title of a group names.
MOST_NAMED = 2

# What could end a Mermaid label, or would be taken for markup in it.
_MARKUP = re.compile(r"[^\w\s.,:/(){}\[\]=+-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifespanNode:
    """A lifespan dependency in a graph.

    Attributes:
        number: its place in the start order, from 1.
        provider: the callable.
        name: its qualified name.
        where: its `file:line`, as far as it can be known.
        depends_on: the numbers of what it takes, in the order of its parameters.
        place: with `use_cache=False`, the place that it is for: `read_users(engine)`.
        overrides: the name of what it overrides, if it does.
        options: what its declarations give beyond the defaults, such as `refresh_every` in seconds.
            An override is refreshed as often as what it overrides.
        state: `"planned"` where nothing was started. Of a container: `"running"`, then
            `"stopping"`, then `"stopped"`; `"dead"`, for it, or what it depends on, has ended by
            itself; `"withdrawn"` while it is replaced; `"failed"`, for it could not be started.
        start_seconds: how long its start took; None while it has not started.
    """

    number: int
    provider: Callable[..., Any] = field(repr=False)
    name: str
    where: str
    depends_on: tuple[int, ...] = ()
    place: str | None = None
    overrides: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    _path: tuple[Step, ...] = field(default=(), repr=False)
    state: LifespanState = "planned"
    start_seconds: float | None = None

    def __str__(self) -> str:
        texts = [f"{self.number}. {self.name}", self.where]
        if self.place is not None:
            texts.append(f"for {self.place}")
        if self.overrides is not None:
            texts.append(f"overrides {self.overrides}")
        texts += [f"{name}={_shown(value)}" for name, value in self.options.items()]
        if self.state != "planned":
            texts.append(self.state)
        if self.start_seconds is not None:
            texts.append(f"started in {self.start_seconds:.2f} s")
        return "  ".join(texts)

    @property
    def way(self) -> str:
        """One way from a route, or whatever declares it, to it; drawn, several lines."""
        return draw_path(self._path)


@dataclass(frozen=True, slots=True, kw_only=True)
class LifespanUser:
    """A route, a hook or a function that declares lifespan dependencies.

    Attributes:
        label: what it is called: `GET /users`.
        where: its `file:line`, as far as it can be known.
        needs: the numbers of the dependencies that it declares, by way of request-style ones, too.
    """

    label: str
    where: str
    needs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LifespanGraph:
    """The lifespan dependencies of an application or a container, and what depends on what.

    Plain data, made at one moment, which holds no value of a dependency. `str(graph)` draws it as
    a tree.

    Attributes:
        nodes: the dependencies, in start order.
        users: the routes, hooks and functions that declare some, in the order of the routes.

    Example:
        ```python
        def test_what_starts() -> None:
            names = [node.name for node in lifespan_graph(app).nodes]
            assert names == ["get_settings", "get_pool", "get_model"]
        ```
    """

    nodes: tuple[LifespanNode, ...] = ()
    users: tuple[LifespanUser, ...] = ()

    def __str__(self) -> str:
        return self.tree()

    def tree(self, *, routes: bool = False) -> str:
        """Draw it as text: below each dependency what it depends on.

        Args:
            routes: begin with what declares them.
        """
        lines: list[str] = []
        drawn: set[int] = set()
        if routes:
            for user in self.users:
                lines.append(f"{user.label}  {user.where}".rstrip())
                lines += self._branches(user.needs, drawn)
        inner = {number for node in self.nodes for number in node.depends_on}
        for node in self.nodes:
            if node.number not in inner | drawn:
                drawn.add(node.number)
                lines += [str(node), *self._branches(node.depends_on, drawn)]
        return "\n".join(lines)

    def _branches(self, numbers: Iterable[int], drawn: set[int]) -> Iterator[str]:
        """The lines below something; each node in full where it comes first."""
        # not by recursion: a chain may be long
        left = [("", list(numbers)[::-1])]
        while left:
            indent, rest = left[-1]
            if not rest:
                left.pop()
                continue
            node = self.nodes[rest.pop() - 1]
            line = f"{indent}{'├─' if rest else '└─'} "
            if node.number in drawn:
                yield f"{line}{node.number}. {node.name} (above)"
                continue
            drawn.add(node.number)
            yield f"{line}{node}"
            left.append((indent + ("│  " if rest else "   "), list(node.depends_on)[::-1]))

    def mermaid(self) -> str:
        """Draw it as a Mermaid flowchart, which GitHub and documentation sites show as a picture.

        An arrow goes from a dependency to what it depends on. Several that the same routes need,
        and not all routes, are in one box.
        """
        lines = ["flowchart LR"]  # many go below each other, and few beside: a page is long
        for users, nodes in self._groups().items():
            boxes = [f'{_id(node)}["{_escaped(_label(node))}"]' for node in nodes]
            if len(nodes) == 1 or len(users) in (0, len(self.users)):
                lines += [f"    {box}" for box in boxes]
            else:
                title = _escaped(_listed([self.users[index].label for index in users]))
                lines.append(f'    subgraph g{nodes[0].number}["{title}"]')
                lines += [f"        {box}" for box in boxes]
                lines.append("    end")
        for node in self.nodes:
            lines += [f"    {_id(node)} --> n{number}" for number in node.depends_on]
        return "\n".join(lines)

    def _groups(self) -> dict[tuple[int, ...], list[LifespanNode]]:
        """The nodes by the users that reach them."""
        reached: dict[int, list[int]] = {node.number: [] for node in self.nodes}
        for index, user in enumerate(self.users):
            for number in self._below(user.needs):
                reached[number].append(index)
        groups: dict[tuple[int, ...], list[LifespanNode]] = {}
        for node in self.nodes:
            groups.setdefault(tuple(reached[node.number]), []).append(node)
        return groups

    def _below(self, numbers: Iterable[int]) -> set[int]:
        found: set[int] = set()
        left = list(numbers)
        while left:
            number = left.pop()
            if number not in found:
                found.add(number)
                left += self.nodes[number - 1].depends_on
        return found

    def why(self, provider: Callable[..., Any] | str) -> str:
        """Say why something is started: a way to it, and what else needs it. Several lines.

        Args:
            provider: the callable, or its name, or the last part of its name. Of what is
                overridden, it is told why the override is started.

        Raises:
            LifespanDependencyError: nothing declares it.
        """
        found = self._named(provider)
        if not found:
            known = ", ".join(dict.fromkeys(node.name for node in self.nodes)) or "there is none"
            name = provider if isinstance(provider, str) else name_of(provider)
            raise LifespanDependencyError(
                f"`{name}` is no lifespan dependency here. Give one that is declared: {known}."
            )
        texts = []
        for node in found:
            users = [user.label for user in self.users if node.number in self._below(user.needs)]
            texts.append(f"{node}\n\n{node.way}\n\nNeeded by {_listed(users, 10)}.")
        return "\n\n".join(texts)

    def _named(self, provider: Callable[..., Any] | str) -> list[LifespanNode]:
        """The nodes of a provider, or which override it; by name, also by the end of the name."""
        if not isinstance(provider, str):
            found = [node for node in self.nodes if node.provider == provider]
            provider = name_of(provider)
        else:
            found = [node for node in self.nodes if node.name == provider]
        return (
            found
            or [node for node in self.nodes if provider in (node.overrides or "").split(", ")]
            or [node for node in self.nodes if node.name.endswith(f".{provider}")]
        )

    def json(self) -> str:
        """Write it as JSON, with a version: fields may be added to it, others change it.

        A time without an end, such as `start_timeout=math.inf`, is null.
        """
        return json.dumps(
            {
                "version": 1,
                "dependencies": [
                    {
                        "number": node.number,
                        "name": node.name,
                        "where": node.where,
                        "depends_on": node.depends_on,
                        "place": node.place,
                        "overrides": node.overrides,
                        "options": {name: _plain(one) for name, one in node.options.items()},
                        "state": node.state,
                        "start_seconds": node.start_seconds,
                    }
                    for node in self.nodes
                ],
                "users": [
                    {"label": user.label, "where": user.where, "needs": user.needs}
                    for user in self.users
                ],
            },
            indent=2,
        )


# What has become of a node, and how long its start took.
Status = tuple[LifespanState, float | None]


def graph_of(
    plan: Plan,
    declarations: Iterable[Declaration],
    status: Callable[[Node], Status] = lambda node: ("planned", None),
) -> LifespanGraph:
    """The graph of a plan, of which this is declared, where the nodes have this status."""
    numbers = {node: number for number, node in enumerate(plan.nodes, 1)}
    overridden: dict[Node, dict[Provider, None]] = {}
    for (_, key), found in plan.resolved.items():
        if isinstance(found, Node) and found.provider != key.provider:
            overridden.setdefault(found, {})[key.provider] = None
    options: dict[Provider, dict[str, Any]] = {}
    for (provider, name), declared in plan.options.items():
        value = name_of(declared.value) if callable(declared.value) else declared.value
        options.setdefault(provider, {})[name] = value
    nodes = []
    for node, path in plan.nodes.items():
        state, seconds = status(node)
        overrides = overridden.get(node, {})
        nodes.append(
            LifespanNode(
                number=numbers[node],
                provider=node.provider,
                name=name_of(node.provider),
                where=location_of(node.provider),
                depends_on=tuple(dict.fromkeys(numbers[one] for one in node.dependencies)),
                place=None if node.place is None else str(node.place),
                overrides=", ".join(dict.fromkeys(map(name_of, overrides))) or None,
                options=_inherited(options, overrides) | options.get(node.provider, {}),
                _path=path,
                state=state,
                start_seconds=seconds,
            )
        )
    return LifespanGraph(nodes=tuple(nodes), users=tuple(_users(plan, declarations, numbers)))


def _inherited(
    options: Mapping[Provider, Mapping[str, Any]], overrides: Iterable[Provider]
) -> dict[str, Any]:
    """What holds for an override of these: it is refreshed in their place."""
    name = "refresh_every"
    found = [options[one][name] for one in overrides if name in options.get(one, ())]
    return dict.fromkeys([name], found[-1]) if found else {}


def _users(
    plan: Plan, declarations: Iterable[Declaration], numbers: Mapping[Node, int]
) -> Iterator[LifespanUser]:
    needs: dict[tuple[str, Any], dict[int, None]] = {}
    for overrides_provider, key, path in declarations:
        found = None if key is None else plan.resolved.get((overrides_provider, key))
        if isinstance(found, Node):
            top = path[0]
            needs.setdefault((top.label, top.call), {})[numbers[found]] = None
    for (label, call), found_numbers in needs.items():
        where = "" if call is None else location_of(call)
        yield LifespanUser(label=label, where=where, needs=tuple(found_numbers))


def _id(node: LifespanNode) -> str:
    return f"n{node.number}"


def _label(node: LifespanNode) -> str:
    # not "1. get_pool", which is a list to releases that read Markdown here
    texts = [f"{node.number}: {node.name}", node.where]
    if node.place is not None:
        texts.append(f"for {node.place}")
    if node.overrides is not None:
        texts.append(f"overrides {node.overrides}")
    return "\n".join(texts)


def _escaped(text: str) -> str:
    return _MARKUP.sub(lambda found: f"#{ord(found[0])};", text).replace("\n", "<br>")


def _shown(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """What JSON knows: no infinity."""
    return None if value == math.inf else value


def _listed(labels: list[str], most: int = MOST_NAMED) -> str:
    if len(labels) <= most + 1:
        return ", ".join(labels) or "nothing that is known"
    return f"{', '.join(labels[:most])} and {len(labels) - most} others"
