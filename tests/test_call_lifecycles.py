"""Any story of calls outside of requests: at once, in each other, in threads, while values change.

What the library promises is checked whenever something is entered or left, and once more at the end
of each call and of the story.
"""

import asyncio
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_lifespan_deps import (
    LifespanContainer,
    LifespanNotRunning,
    RefreshError,
    UnavailableLifespanDependency,
    View,
    current_container,
)
from fastapi_lifespan_deps.live.asking import under
from fastapi_lifespan_deps.live.generation import Pin
from fastapi_lifespan_deps.live.tasks import current_loop
from tests.calling import (
    ITEMS,
    KINDS,
    Account,
    Failure,
    Item,
    Made,
    Need,
    Severe,
    Spec,
    Spot,
    Use,
    World,
    current,
    declared,
    differences,
    planned,
    signed,
)
from tests.recording import leaves

PATIENCE = 10  # seconds until what still waits is taken to wait for ever

# --- What may happen


@dataclass(frozen=True)
class Trouble:
    """What happens at a moment of one of the parts that a call makes, known by its number."""

    number: int
    moment: str
    what: str


@dataclass(frozen=True)
class Refresh:
    """Ask for a refresh."""

    slot: int
    policy: Any = "availability_preserving"


@dataclass(frozen=True)
class Call:
    """Call a function, or enter a part by itself."""

    function: int
    way: str = "call"
    troubles: tuple[Trouble, ...] = ()
    ends: str | None = None  # how the function does: it may wait first
    explicit: tuple[int, ...] = ()
    takes: int = ITEMS + 1  # of the items of a stream
    inner: "Call | None" = None
    raises: bool = False  # what the inner call raises
    refresh: Refresh | None = None  # that it asks for


@dataclass(frozen=True)
class Rest:
    """Let everything go on until it waits."""


@dataclass(frozen=True)
class Go:
    """Let something go on that waits."""

    which: int


@dataclass(frozen=True)
class Cancel:
    """Cancel a call."""

    which: int


@dataclass(frozen=True)
class Override:
    """Set the override of a lifespan dependency, or of a part; or remove it."""

    of: Literal["slot", "part"]
    number: int
    is_set: bool


Step = Rest | Call | Go | Cancel | Refresh | Override


@dataclass(frozen=True)
class Story:
    """What there is to call, and what happens. After each step others go on for some ticks."""

    world: World
    steps: tuple[tuple[Step, int], ...] = ()
    start: Any = "sequential"
    end: str = "left"


TICKS = (0, 1, 3, 30)
WAYS = ("call", "injected", "native", "enter", "thread", "handed")


@st.composite
def worlds(draw: st.DrawFn) -> World:
    size, parts = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    early = draw(st.sets(st.integers(0, parts - 1))) if parts else set()
    has_early = draw(st.booleans())

    def needs(below: int, most: int) -> tuple[Need, ...]:
        if not below:
            return ()
        found = draw(st.lists(st.integers(0, below - 1), max_size=most, unique=True))
        return tuple(Need(slot, draw(st.integers(0, 7)) > 0) for slot in found)

    def use(part: int, *, may_be_early: bool) -> Use:
        scopes: list[Any] = [None, None, "request"]
        if part in early:
            scopes = ["function"]
        elif may_be_early and has_early:
            scopes.append("function")
        return Use(part, draw(st.integers(0, 3)) > 0, draw(st.sampled_from(scopes)))

    def uses(below: int, most: int, *, may_be_early: bool) -> tuple[Use, ...]:
        usable = [part for part in range(below) if may_be_early or part not in early]
        if not usable:
            return ()
        found = draw(st.lists(st.sampled_from(usable), max_size=most))
        return tuple(use(part, may_be_early=may_be_early) for part in found)

    def slots() -> tuple[Spec, ...]:
        kinds = st.sampled_from((*KINDS[:2], *KINDS))
        return tuple(Spec(draw(kinds), needs(index, 2)) for index in range(size))

    def fresh() -> Iterator[Spec]:
        for index in range(parts):
            kind = draw(st.sampled_from((*KINDS[:2], *KINDS)))
            # what is left later cannot take it, as FastAPI has it
            may_be_early = index in early or "generator" not in kind
            yield Spec(
                kind,
                needs(size, 1),
                uses(index, 2, may_be_early=may_be_early),
                draw(st.integers(0, 7)) == 0,
            )

    def functions() -> Iterator[Spec]:
        for _ in range(draw(st.integers(1, 4))):
            yield Spec(
                draw(st.sampled_from(KINDS)),
                needs(size, 2),
                uses(parts, 4, may_be_early=True),
                draw(st.integers(0, 7)) == 0,
                draw(st.sampled_from(("by name", "first", "by position"))),
                draw(st.booleans()),
            )
        everything = (
            Use(part, scope="function" if part in early else None) for part in range(parts)
        )
        yield Spec("async function", uses=tuple(everything))  # also what is entered by itself

    return World(
        slots(), slots(), tuple(fresh()), tuple(fresh()), tuple(functions()), frozenset(early)
    )


numbers = st.integers(0, 5)
refreshes = st.builds(
    Refresh,
    st.integers(0, 3),
    st.sampled_from(("availability_preserving", "resource_preserving")),
)
troubles = st.one_of(
    st.builds(Trouble, numbers, st.just("enter"), st.sampled_from(("wait", "fail", "severe"))),
    st.builds(
        Trouble, numbers, st.just("leave"), st.sampled_from(("wait", "fail", "swallow", "swallow"))
    ),
)


def calls(inner: "st.SearchStrategy[Call | None]") -> st.SearchStrategy[Call]:
    return st.builds(
        Call,
        numbers,
        st.sampled_from(WAYS),
        st.lists(troubles, max_size=3).map(tuple),
        st.sampled_from((None, None, "wait", "wait", "fail", "wait and fail", "severe")),
        st.one_of(st.just(()), st.lists(numbers, max_size=2).map(tuple)),
        st.integers(0, ITEMS + 1),
        inner,
        st.booleans(),
        st.one_of(st.none(), st.none(), st.none(), refreshes),
    )


any_call = calls(st.one_of(st.none(), st.none(), calls(st.one_of(st.none(), calls(st.none())))))


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Stories in which much happens at once."""
    steps = st.one_of(
        any_call,
        any_call,
        any_call,
        st.builds(Go, numbers),
        st.builds(Go, numbers),
        st.builds(Cancel, numbers),
        refreshes,
        st.builds(Override, st.sampled_from(("slot", "part")), st.integers(0, 4), st.booleans()),
        st.builds(Rest),
    )
    taken = st.lists(st.tuples(steps, st.sampled_from(TICKS)), min_size=4, max_size=24)
    return Story(
        draw(worlds()),
        tuple(draw(taken)),
        draw(st.sampled_from(("sequential", "concurrent"))),
        draw(st.sampled_from(("left", "left", "late", "cut", "cancelled", "fails"))),
    )


# --- What is seen of it


class Gate:
    """Where something waits, in the event loop or in a thread."""

    def __init__(self, *, is_sync: bool, can_be_cut: bool = False) -> None:
        self.can_be_cut = can_be_cut
        self.is_waited_for = True
        self._opened: Any = threading.Event() if is_sync else anyio.Event()

    def wait_in_thread(self) -> bool:
        return bool(self._opened.wait(PATIENCE))

    async def wait(self) -> None:
        await self._opened.wait()

    def open(self) -> None:
        self.is_waited_for = False
        self._opened.set()


@dataclass(eq=False)
class Told(Account):
    """An account of a call of a story."""

    call: Call = field(kw_only=True)
    way: str = field(kw_only=True)
    began: int = 0  # at the clock of the story
    versions: tuple[int, int | None] = (0, None)  # of the overrides: when it was pinned
    has_asked: bool = False  # for a refresh
    pin: Pin | None = None
    was_lossy: bool = False  # values had gone of the generation that the outer call is pinned to
    scope: anyio.CancelScope | None = None
    task: "asyncio.Task[None] | None" = None
    is_running: bool = False  # by itself, so that it can be cancelled
    is_cancelled: bool = False
    caller: Spot | None = None

    @property
    def pinned(self) -> int:
        """When it was pinned, at the earliest: with the outer call."""
        outer = self.outer
        return min(self.began, outer.pinned) if isinstance(outer, Told) else self.began

    @property
    def may_be_cancelled(self) -> bool:
        outer = self.outer
        return self.is_cancelled or (isinstance(outer, Told) and outer.may_be_cancelled)

    @property
    def is_native(self) -> bool:
        outer = self.outer
        return self.task is not None or (isinstance(outer, Told) and outer.is_native)

    def trouble(self, number: int, moment: str) -> str | None:
        """What happens then; of several what was named first."""
        found = (
            one.what for one in self.call.troubles if (one.number, one.moment) == (number, moment)
        )
        return next(found, None)


@dataclass(eq=False)
class Asked:
    """A refresh that was asked for: when, with how many items, and when that was over."""

    step: Refresh
    began: int
    items: int
    ended: int | None = None


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


class Play:
    """A container of which a story is told, and everything that is known about it."""

    def __init__(self, story: Story, backend: str) -> None:
        self.story = story
        self.backend = backend
        self.world = story.world
        self.phase = "starting"
        self.log: list[str] = []
        self.violations: list[str] = []
        self.items: list[Item] = []
        self.accounts: list[Told] = []
        self.refreshes: list[Asked] = []
        self.gates: list[Gate] = []
        self.threads: list[threading.Thread] = []
        self.is_free = self.uncut_are_free = False  # nothing waits
        self.clock = 0
        self.counter = itertools.count()
        self.callers = 0
        self.owner = object()
        self.fakes: list[tuple[frozenset[int], frozenset[int]]] = [(frozenset(), frozenset())]
        self.records = Log()
        self.build()

    def tell(self, violation: str) -> None:
        self.log.append(f"VIOLATION: {violation}")
        self.violations.append(violation)

    def check(self, holds: bool, violation: str) -> None:
        if not holds:
            self.tell(violation)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    # What is declared

    def build(self) -> None:
        world = self.world
        self.slots: list[Any] = []
        self.parts: list[Any] = []
        for index, spec in enumerate(world.slots):
            parameters = declared(spec, self.slots, ())
            self.slots.append(signed(self.slot(index, False, spec), f"slot_{index}", parameters))
        for index, spec in enumerate(world.parts):
            self.parts.append(self.signed_part(index, False, spec))
        self.fake_slots = [
            signed(self.slot(index, True, spec), f"fake_{index}", declared(spec, self.slots, ()))
            for index, spec in enumerate(world.fake_slots)
        ]
        self.fake_parts = [
            self.signed_part(index, True, spec) for index, spec in enumerate(world.fake_parts)
        ]
        self.functions = [
            self.signed_function(f"function_{index}", spec)
            for index, spec in enumerate(world.functions)
        ]
        self.container = LifespanContainer(
            *self.slots, handlers=self.functions, lifespan_start=self.story.start
        )
        self.injected = [self.container.inject(function) for function in self.functions]
        names = [f"function_{index}" for index in range(len(self.functions))]
        self.bound = type("Bound", (), dict(zip(names, self.functions, strict=True)))()
        self.bound_injected = type("Bound", (), dict(zip(names, self.injected, strict=True)))()

    def slot(self, slot: int, is_fake: bool, spec: Spec) -> Callable[..., Any]:
        def opened(values: dict[str, Item]) -> Item:
            needs = tuple(zip(spec.needs, values.values(), strict=True))
            item = Item(slot, is_fake, len(self.items), needs, spec.is_generator)
            self.log.append(f"    start {item} on {[need for _, need in needs]}")
            for need in item.all - {item}:
                self.check(need.state == "alive", f"{item} starts on {need}, which is {need.state}")
            self.items.append(item)
            return item

        async def async_generator(**values: Item) -> AsyncIterator[Item]:
            await anyio.lowlevel.checkpoint()
            item = opened(values)
            try:
                yield item
            finally:
                self.leaving(item)
                await anyio.lowlevel.checkpoint()
                item.state = "gone"

        def generator(**values: Item) -> Iterator[Item]:
            item = opened(values)
            try:
                yield item
            finally:
                self.leaving(item)
                item.state = "gone"

        async def async_function(**values: Item) -> Item:
            await anyio.lowlevel.checkpoint()
            return opened(values)

        def function(**values: Item) -> Item:
            return opened(values)

        chosen: Callable[..., Any] = by_kind(
            spec, async_generator, generator, async_function, function
        )
        return chosen

    def leaving(self, item: Item) -> None:
        self.log.append(f"    leave {item}")
        self.check(item.state == "alive", f"{item} is left twice: it is {item.state}")
        item.state = "leaving"
        for other in self.items:
            if item in other.all and other is not item and other.is_left:
                self.check(other.state == "gone", f"{item} is left before {other}, on top of it")
        for account in list(self.accounts):
            if account.is_in_use and any(item in one.all for _, one in account.items):
                self.tell(f"{item} is left while {account.name} uses it")

    def signed_part(self, part: int, is_fake: bool, spec: Spec) -> Any:
        parameters = declared(spec, self.slots, self.parts)
        given = Parameter("account", Parameter.KEYWORD_ONLY, default=None)
        name = f"{'fake_' if is_fake else ''}part_{part}"
        return signed(self.part(part, is_fake, spec), name, [*parameters, given])

    def part(self, part: int, is_fake: bool, spec: Spec) -> Callable[..., Any]:
        def entering(account: Told | None, values: dict[str, Any]) -> tuple[Told, Made]:
            found = self.account(account)
            made = found.entering(part, is_fake, spec, values)
            self.note_pinned(found)
            self.log.append(f"    {found.name} enters {made} with {values}")
            return found, made

        def leaving(account: Told, made: Made, error: BaseException | None) -> None:
            self.log.append(f"    {account.name} leaves {made}, which sees {error!r}")
            account.leaving(made, error)

        async def async_generator(account: Any = None, **values: Any) -> AsyncIterator[Made]:
            account, made = entering(account, values)
            error: BaseException | None = None
            try:
                await self.reach(account, made, "enter")
            except BaseException as raised:
                account.entered(made, raised)
                raise
            account.entered(made)
            try:
                yield made
            except BaseException as thrown:
                error = thrown
            leaving(account, made, error)
            try:
                await self.reach(account, made, "leave")
                self.go_on(account, made, error)
            except BaseException as raised:
                account.has_left(made, raised)
                raise
            finally:
                error = None
            account.has_left(made, None)

        def generator(account: Any = None, **values: Any) -> Iterator[Made]:
            account, made = entering(account, values)
            error: BaseException | None = None
            try:
                self.reach_in_thread(account, made, "enter")
            except BaseException as raised:
                account.entered(made, raised)
                raise
            account.entered(made)
            try:
                yield made
            except BaseException as thrown:
                error = thrown
            leaving(account, made, error)
            try:
                self.reach_in_thread(account, made, "leave")
                self.go_on(account, made, error)
            except BaseException as raised:
                account.has_left(made, raised)
                raise
            finally:
                error = None
            account.has_left(made, None)

        async def async_function(account: Any = None, **values: Any) -> Made:
            account, made = entering(account, values)
            try:
                await self.reach(account, made, "enter")
            except BaseException as raised:
                account.entered(made, raised)
                raise
            account.entered(made)
            return made

        def function(account: Any = None, **values: Any) -> Made:
            account, made = entering(account, values)
            try:
                self.reach_in_thread(account, made, "enter")
            except BaseException as raised:
                account.entered(made, raised)
                raise
            account.entered(made)
            return made

        chosen: Callable[..., Any] = by_kind(
            spec, async_generator, generator, async_function, function
        )
        return chosen

    def account(self, passed: Any) -> Told:
        """That of the call in whose code we are. It was passed by name, if there is a function."""
        found = current.get()
        assert isinstance(found, Told)
        is_named = passed is found or (passed is None and found.way == "enter")
        self.check(is_named, f"{found.name}: a part was given the account {passed}")
        return found

    def note_pinned(self, account: Told) -> None:
        first, last = account.versions
        if last is None:
            account.versions = first, len(self.fakes) - 1
            account.pin = under.get().pin
            outer = account.outer
            if isinstance(outer, Told) and outer.pin is not None:
                account.was_lossy = not outer.pin.generation.is_whole

    async def reach(self, account: Told, made: Made, moment: str) -> None:
        what = account.trouble(made.number, moment)
        if what == "wait":
            await self.wait(account, f"{moment} of {made}")
        elif made.number % 2:
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                self.check_cut(account, moment)
                raise
        self.fail(account, made, moment, what)

    def check_cut(self, account: Told, moment: str) -> None:
        is_shielded = moment == "leave" and not account.is_native
        self.check(not is_shielded, f"{account.name}: a cancellation got into code after `yield`")

    async def wait(self, account: Told, where: str) -> None:
        gate = Gate(is_sync=False, can_be_cut=not where.startswith("leave"))
        if self.is_free or (self.uncut_are_free and not gate.can_be_cut):
            return
        self.gates.append(gate)
        self.log.append(f"    {account.name} waits at {where}")
        try:
            await gate.wait()
        except anyio.get_cancelled_exc_class():
            self.check_cut(account, where.split()[0])
            raise
        finally:
            gate.is_waited_for = False

    def reach_in_thread(self, account: Told, made: Made, moment: str) -> None:
        what = account.trouble(made.number, moment)
        if what == "wait":
            self.wait_in_thread(account, f"{moment} of {made}")
        self.fail(account, made, moment, what)

    def wait_in_thread(self, account: Told, where: str) -> None:
        gate = Gate(is_sync=True)
        self.gates.append(gate)
        self.log.append(f"    {account.name} waits in a thread at {where}")
        if self.uncut_are_free:
            gate.open()
        self.check(gate.wait_in_thread(), f"for ever: {account.name} at {where}")

    def fail(self, account: Told, made: Made, moment: str, what: str | None) -> None:
        if what in ("fail", "severe"):
            kind = Failure if what == "fail" else Severe
            raise kind(f"{moment} of {made} of {account.name}")

    def go_on(self, account: Told, made: Made, error: BaseException | None) -> None:
        """Raise what was thrown into a part, unless that swallows it."""
        if error is not None and account.trouble(made.number, "leave") != "swallow":
            raise error

    # What is called

    def signed_function(self, name: str, spec: Spec) -> Any:
        layouts = {
            "by name": (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD),
            "first": (Parameter.POSITIONAL_OR_KEYWORD, Parameter.POSITIONAL_OR_KEYWORD),
            "by position": (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_ONLY),
        }
        injected, given = layouts[spec.layout]
        parameters = declared(spec, self.slots, self.parts, injected)
        account = Parameter("account", given)
        parameters = (
            [account, *parameters]
            if injected is Parameter.KEYWORD_ONLY
            else [
                *parameters,
                account,
            ]
        )
        if spec.is_method:
            parameters.insert(0, Parameter("self", parameters[0].kind))
        function: Any = None

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Told:
            values = function.__signature__.bind(*args, **kwargs).arguments
            if spec.is_method:
                owner = values.pop("self")
                self.check(owner in (self.bound, self.bound_injected), f"{name} is of {owner}")
            account = values.pop("account")
            self.check(account is current.get(), f"{name} was given {account}")
            return self.begin(account, values)

        async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[int]:
            account = begin(args, kwargs)
            try:
                for item in range(ITEMS):
                    if item == 1:
                        await self.act(account)
                    yield item
                    account.check_usable("the function goes on")
            except BaseException as error:
                self.end(account, error)
                raise
            self.end(account)

        def generator(*args: Any, **kwargs: Any) -> Iterator[int]:
            account = begin(args, kwargs)
            try:
                for item in range(ITEMS):
                    if item == 1:
                        self.act_in_thread(account)
                    yield item
                    account.check_usable("the function goes on")
            except BaseException as error:
                self.end(account, error)
                raise
            self.end(account)

        async def async_function(*args: Any, **kwargs: Any) -> object:
            account = begin(args, kwargs)
            try:
                await self.act(account)
            except BaseException as error:
                self.end(account, error)
                raise
            return self.end(account)

        def plain(*args: Any, **kwargs: Any) -> object:
            account = begin(args, kwargs)
            try:
                self.act_in_thread(account)
            except BaseException as error:
                self.end(account, error)
                raise
            return self.end(account)

        function = by_kind(spec, async_generator, generator, async_function, plain)
        return signed(function, name, parameters)

    def begin(self, account: Told, values: dict[str, Any]) -> Told:
        account.is_overtaken = account.way == "enter" and self.is_cut
        self.log.append(f"    {account.name} begins with {values}")
        account.begin(values)
        self.note_pinned(account)
        self.check_container(account)
        return account

    def check_container(self, account: Told) -> None:
        """What the container gives that a call has been given is of the call's generation."""
        found = [one.values["container"] for one in account.made if one.spec.takes_container]
        found += [account.values["container"]] if "container" in account.values else []
        for container in found:
            if not isinstance(container, View):
                continue  # an explicit one
            looked_up = []
            for slot in range(len(self.slots)):
                with suppress(UnavailableLifespanDependency):  # it was, when the call began
                    looked_up.append((Need(slot), container[self.slots[slot]]))
            for difference in differences([*account.items, *looked_up]):
                self.tell(f"{account.name}: the container gave {looked_up}: {difference}")

    def end(self, account: Told, error: BaseException | None = None) -> object:
        self.log.append(f"    {account.name} ends with {error!r}")
        promised = object()
        account.end(error, promised)
        return promised

    async def act(self, account: Told) -> None:
        """What a function does: ask for a refresh, call others, wait, fail."""
        call = account.call
        if call.refresh is not None:
            await self.refresh(call.refresh, account)
        if call.ends is not None and "wait" in call.ends:
            await self.wait(account, "function")
        if call.inner is not None:
            inner = self.told(call.inner, account)
            await self.perform(inner)
            self.check_inner(account, inner)
        self.fail_function(account)

    def act_in_thread(self, account: Told) -> None:
        call = account.call
        if call.ends is not None and "wait" in call.ends:
            self.wait_in_thread(account, "function")
        if call.inner is not None:
            inner = self.told(call.inner, account)
            if inner.way == "thread":  # others need the event loop
                self.perform_in_thread(inner)
                self.check_inner(account, inner)
        self.fail_function(account)

    def fail_function(self, account: Told) -> None:
        if account.call.ends is not None and "fail" in account.call.ends:
            raise Failure(f"function of {account.name}")
        if account.call.ends == "severe":
            raise Severe(f"function of {account.name}")

    def check_inner(self, account: Told, inner: Told) -> None:
        """An inner call has the values of the outer one, unless that has asked for others."""
        if not (account.has_asked or inner.was_lossy):
            for difference in differences([*account.items, *inner.items]):
                self.tell(f"{inner.name} in {account.name}: {difference}")
        if account.call.raises and inner.error is not None:
            raise inner.error

    # Calls

    def told(self, call: Call, outer: Told | None = None) -> Told:
        """The account of a call that begins now, as its function can be called."""
        world = self.world
        number = call.function % len(world.functions)
        spec = world.functions[number]
        parts = [part for part in range(len(world.parts)) if part not in world.early]
        is_in_thread = outer is not None and not outer.function.is_async
        if call.way == "enter" and parts and not is_in_thread:
            part = parts[call.function % len(parts)]
            spec, way, what = Spec("async function", uses=(Use(part),)), "enter", f"part {part}"
        else:
            what = f"function {number} ({spec.kind})"
            way = call.way
            if spec.kind == "generator" or (spec.kind == "function" and is_in_thread):
                way = "thread"
            elif (spec.kind == "function" and way not in ("thread", "native")) or (
                spec.kind == "async function" and way in ("thread", "enter", "handed")
            ):
                way = "call"
            elif spec.kind == "async generator" and way in ("thread", "enter", "call"):
                way = "injected"
        explicit = {}
        if way != "enter" and spec.layout != "by position" and spec.names:
            names = [spec.names[one % len(spec.names)] for one in call.explicit]
            explicit = {name: object() for name in names}
        name = f"call {next(self.counter)} of {what} by {way}"
        if outer is not None:
            name += f" in ({outer.name})"
        first = len(self.fakes) - 1 if outer is None else outer.versions[0]
        return Told(
            name,
            spec,
            self.loop_thread,
            self.tell,
            outer,
            explicit,
            call=call,
            way=way,
            began=self.tick(),
            versions=(first, None),
        )

    def target(self, account: Told, injected: bool) -> Callable[..., Any]:
        number = account.call.function % len(self.functions)
        if account.function.is_method:
            owner = self.bound_injected if injected else self.bound
            method: Callable[..., Any] = getattr(owner, f"function_{number}")
            return method
        found: Callable[..., Any] = (self.injected if injected else self.functions)[number]
        return found

    def start(self, call: Call) -> None:
        account = self.told(call)
        account.is_running = True
        self.callers += 1
        if account.way == "native" and self.backend == "asyncio":
            account.task = asyncio.get_running_loop().create_task(self.run_call(account))
        else:
            self.tasks.start_soon(self.run_call, account)

    async def run_call(self, account: Told) -> None:
        try:
            with anyio.CancelScope() as account.scope:
                if account.way == "thread":
                    await self.run_in_thread(account)
                else:
                    await self.perform(account)
        finally:
            account.is_running = False
            self.callers -= 1

    async def run_in_thread(self, account: Told) -> None:
        """Call in a thread that nobody knows of."""
        ended = anyio.Event()

        def work() -> None:
            try:
                self.perform_in_thread(account)
            finally:
                self.soon(ended.set)

        thread = threading.Thread(target=work, name=account.name)
        self.threads.append(thread)
        thread.start()
        with anyio.CancelScope(shield=True):
            await ended.wait()

    async def perform(self, account: Told) -> None:
        """Make a call, and judge what comes of it."""
        self.accounts.append(account)
        token = current.set(account)
        account.caller = account.here()
        result: object = None
        error: BaseException | None = None
        try:
            result = await self.ask(account)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception | Severe):
                raise
        finally:
            current.reset(token)
            self.over(account, error, result)

    async def ask(self, account: Told) -> object:
        if account.way == "enter":
            part = self.parts[account.function.uses[0].part]
            async with self.view.enter(part) as made:
                self.begin(account, {"use_0": made})
                try:
                    await self.act(account)
                except BaseException as error:
                    self.end(account, error)
                    raise
                return self.end(account)
        explicit = account.explicit
        if account.function.kind == "async generator":
            return await self.take(account, self.target(account, True)(account, **explicit))
        if account.way == "thread":  # in another call

            def work() -> object:
                account.caller = account.here()
                return self.ask_in_thread(account)

            return await anyio.to_thread.run_sync(work)
        if account.way == "injected":
            return await self.target(account, True)(account, **explicit)
        return await self.view.call(self.target(account, False), account, **explicit)

    async def take(self, account: Told, items: Any) -> object:
        """Take some items of a stream, perhaps the first one in another task."""
        taken: list[int] = []
        failed: list[BaseException] = []

        async def take_first() -> None:
            try:
                taken.append(await anext(items))
            except (Exception, Severe) as error:
                failed.append(error)

        async with aclosing(items):
            if account.way == "handed" and account.call.takes:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(take_first)
            try:
                if failed:
                    raise failed.pop()
                while len(taken) < account.call.takes:
                    taken.append(await anext(items))
            except StopAsyncIteration:
                pass
        self.check_taken(account, taken)
        return account.promised

    def check_taken(self, account: Told, taken: list[int]) -> None:
        wanted = min(account.call.takes, ITEMS)
        self.check(taken == list(range(wanted)), f"{account.name} gave {taken}")

    def perform_in_thread(self, account: Told) -> None:
        self.accounts.append(account)
        token = current.set(account)
        account.caller = account.here()
        result: object = None
        error: BaseException | None = None
        try:
            result = self.ask_in_thread(account)
        except BaseException as raised:
            error = raised
        finally:
            current.reset(token)
            self.over(account, error, result)

    def ask_in_thread(self, account: Told) -> object:
        target = self.target(account, True)
        if account.function.kind == "function":
            return target(account, **account.explicit)
        taken: list[int] = []
        with closing(target(account, **account.explicit)) as items:
            while len(taken) < account.call.takes:
                try:
                    taken.append(next(items))
                except StopIteration:
                    break
        if self.phase != "stopping":
            self.check_taken(account, taken)
        return account.promised

    def over(self, account: Told, error: BaseException | None, result: object) -> None:
        self.log.append(f"    {account.name} is over: {error!r}")
        account.over(error, result)
        Verdict(self, account).give()

    # Refreshes and overrides

    async def refresh(self, step: Refresh, account: Told | None = None) -> None:
        slot = step.slot % len(self.slots)
        others = [one for one in self.refreshes if one.step.slot == slot and one.ended is None]
        items = min((one.items for one in others), default=len(self.items))  # it joins them
        asked = Asked(Refresh(slot, step.policy), self.tick(), items)
        self.refreshes.append(asked)
        self.log.append(f"    {asked.step} is asked for by {account and account.name}")
        if account is not None:
            account.has_asked = True
        container = self.view if account is None else current_container()
        self.callers += account is None
        try:
            await container.refresh(self.slots[slot], policy=step.policy)
        except (RefreshError, LifespanNotRunning) as error:
            self.log.append(f"    {asked.step} failed: {error!r}")
            waits = any(
                other.step.policy == "resource_preserving"
                for other in self.refreshes
                if other is asked or other.ended is None
            )
            is_excused = self.phase == "stopping" or (account is not None and waits)
            self.check(is_excused, f"{asked.step} failed: {error!r}")
            self.refreshes.remove(asked)
        else:
            self.log.append(f"    {asked.step} is done")
            asked.ended = self.tick()
        finally:
            self.callers -= account is None

    def override(self, step: Override) -> None:
        originals, fakes = (
            (self.slots, self.fake_slots) if step.of == "slot" else (self.parts, self.fake_parts)
        )
        if not originals:
            return
        number = step.number % len(originals)
        overridden = dict(zip(("slot", "part"), self.fakes[-1], strict=True))
        overrides = self.container.dependency_overrides
        if step.is_set:
            overrides[originals[number]] = fakes[number]
            overridden[step.of] |= {number}
        else:
            overrides.pop(originals[number], None)
            overridden[step.of] -= {number}
        self.fakes.append((overridden["slot"], overridden["part"]))

    # The story

    async def rest(self) -> None:
        """Let others go on, threads too."""
        for _ in range(3):
            for _ in range(12):
                await anyio.lowlevel.checkpoint()
            await anyio.to_thread.run_sync(int)

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(PATIENCE):
            while not holds():
                await anyio.to_thread.run_sync(int)
        self.check(holds(), f"for ever: {what}")

    def soon(self, function: Callable[[], object]) -> None:
        schedule = getattr(self.loop, "call_soon_threadsafe", None) or self.loop.run_sync_soon
        schedule(function)

    async def take_step(self, step: Step) -> None:
        self.log.append(f"{step}")
        match step:
            case Rest():
                await self.rest()
            case Call():
                self.start(step)
            case Go(which):
                waiting = [gate for gate in self.gates if gate.is_waited_for]
                if waiting:
                    waiting[which % len(waiting)].open()
            case Cancel(which):
                running = [one for one in self.accounts if one.is_running]
                if running:
                    account = running[which % len(running)]
                    target = account.task or account.scope
                    if target is not None:
                        account.is_cancelled = True
                        target.cancel()
            case Refresh():
                self.tasks.start_soon(self.refresh, step)
            case Override():
                self.override(step)

    def free(self, *, uncut_only: bool = False) -> None:
        """Let everything go on that waits, or will; or only what can't be cancelled."""
        self.uncut_are_free = True
        self.is_free = self.is_free or not uncut_only
        for gate in self.gates:
            if not (gate.can_be_cut and uncut_only):
                gate.open()

    async def let_go(self) -> None:
        """Let running calls end while their container is left, but those that it cuts off."""
        await self.rest()
        self.free(uncut_only=self.is_cutting)

    async def heal(self) -> None:
        """Find all well when every call has ended: nothing is held, and everything can be had."""
        self.free()
        await self.until("calls", lambda: not self.callers)
        for number in range(4):
            self.override(Override("slot", number, False))
        for number in range(5):
            self.override(Override("part", number, False))
        await self.until_nothing_is_held()
        for slot in range(len(self.slots)):
            await self.refresh(Refresh(slot, "resource_preserving"))
        for number in range(len(self.functions)):
            self.start(Call(number, "thread"))
            await self.until("calls", lambda: not self.callers)
        latest = self.accounts[-len(self.functions) :]
        found = [self.view[slot] for slot in self.slots]
        found += [item for account in latest for _, item in account.items]
        shared: set[Item] = set().union(*(item.all for item in found))
        await self.until(
            "old items",
            lambda: all(
                item.state == "gone" or item in shared for item in self.items if item.is_left
            ),
        )
        await self.until_nothing_is_held()

    async def until_nothing_is_held(self) -> None:
        run = self.view._standing.run
        await self.until("pins", lambda: not run.live.current.pins)
        await self.until("pins of former generations", lambda: run.live.holdings.is_empty)
        await self.until("running calls", lambda: not run.calls._running)

    @property
    def is_cutting(self) -> bool:
        return self.story.end in ("cut", "cancelled")

    @property
    def is_cut(self) -> bool:
        return self.phase == "stopping" and self.is_cutting

    async def live(self) -> None:
        """From the start to the end of the container."""
        story, raised = self.story, None
        self.loop_thread = threading.get_ident()
        self.loop = current_loop()
        async with anyio.create_task_group() as self.tasks:
            with anyio.CancelScope() as life:
                try:
                    async with self.container as self.view:
                        self.phase = "serving"
                        for step, ticks in story.steps:
                            await self.take_step(step)
                            for _ in range(ticks):
                                await anyio.lowlevel.checkpoint()
                        if story.end == "left":
                            await self.heal()
                        self.log.append(story.end)
                        self.phase = "stopping"
                        for account in self.accounts:
                            account.is_overtaken = account.way == "enter" and self.is_cut
                        self.tasks.start_soon(self.let_go)
                        if story.end == "fails":
                            raise Failure("in the block")
                        if story.end == "cancelled":
                            life.cancel()
                            await anyio.lowlevel.checkpoint()
                except Failure as error:
                    raised = error
            self.log.append(f"left: {raised!r}")
            self.free()
            self.check((story.end == "fails") == (raised is not None), f"raised {raised!r}")
            for account in self.accounts:
                self.check(not account.is_in_use, f"{account.name} runs on")
            for item in self.items:
                is_gone = item.state == "gone" or not item.is_left
                self.check(is_gone, f"{item} was never left: it is {item.state}")
            await self.until("callers", lambda: not self.callers)
            await self.until("calls", lambda: all(one.state == "over" for one in self.accounts))
            self.tasks.cancel_scope.cancel()

    def check_end(self) -> None:
        for text in self.records.seen:
            is_known = self.is_cutting and "Calls are cancelled" in text
            self.check(is_known, f"logged: {text}")
        for thread in self.threads:
            thread.join(PATIENCE)

    async def run(self) -> None:
        """Play the story, and see that nothing is left of it."""
        loggers = [logging.getLogger(name) for name in ("fastapi_lifespan_deps", "asyncio")]
        for logger in loggers:
            logger.addHandler(self.records)
            logger.propagate = False  # pytest would keep the errors, and with them the values
        tasks = {task.id for task in anyio.get_running_tasks()}
        try:
            await self.live()
        finally:
            for logger in loggers:
                logger.removeHandler(self.records)
                logger.propagate = True
        self.check_end()
        references: list[weakref.ref[Any]] = [weakref.ref(item) for item in self.items]
        references += [weakref.ref(made) for one in self.accounts for made in one.made]
        del self.view, self.tasks
        for kept in (self.items, self.accounts, self.gates, self.threads):
            kept.clear()

        def all_are_gone() -> bool:
            gc.collect()
            return all(reference() is None for reference in references)

        await self.until("values", all_are_gone)
        await self.until("tasks", lambda: {task.id for task in anyio.get_running_tasks()} <= tasks)
        await self.until(
            "threads", lambda: "end of a stream" not in {one.name for one in threading.enumerate()}
        )


def by_kind(
    spec: Spec, async_generator: Any, generator: Any, async_function: Any, function: Any
) -> Any:
    made = async_generator, generator, async_function, function
    return made[KINDS.index(spec.kind)]


class Verdict:
    """What is to be said of a call when it is over."""

    def __init__(self, play: Play, account: Told) -> None:
        self.play = play
        self.account = account
        self.has_begun = bool(account.made or account.spot)
        self.is_cut = account.may_be_cancelled or play.is_cut

    def check(self, holds: bool, violation: str) -> None:
        self.account.check(holds, violation)

    def give(self) -> None:
        account = self.account
        for difference in differences(account.items):
            self.check(False, difference)
        if not self.has_begun:
            if account.error is not None:
                self.check_refused(account.error)
            return
        self.check_plan()
        self.check_errors()
        self.check_fresh()
        self.check_spots()

    def check_refused(self, error: BaseException) -> None:
        account, play = self.account, self.play
        if isinstance(error, UnavailableLifespanDependency):
            slots = play.world.slots_of(account.function)
            is_excused = any(
                asked.step.policy == "resource_preserving"
                and asked.step.slot in slots
                and (asked.ended is None or asked.ended > account.pinned)
                for asked in play.refreshes
            )
        elif isinstance(error, LifespanNotRunning):
            is_excused = play.phase == "stopping"
        else:
            is_excused = self.is_cut and self.is_of_a_cut(error)
        self.check(is_excused, f"it was refused: {error!r}")

    def is_of_a_cut(self, error: BaseException | None) -> bool:
        """Whether an error says that a call was cut off."""
        is_of_container = isinstance(error, LifespanNotRunning) and self.play.phase == "stopping"
        return is_of_container or type(error).__name__ in ("CancelledError", "Cancelled")

    def check_plan(self) -> None:
        account = self.account
        first, last = account.versions
        assert last is not None
        misfits = []
        for fake_slots, fake_parts in self.play.fakes[first : last + 1]:
            nodes, takes = planned(self.play.world, account.function, account.explicit, fake_parts)
            misfits.append(account.misfit(nodes, takes, fake_slots))
        self.check(None in misfits, f"it was not as planned: {misfits}")

    def check_errors(self) -> None:
        """What was thrown into what was left, and what the caller got."""
        account = self.account
        failed = next((one.error for one in account.made if one.error is not None), None)
        own = failed if isinstance(account.own, GeneratorExit | None) else account.own
        others: list[BaseException] = []
        for one in account.left:
            thrown = own or (others[0] if others else None)
            if one.seen is not thrown and self.is_cut and self.is_of_a_cut(one.seen):
                if one is account.left[0] and not (
                    others or (isinstance(own, Failure | Severe) and not account.is_native)
                ):
                    own = one.seen
                elif account.is_native and one.seen is not None:
                    others.append(one.seen)
                thrown = one.seen
            self.check(one.seen is thrown, f"{one} saw {one.seen!r}, and not {thrown!r}")
            if one.raised is not None and one.raised not in (one.seen, *others):
                others.append(one.raised)
        if not (self.is_cut and self.is_of_a_cut(account.error)):
            self.check_outcome(own, others)

    def check_outcome(self, own: BaseException | None, others: Sequence[BaseException]) -> None:
        account = self.account
        error = account.error
        if own is None:
            found = leaves(error)
            is_told = len(found) == len(others) and all(
                one is other for one, other in zip(found, others, strict=True)
            )
            self.check(is_told, f"{others} came out as {error!r}")
            is_result = error is not None or account.result is account.promised
            self.check(is_result, f"{account.promised} came out as {account.result}")
            return
        self.check(error is own, f"{own!r} came out as {error!r}")
        notes = "".join(getattr(error, "__notes__", []))
        for other in others:
            self.check(str(other) in notes, f"{other!r} is not in the notes of {error!r}")

    def check_fresh(self) -> None:
        """Once a refresh is done, calls see what it has started."""
        account, play = self.account, self.play
        if account.outer is not None or len(play.fakes) > 1:
            return
        for asked in play.refreshes:
            if asked.ended is not None and asked.ended < account.began:
                for _, item in account.items:
                    for one in item.all:
                        is_old = one.slot == asked.step.slot and one.number < asked.items
                        self.check(not is_old, f"it was given {one} after {asked}")

    def check_spots(self) -> None:
        """Each is entered and left where it should be."""
        account = self.account
        made = [one for one in account.made if one.spec.is_async]
        tasks = {spot for one in made for spot in (one.began, one.ended) if spot is not None}
        threads = {
            spot
            for one in account.made
            if not one.spec.is_async
            for spot in (one.began, one.ended)
            if spot is not None
        }
        function = {account.spot} - {None}
        in_loop = {spot.thread == account.loop_thread for spot in tasks}
        self.check(in_loop <= {True}, f"its dependencies ran at {tasks}")
        if account.way == "thread":
            here = threads | function
            is_here = here <= {account.caller} or self.play.phase == "stopping"
            self.check(is_here, f"it was called at {account.caller}, and ran at {here}")
            self.check(len(tasks) <= 1, f"its dependencies ran in several tasks: {tasks}")
            return
        off_loop = {spot.thread != account.loop_thread for spot in threads}
        self.check(off_loop <= {True}, f"its synchronous dependencies ran at {threads}")
        if account.function.kind == "async generator" or account.way == "enter":
            owner = tasks if account.way == "enter" else tasks | function
            self.check(len(owner) <= 1, f"it has several owners: {owner}")
            self.check(account.caller not in owner, f"its caller is its owner: {owner}")
            return
        self.check(tasks <= {account.caller}, f"{account.caller} called what ran at {tasks}")
        if account.function.is_async:
            self.check(function <= {account.caller}, f"{account.caller} called {function}")
        elif function:
            self.check(function.isdisjoint({account.caller}), f"it ran in the loop: {function}")


def play(story: Story, backend: str) -> None:
    """Play a story, and fail if anything in it went against what is promised."""
    gc.freeze()  # what earlier stories have left behind, too
    played = Play(story, backend)
    with pytest.MonkeyPatch.context() as patch:
        if played.is_cutting:
            patch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0)
        anyio.run(played.run, backend=backend)
    assert played.violations == [], "\n".join(played.log)


backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@backends
@settings(report_multiple_bugs=False)
@given(story=stories())
def test_whatever_happens_what_is_entered_is_left_once_and_the_caller_is_told(
    story: Story, backend: str
) -> None:
    play(story, backend)
