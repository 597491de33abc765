"""Functions with dependencies of all kinds, and an account of each call of them.

What a call has to do is worked out here a second time, from FastAPI's rules alone.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal

import anyio
from fastapi import Depends as Stock

from fastapi_lifespan_deps import Depends, LifespanContainer, get_container

KINDS = ("async generator", "generator", "async function", "function")
ITEMS = 3  # of each stream

Scope = Literal["function", "request"]


class Failure(Exception):
    """What goes wrong on purpose."""


class Severe(BaseException):
    """The same, and nobody catches it by chance."""


# --- What is declared


@dataclass(frozen=True)
class Need:
    """A declaration of a lifespan dependency, known by its number."""

    slot: int
    cached: bool = True


@dataclass(frozen=True)
class Use:
    """A declaration of a dependency that is made anew for each call."""

    part: int
    cached: bool = True
    scope: Scope | None = None


@dataclass(frozen=True)
class Spec:
    """A function of any of the kinds: a lifespan dependency, one of a call, or what is called."""

    kind: str
    needs: tuple[Need, ...] = ()
    uses: tuple[Use, ...] = ()
    takes_container: bool = False
    layout: str = "by name"  # of the parameters of what is called
    is_method: bool = False

    @property
    def is_generator(self) -> bool:
        return "generator" in self.kind

    @property
    def is_async(self) -> bool:
        return "async" in self.kind

    @property
    def names(self) -> list[str]:
        """The parameters that are injected."""
        names = [f"need_{index}" for index in range(len(self.needs))]
        names += [f"use_{index}" for index in range(len(self.uses))]
        return [*names, *(["container"] if self.takes_container else [])]


@dataclass(frozen=True)
class World:
    """What there is to call, and what overrides what."""

    slots: tuple[Spec, ...]
    fake_slots: tuple[Spec, ...]
    parts: tuple[Spec, ...]
    fake_parts: tuple[Spec, ...]
    functions: tuple[Spec, ...]
    early: frozenset[int] = frozenset()  # parts that only those with scope="function" may take

    def slots_below(self, needs: Iterable[Need]) -> set[int]:
        """All that may be below some declarations, whatever is overridden."""
        return reached(
            (need.slot for need in needs),
            lambda slot: [
                need.slot
                for spec in (self.slots[slot], self.fake_slots[slot])
                for need in spec.needs
            ],
        )

    def slots_of(self, spec: Spec) -> set[int]:
        """All lifespan dependencies that a call may need."""
        parts = reached(
            (use.part for use in spec.uses),
            lambda part: [
                use.part for one in (self.parts[part], self.fake_parts[part]) for use in one.uses
            ],
        )
        if spec.takes_container or any(self.parts[part].takes_container for part in parts):
            return set(range(len(self.slots)))
        specs = [
            spec,
            *(one for part in parts for one in (self.parts[part], self.fake_parts[part])),
        ]
        return self.slots_below(need for one in specs for need in one.needs)


def reached(first: Iterable[int], onward: Callable[[int], Iterable[int]]) -> set[int]:
    found: set[int] = set()
    left = list(first)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += onward(one)
    return found


# --- What a call has to do


@dataclass(frozen=True)
class Node:
    """A part that a call makes, and which of the parts made before it takes."""

    part: int
    is_fake: bool
    is_early: bool
    spec: Spec
    takes: dict[str, int]


def planned(
    world: World, function: Spec, explicit: Iterable[str], fakes: frozenset[int]
) -> tuple[list[Node], dict[str, int]]:
    """What a call makes, in order; and what of it the function takes."""
    nodes: list[Node] = []
    known: dict[tuple[int, Scope | None], int] = {}

    def takes(spec: Spec, given: Iterable[str] = ()) -> dict[str, int]:
        uses = ((f"use_{index}", use) for index, use in enumerate(spec.uses))
        return {name: make(use) for name, use in uses if name not in given}

    def make(use: Use) -> int:
        original, is_fake = world.parts[use.part], use.part in fakes
        spec = world.fake_parts[use.part] if is_fake else original
        scope = use.scope or ("request" if original.is_generator else None)
        key = use.part, scope
        if use.cached and key in known:
            return known[key]
        node = Node(use.part, is_fake, scope == "function", spec, takes(spec))
        nodes.append(node)
        known.setdefault(key, len(nodes) - 1)
        return len(nodes) - 1

    return nodes, takes(function, explicit)


# --- What is seen of a call


@dataclass(eq=False)
class Item:
    """What a lifespan dependency gives."""

    slot: int
    is_fake: bool
    number: int
    needs: tuple[tuple[Need, "Item"], ...]
    is_left: bool  # whether there is code after its `yield`
    state: str = "alive"

    def __post_init__(self) -> None:
        self.all: set[Item] = {self}.union(*(item.all for _, item in self.needs))

    def __repr__(self) -> str:
        return f"{'fake ' if self.is_fake else ''}{self.slot} (item {self.number})"


@dataclass(frozen=True)
class Spot:
    """Where something happens: in which thread, and in which task if that runs an event loop."""

    thread: int
    task: int | None

    @classmethod
    def here(cls, loop_thread: int) -> "Spot":
        thread = threading.get_ident()
        task = anyio.get_current_task().id if thread == loop_thread else None
        return cls(thread, task)


@dataclass(eq=False)
class Made:
    """What a part gives to a call, from its beginning to its end."""

    number: int
    part: int
    is_fake: bool
    spec: Spec
    values: dict[str, Any]
    began: Spot
    state: str = "entering"
    ended: Spot | None = None
    error: BaseException | None = None  # that kept it from being entered
    seen: BaseException | None = None  # that was thrown into it
    raised: BaseException | None = None  # that came out of its code after `yield`

    @property
    def is_to_be_left(self) -> bool:
        return self.spec.is_generator and self.state != "failed"

    @property
    def is_in_use(self) -> bool:
        is_held = self.state == "entered" and self.spec.is_generator
        return is_held or self.state in ("entering", "leaving")

    def __repr__(self) -> str:
        return f"{'fake ' if self.is_fake else ''}part {self.part} (made {self.number})"


def signed(function: Any, name: str, parameters: Sequence[Parameter]) -> Any:
    """Give a function that takes anything a name, and a signature."""
    function.__name__ = function.__qualname__ = name
    function.__signature__ = Signature(parameters)
    return function


def declared(
    spec: Spec, slots: Sequence[Any], parts: Sequence[Any], kind: Any = Parameter.KEYWORD_ONLY
) -> list[Parameter]:
    """The parameters that are injected."""
    found: list[Any] = [
        Annotated[Item, Depends(slots[need.slot], scope="lifespan", use_cache=need.cached)]
        for need in spec.needs
    ]
    found += [
        Annotated[Made, Stock(parts[use.part], use_cache=use.cached, scope=use.scope)]
        for use in spec.uses
    ]
    if spec.takes_container:
        found.append(Annotated[LifespanContainer, Stock(get_container)])
    pairs = zip(spec.names, found, strict=True)
    return [Parameter(name, kind, annotation=annotation) for name, annotation in pairs]


def in_leaving_order(made: Iterable[Made], nodes: Sequence[Node]) -> list[Made]:
    """What is to be left, as FastAPI leaves it: what has scope="function" first."""
    left = [one for one in made if one.is_to_be_left][::-1]
    return sorted(left, key=lambda one: not nodes[one.number].is_early)


def differences(
    values: Sequence[tuple[Need, Item]],
) -> Iterator[str]:
    """Two ways to one lifespan dependency must lead to one object."""
    seen: dict[int, Item] = {}
    left = list(values)
    while left:
        need, item = left.pop()
        if need.slot != item.slot:
            yield f"{need} was given {item}"
        if need.cached and seen.setdefault(need.slot, item) is not item:
            yield f"both {seen[need.slot]} and {item}"
        left += item.needs


current: ContextVar["Account | None"] = ContextVar("current", default=None)


@dataclass(eq=False)
class Account:
    """An account of a call: it is passed to the function, and known to all that is made for it.

    What must never be is told to `tell` when it happens; the rest is judged at the end.
    """

    name: str
    function: Spec
    loop_thread: int
    tell: Callable[[str], None]
    outer: "Account | None" = None
    explicit: dict[str, Any] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    left: list[Made] = field(default_factory=list)
    state: str = "asked"  # begun, ended: the function; over: the call
    values: dict[str, Any] = field(default_factory=dict)  # of the function
    spot: Spot | None = None  # of the function
    own: BaseException | None = None  # what the function has raised
    promised: object = None  # what the function has returned
    result: object = None  # what the caller got
    error: BaseException | None = None
    is_overtaken: bool = False  # a block, which nobody can cut off, though what it has is left

    def check(self, holds: bool, violation: str) -> None:
        if not holds:
            self.tell(f"{self.name}: {violation}")

    @property
    def items(self) -> list[tuple[Need, Item]]:
        """The lifespan values that it was given."""
        found = [(one.spec, one.values) for one in self.made] + [(self.function, self.values)]
        return [
            (need, values[f"need_{index}"])
            for spec, values in found
            for index, need in enumerate(spec.needs)
            if isinstance(values.get(f"need_{index}"), Item)
        ]

    @property
    def is_in_use(self) -> bool:
        is_running = self.state == "begun" and not self.is_overtaken
        return is_running or any(one.is_in_use for one in self.made)

    def here(self) -> Spot:
        return Spot.here(self.loop_thread)

    # The life of what is made for it

    def entering(self, part: int, is_fake: bool, spec: Spec, values: dict[str, Any]) -> Made:
        made = Made(len(self.made), part, is_fake, spec, values, self.here())
        self.check(self.state == "asked", f"{made} is entered after the function: {self.state}")
        self.check(not self.left, f"{made} is entered after others were left")
        states = {one.state for one in self.made}
        self.check(states <= {"entered"}, f"{made} is entered beside others: {states}")
        self.made.append(made)
        self.check_usable(f"{made} begins")
        return made

    def entered(self, made: Made, error: BaseException | None = None) -> None:
        self.check(made.state == "entering", f"{made} was entered: {made.state}")
        made.state = "entered" if error is None else "failed"
        made.error = error

    def begin(self, values: dict[str, Any]) -> None:
        self.check(self.state == "asked", f"it begins, and is {self.state}")
        states = {one.state for one in self.made}
        self.check(states <= {"entered"} and not self.left, f"it begins beside {states}")
        self.state, self.values, self.spot = "begun", values, self.here()
        self.check_usable("the function begins")

    def end(self, error: BaseException | None = None, promised: object = None) -> None:
        self.check(self.state == "begun", f"it ends, and is {self.state}")
        self.check_usable("the function ends")
        self.state, self.own, self.promised = "ended", error, promised

    def leaving(self, made: Made, error: BaseException | None) -> None:
        self.check(made.state == "entered", f"{made} is left: it is {made.state}")
        is_under = self.state == "begun" and not self.is_overtaken
        self.check(not is_under, f"{made} is left under the function")
        self.check(self.state != "over", f"{made} is left after the end of the call")
        states = {one.state for one in self.made if one is not made}
        self.check("leaving" not in states, f"{made} is left beside others: {states}")
        made.state, made.seen, made.ended = "leaving", error, self.here()
        self.left.append(made)
        self.check_usable(f"{made} is left")

    def has_left(self, made: Made, error: BaseException | None) -> None:
        self.check(made.state == "leaving", f"{made} was left: it is {made.state}")
        self.check_usable(f"{made} was left")
        made.state, made.raised = "left", error

    def over(self, error: BaseException | None, result: object) -> None:
        self.check(self.state in ("asked", "ended"), f"it is over, and the function {self.state}")
        for one in self.made:
            is_over = one.state in ("left", "failed") or not one.spec.is_generator
            self.check(is_over, f"it is over, and {one} is {one.state}")
        self.state, self.error, self.result = "over", error, result

    def check_usable(self, when: str) -> None:
        for _, item in [] if self.is_overtaken else self.items:
            for one in item.all:
                self.check(one.state == "alive", f"{when}, and {one} is {one.state}")

    # What it should have been

    def misfit(
        self, nodes: Sequence[Node], takes: dict[str, int], fake_slots: frozenset[int]
    ) -> str | None:
        """In what it is not what was planned; None if it is."""
        found = [(one.part, one.is_fake) for one in self.made]
        wanted = [(node.part, node.is_fake) for node in nodes]
        if found != wanted[: len(found)]:
            return f"made {found} and not {wanted}"
        if self.spot is not None and len(found) != len(wanted):
            return f"made only {found} of {wanted}"
        for one, node in zip(self.made, nodes, strict=False):
            if any(one.values.get(name) is not self.made[at] for name, at in node.takes.items()):
                return f"{one} was given {one.values}, and not {node.takes}"
        if self.spot is not None:
            given = {name: self.made[at] for name, at in takes.items()} | self.explicit
            if any(self.values.get(name) is not one for name, one in given.items()):
                return f"the function was given {self.values}, and not {given}"
        for _, item in self.items:
            for every in item.all:
                if every.is_fake != (every.slot in fake_slots):
                    return f"given {every} when these were overridden: {sorted(fake_slots)}"
        expected = in_leaving_order(self.made, nodes)
        if self.left != expected:
            return f"left {self.left}, and not {expected}"
        return None
