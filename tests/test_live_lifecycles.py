"""Any story of a running application: refreshes, overrides, crashes and requests, in any order.

What the library promises is checked at each start, stop and request, and once more at the end.
"""

import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, WebSocket
from fastapi.responses import StreamingResponse
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    RefreshError,
    UninitializedLifespanDependency,
    View,
    get_container,
)
from tests.recording import Value, app_with, closed, leaves, named, opened, starts_and_stops

PATIENCE = 10.0  # seconds until what still waits is taken to wait for ever

# --- What may happen


@dataclass(frozen=True)
class Need:
    """A declaration of a dependency, known by its number."""

    slot: int
    cached: bool = True


@dataclass(frozen=True)
class Spec:
    """A provider: what kind of callable it is, and what it needs."""

    kind: str
    needs: tuple[Need, ...] = ()

    @property
    def is_generator(self) -> bool:
        return "generator" in self.kind


@dataclass(frozen=True)
class Page:
    """A route: how it answers, what a request-scoped dependency of it takes, and what it takes."""

    how: str
    session: tuple[Need, ...] = ()
    needs: tuple[Need, ...] = ()
    takes_container: bool = False


@dataclass(frozen=True)
class Rest:
    """Let everything go on until it waits."""


@dataclass(frozen=True)
class Refresh:
    """Ask for a refresh, perhaps wait for the end of what it replaces."""

    slot: int
    policy: Any = "availability_preserving"
    drain_timeout: float | None = None
    waits: bool = False


@dataclass(frozen=True)
class Abandon:
    """Cancel somebody who waits for a refresh."""

    which: int


@dataclass(frozen=True)
class Ask:
    """Send a request, which perhaps asks for a refresh itself. It waits before it goes on."""

    page: int
    refresh: Refresh | None = None


@dataclass(frozen=True)
class Answer:
    """Let a request go on."""

    which: int


@dataclass(frozen=True)
class Disconnect:
    """Cancel a request."""

    which: int


@dataclass(frozen=True)
class Trouble:
    """What goes wrong from now on when a provider starts or stops."""

    slot: int
    moment: str
    what: str | None


@dataclass(frozen=True)
class Unblock:
    """Let a provider go on that was held up in its start or stop."""

    which: int


@dataclass(frozen=True)
class Crash:
    """Let a task that a provider has started fail."""

    slot: int


@dataclass(frozen=True)
class Override:
    """Set the override of a provider, or remove it."""

    slot: int
    is_set: bool


Step = Rest | Refresh | Abandon | Ask | Answer | Disconnect | Trouble | Unblock | Crash | Override


@dataclass(frozen=True)
class Story:
    """An application, and what happens to it. After each step others go on for some ticks."""

    specs: tuple[Spec, ...]
    fakes: tuple[Spec, ...]
    pages: tuple[Page, ...]
    start: Any = "sequential"
    at_start: tuple[Trouble, ...] = ()
    start_is_cancelled: bool = False
    steps: tuple[tuple[Step, int], ...] = ()
    heals: str | None = None
    end: str = "left"


KINDS = ("async generator", "generator", "async function", "function")
TICKS = (0, 1, 3, 30)


@st.composite
def stories(draw: st.DrawFn, *, is_short: bool = False) -> Story:
    """Stories of a whole life; or short ones, in which little but the start goes wrong."""
    size = draw(st.integers(1, 5))
    slots = st.integers(0, size - 1)

    def needs(below: int, most: int) -> tuple[Need, ...]:
        if not below:
            return ()
        found = draw(st.lists(st.integers(0, below - 1), max_size=most, unique=True))
        return tuple(Need(slot, draw(st.integers(0, 7)) > 0) for slot in sorted(found))

    def specs() -> tuple[Spec, ...]:
        kinds = st.sampled_from((*KINDS[:2], *KINDS))
        return tuple(Spec(draw(kinds), needs(index, 3)) for index in range(size))

    def pages() -> Iterator[Page]:
        yield Page("plain", needs=(Need(draw(slots)),))
        for _ in range(draw(st.integers(0, 3))):
            how = draw(st.sampled_from(("plain", "stream", "background", "websocket", "late")))
            container = draw(st.integers(0, 3)) == 0
            yield Page(how, needs(size, 2), needs(size, 2), container)

    numbers = st.integers(0, 5)
    policies = st.sampled_from(("availability_preserving", "resource_preserving"))
    timeouts = st.sampled_from((None, None, 0.001, 3600.0))
    refreshes = st.builds(Refresh, slots, policies, timeouts, st.booleans())
    troubles = st.builds(
        Trouble,
        slots,
        st.sampled_from(("start", "late start", "stop")),
        st.sampled_from(("fail", "block", "crash", None)),
    )
    asks = st.builds(Ask, numbers, st.none() | refreshes)
    steps = st.one_of(
        st.builds(Rest),
        refreshes,
        refreshes,
        st.builds(Ask, numbers),
        asks,
        st.builds(Answer, numbers),
        st.builds(Answer, numbers),
        st.builds(Disconnect, numbers),
        st.builds(Abandon, numbers),
        troubles,
        troubles,
        st.builds(Unblock, numbers),
        st.builds(Crash, slots),
        st.builds(Override, slots, st.booleans()),
    )
    return Story(
        specs=specs(),
        fakes=specs(),
        pages=tuple(pages()),
        start=draw(st.sampled_from(("sequential", "concurrent"))),
        at_start=tuple(draw(st.lists(troubles, max_size=5))) if is_short else (),
        start_is_cancelled=draw(st.booleans()),
        steps=()
        if is_short
        else tuple(
            draw(st.lists(st.tuples(steps, st.sampled_from(TICKS)), min_size=10, max_size=40))
        ),
        heals=draw(st.sampled_from((None, "from below", "from above"))),
        end=draw(st.sampled_from(("left", "released", "fails", "cancelled"))),
    )


# --- What is seen of it


@dataclass(eq=False)
class Item:
    """What a provider gives."""

    slot: int
    is_fake: bool
    number: int
    needs: tuple[tuple[Need, "Item"], ...]
    is_left: bool  # whether there is code after its `yield`
    is_given: bool = False
    crash: anyio.Event = field(default_factory=anyio.Event)
    state: str = "alive"
    is_dying: bool = False

    def __post_init__(self) -> None:
        self.all: set[Item] = {self}.union(*(item.all for _, item in self.needs))

    def __repr__(self) -> str:
        return f"{'fake ' if self.is_fake else ''}{self.slot} (item {self.number})"


@dataclass(eq=False)
class Call:
    """A call of `refresh`; `ended` and `began` tell how many items there had been."""

    step: Refresh
    began: int
    joins: bool
    ended: int | None = None
    told: BaseException | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


@dataclass(eq=False)
class Visit:
    """A request, while it is served."""

    page: Page
    refresh: Refresh | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    turn: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(0))
    container: View | None = None
    declared: list[tuple[Need, Item]] = field(default_factory=list)
    looked_up: list[tuple[Need, Item]] = field(default_factory=list)
    has_asked: bool = False
    is_done: bool = False

    @property
    def values(self) -> list[tuple[Need, Item]]:
        return [*self.declared, *([] if self.has_asked else self.looked_up)]

    @property
    def held(self) -> set[Item]:
        return set().union(*(item.all for _, item in self.values))


class Gate:
    """Where a provider waits."""

    def __init__(self, moment: str, is_sync: bool) -> None:
        self.is_start = moment != "stop"
        self.is_sync = is_sync
        self.is_waited_for = False
        self._opened = anyio.Event()

    async def wait(self) -> None:
        self.is_waited_for = True
        try:
            await self._opened.wait()
        finally:
            self.is_waited_for = False

    def open(self) -> None:
        self._opened.set()


class Failure(Exception):
    """What goes wrong on purpose."""


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[tuple[str, BaseException | None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.seen.append((record.getMessage(), error))


class Play:
    """An application of which a story is told, and everything that is known about it."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.phase = "starting"
        self.log: list[str] = []
        self.violations: list[str] = []
        self.items: list[Item] = []
        self.calls: list[Call] = []
        self.active: list[Visit] = []
        self.callers = 0
        self.is_free = False  # requests do not wait
        self.troubles: dict[tuple[int, str], str | None] = {}
        self.gates: list[Gate] = []
        self.leftovers: list[Item] = []  # of refreshes that have failed
        self.start_errors: list[BaseException] = []
        self.stop_errors: list[BaseException] = []
        self.crashes: list[BaseException] = []
        # Why a request may be refused: what has happened to a dependency since all was well.
        self.doubts: set[tuple[int, str]] = set()
        self.was_overridden = False  # since all was well
        self.records = Log()
        self.originals = self.providers(story.specs, is_fake=False)
        self.fakes = self.providers(story.fakes, is_fake=True)
        self.app = LifespanFastAPI(lifespan_start=story.start)
        for number, page in enumerate(story.pages):
            self.add(f"/{number}", page)
        self.app.add_middleware(self.waiting)
        self.needs = [need for page in story.pages for need in (*page.session, *page.needs)]
        self.declared_slots = self.below(self.needs, fakes=False)
        cached = {need.slot for need in self.needs if need.cached}
        for slot in self.declared_slots:
            cached |= {need.slot for need in story.specs[slot].needs if need.cached}
        self.cached_slots = sorted(cached)

    def below(self, needs: Sequence[Need], *, fakes: bool = True) -> set[int]:
        """All that may be below some declarations, whatever is overridden."""
        found: set[int] = set()
        left = [need.slot for need in needs]
        while left:
            slot = left.pop()
            if slot not in found:
                found.add(slot)
                specs = [self.story.specs[slot], *([self.story.fakes[slot]] if fakes else [])]
                left += [need.slot for spec in specs for need in spec.needs]
        return found

    def check(self, holds: bool, violation: str) -> None:
        if not holds:
            self.log.append(f"VIOLATION: {violation}")
            self.violations.append(violation)

    # Providers

    def providers(self, specs: Sequence[Spec], *, is_fake: bool) -> list[Callable[..., Any]]:
        made: list[Callable[..., Any]] = []
        for slot, spec in enumerate(specs):
            # a fake depends on what is not overridden: FastAPI does it so as well
            others = self.originals if is_fake else made
            get = self.provider(slot, spec, is_fake=is_fake)
            name = f"{'fake' if is_fake else 'get'}_{slot}"
            made.append(signed(get, name, spec.needs, others))
        return made

    def provider(self, slot: int, spec: Spec, *, is_fake: bool) -> Callable[..., Any]:
        async def meet(moment: str) -> None:
            await self.meet(slot, moment)

        def opened(values: dict[str, Item]) -> Item:
            return self.opened(slot, is_fake, spec, values)

        def wait(moment: str) -> None:
            anyio.from_thread.run(self.meet, slot, moment, True)

        async def async_generator(**values: Item) -> AsyncIterator[Item]:
            await meet("start")
            item = opened(values)
            try:
                await meet("late start")
                item.is_given = True
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.crash, item)
                    yield item
                    tasks.cancel_scope.cancel()
            finally:
                self.leaving(item)
                try:
                    if item.is_given and not item.is_dying:
                        await meet("stop")
                finally:
                    self.left(item)

        def generator(**values: Item) -> Iterator[Item]:
            wait("start")
            item = opened(values)
            try:
                wait("late start")
                item.is_given = True
                yield item
            finally:
                self.leaving(item)
                try:
                    if item.is_given:
                        wait("stop")
                finally:
                    self.left(item)

        async def async_function(**values: Item) -> Item:
            await meet("start")
            return opened(values)

        def function(**values: Item) -> Item:
            wait("start")
            return opened(values)

        kinds: dict[str, Any] = {
            "async generator": async_generator,
            "generator": generator,
            "async function": async_function,
            "function": function,
        }
        return kinds[spec.kind]  # type: ignore[no-any-return]

    async def meet(self, slot: int, moment: str, is_sync: bool = False) -> None:
        """Meet with the trouble that a provider has at a moment."""
        what = self.troubles.get((slot, moment))
        if what == "fail":
            error = Failure(f"{moment} of {slot}")
            self.log.append(f"    {error} fails")
            if moment == "stop":
                self.stop_errors.append(error)
            else:
                self.start_errors.append(error)
                if self.was_overridden:
                    self.doubts.add((slot, "failed"))
            raise error
        if what == "block":
            gate = Gate(moment, is_sync)
            self.gates.append(gate)
            if self.phase != "serving":
                self.tasks.start_soon(self.unblock, gate)
            self.log.append(f"    {moment} of {slot} blocks")
            await gate.wait()
        else:
            await anyio.lowlevel.checkpoint()

    async def unblock(self, gate: "Gate") -> None:
        """Keep no start or stop of the application waiting for ever."""
        await self.rest()
        if self.phase == "starting" and self.story.start_is_cancelled and gate.is_start:
            self.life.cancel()
            await self.rest()
        if (
            gate.is_start
            and not gate.is_sync
            and (self.life.cancel_called or self.phase == "stopping")
        ):
            self.check(not gate.is_waited_for, "a start goes on though nobody waits for it")
        gate.open()

    def opened(self, slot: int, is_fake: bool, spec: Spec, values: dict[str, Item]) -> Item:
        needs = tuple(zip(spec.needs, values.values(), strict=True))
        item = Item(slot, is_fake, len(self.items), needs, spec.is_generator)
        self.log.append(f"    start {item!r} on {[need for _, need in needs]}")
        for need in item.all - {item}:
            is_usable = need.state == "alive" or need.is_dying
            self.check(is_usable, f"{item} starts on {need}, which is {need.state}")
        self.check_generation(needs, f"the needs of {item}")
        self.check_room(item)
        self.items.append(item)
        if self.troubles.get((slot, "start")) == "crash":
            item.crash.set()
        return item

    def check_room(self, item: Item) -> None:
        """A resource-preserving refresh starts nothing before all that is old has stopped."""
        under_way = [call for call in self.calls if call.ended is None]
        if len(under_way) == 1 and not self.was_overridden:
            [call] = under_way
            if call.step.policy == "resource_preserving":
                for old in self.items[: call.began]:
                    if old.is_left and any(one.slot == call.step.slot for one in old.all):
                        self.check(old.state == "gone", f"{item} starts beside {old}")

    async def crash(self, item: Item) -> None:
        await item.crash.wait()
        item.is_dying = True
        self.doubts.add((item.slot, "crashed"))
        error = Failure(f"crash of {item}")
        self.log.append(f"    {error}")
        self.crashes.append(error)
        raise error

    def leaving(self, item: Item) -> None:
        self.log.append(f"    leave {item}")
        self.check(item.state == "alive", f"{item} is left twice: it is {item.state}")
        item.state = "leaving"
        if item.is_dying or any(below.is_dying for below in item.all):
            return
        for other in self.items:
            if item in other.all and other is not item and other.is_left:
                self.check(other.state == "gone", f"{item} is left before {other}, on top of it")
        for visit in self.active:
            if item in visit.held:
                self.check(self.may_be_cut(item), f"{item} is left while {visit.page} uses it")
        self.check(self.is_touched(item), f"{item} is left though nobody has asked for that")

    def left(self, item: Item) -> None:
        self.log.append(f"    left {item}")
        self.check(item.state == "leaving", f"{item} was left twice: it is {item.state}")
        item.state = "gone"

    def may_be_cut(self, item: Item) -> bool:
        """Whether requests must be ready for the end of something that they use."""
        slots = {one.slot for one in item.all}
        return self.phase == "stopping" or any(
            call.step.drain_timeout == 0.001
            # what has died below is replaced as well, with all that depends on it
            and (call.step.slot in slots or any(slot in slots for slot, _ in self.doubts))
            for call in self.calls
            if call.ended is None or call.ended >= item.number
        )

    def is_touched(self, item: Item) -> bool:
        """Whether anything has happened that ends an item while the application serves."""
        slots = {one.slot for one in item.all}
        return (
            self.phase != "serving"
            or any(one.is_fake for one in item.all)
            or self.was_overridden
            or any(
                call.step.slot in slots or self.doubts
                for call in self.calls
                if call.ended is None or call.ended >= item.number
            )
        )

    def is_usable(self, item: Item) -> bool:
        return all(one.state == "alive" or one.is_dying or self.may_be_cut(one) for one in item.all)

    def check_generation(self, values: Sequence[tuple[Need, Item]], what: str) -> None:
        """Two ways to one dependency must lead to one object."""
        seen: dict[int, Item] = {}
        left = list(values)
        while left:
            need, item = left.pop()
            self.check(need.slot == item.slot, f"{need} was given {item}")
            if need.cached:
                first = seen.setdefault(need.slot, item)
                self.check(first is item, f"{what}: both {first} and {item}")
            left += item.needs

    # Requests

    def add(self, path: str, page: Page) -> None:
        async def session(connection: HTTPConnection, **values: Item) -> AsyncIterator[None]:
            visit: Visit = connection.scope["visit"]
            self.take(visit, page.session, values)
            if page.session:
                await visit.turn.acquire()
            yield
            self.check_usable(visit)

        async def plain(connection: HTTPConnection, session: None, **values: Item) -> None:
            visit: Visit = connection.scope["visit"]
            await self.use(visit, self.take(visit, page.needs, values))

        async def stream(
            connection: HTTPConnection, session: None, **values: Item
        ) -> StreamingResponse:
            visit: Visit = connection.scope["visit"]
            container = self.take(visit, page.needs, values)
            visit.container = await get_container(connection)  # a task of its own may ask

            async def chunks() -> AsyncIterator[str]:
                yield "begin"
                await self.use(visit, container)
                yield "end"

            return StreamingResponse(chunks())

        async def background(
            connection: HTTPConnection, session: None, tasks: BackgroundTasks, **values: Item
        ) -> None:
            visit: Visit = connection.scope["visit"]
            tasks.add_task(self.use, visit, self.take(visit, page.needs, values))

        async def websocket(connection: WebSocket, session: None, **values: Item) -> None:
            visit: Visit = connection.scope["visit"]
            container = self.take(visit, page.needs, values)
            await connection.accept()
            await self.use(visit, container)
            await connection.close()

        others: dict[str, Any] = {"connection": HTTPConnection}
        signed(session, "session", page.session, self.originals, **others)
        others["session"] = Annotated[None, Depends(session)]
        if page.takes_container:
            others["container"] = Annotated[LifespanContainer, Depends(get_container)]
        if page.how == "background":
            others["tasks"] = BackgroundTasks
        if page.how == "websocket":
            others["connection"] = WebSocket
        kinds: dict[str, Any] = {"stream": stream, "background": background, "websocket": websocket}
        endpoint = kinds.get(page.how, plain)
        signed(endpoint, page.how, page.needs, self.originals, **others)
        add = self.app.websocket if page.how == "websocket" else self.app.get
        add(path)(endpoint)

    def waiting(self, app: ASGIApp) -> ASGIApp:
        """A middleware that keeps some requests from getting to their route."""

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            visit: Visit | None = scope.get("visit")
            if visit is not None and visit.page.how == "late":
                if visit.refresh is not None:
                    await self.refresh(visit.refresh, visit)
                await visit.turn.acquire()
            await app(scope, receive, send)

        return wait

    def take(self, visit: Visit, needs: Sequence[Need], values: dict[str, Any]) -> View | None:
        """Note what a request is given, and give back the container if that is among it."""
        container: View | None = values.pop("container", None)
        visit.declared += zip(needs, values.values(), strict=True)
        for value in values.values():
            for item in value.all:
                is_dead = item.is_dying and item.state == "gone"
                self.check(not is_dead, f"{visit.page} is given the dead {item}")
        if container is not None and not visit.has_asked:
            for slot in self.cached_slots:
                try:
                    visit.looked_up.append((Need(slot), container[self.originals[slot]]))
                except LifespanDependencyError as error:
                    if not self.was_overridden:  # else nothing that is in force may need it
                        self.check_excused({slot}, error, visit)
        self.log.append(f"    {visit.page} is given {visit.values}")
        self.check_usable(visit)
        self.check_generation(visit.values, f"{visit.page}")
        return container

    def check_usable(self, visit: Visit) -> None:
        for _, item in visit.values:
            self.check(self.is_usable(item), f"{visit.page} has {item}, which was stopped")

    async def use(self, visit: Visit, container: View | None) -> None:
        """What an endpoint does: wait, and find everything alive."""
        if visit.refresh is not None and visit.page.how != "late":
            await self.refresh(visit.refresh, visit)
        await visit.turn.acquire()
        self.check_usable(visit)
        if container is not None and not visit.has_asked:
            for need, item in visit.looked_up:
                if not any(one.is_dying or self.may_be_cut(one) for one in item.all):
                    again = container[self.originals[need.slot]]
                    self.check(again is item, f"the container of {visit.page} gave another {item}")
        visit.is_done = True

    async def ask(self, visit: Visit) -> None:
        """Send a request, and judge the answer."""
        kind = "websocket" if visit.page.how == "websocket" else "http"
        pages = self.story.pages  # two may be equal
        path = f"/{next(number for number, page in enumerate(pages) if page is visit.page)}"
        scope: Scope = {
            "type": kind,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "visit": visit,
            **({"method": "GET"} if kind == "http" else {"scheme": "ws", "subprotocols": []}),
        }
        status: list[int] = []
        first: list[Message] = [{"type": f"{kind}.{'connect' if kind != 'http' else 'request'}"}]

        async def receive() -> Message:
            if first:
                return first.pop()
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Message) -> None:
            status.extend(message[key] for key in ("status", "code") if key in message)

        self.active.append(visit)
        if self.is_free:
            self.let_go(visit)
        refused: BaseException | None = None
        try:
            with visit.scope:
                await self.app(scope, receive, send)
        except LifespanDependencyError as error:
            refused = error
        except RuntimeError as error:  # from a change of overrides that has come too late
            self.check("the application stops" in str(error), f"{error!r}")
            refused = error
        finally:
            self.active.remove(visit)
        if visit.scope.cancel_called:
            return
        slots = self.below([*visit.page.session, *visit.page.needs])
        if refused is not None:
            self.check_excused(slots, refused, visit)
        elif status and status[0] in (503, 1013):
            self.log.append(f"    {visit.page} is answered {status}")
            # what is dead is brought back when what depends on it is refreshed
            is_withdrawn = any(slot in slots for slot, _ in self.doubts)
            is_withdrawn = is_withdrawn and any(why == "withdrawn" for _, why in self.doubts)
            self.check(is_withdrawn or self.phase == "stopping", f"{visit.page}: {status}")
        else:
            self.check(visit.is_done, f"{visit.page} was answered {status}")

    def check_excused(self, slots: set[int], error: BaseException, visit: Visit) -> None:
        self.log.append(f"    {visit.page} is refused: {error}")
        slots = self.below([Need(slot) for slot in slots])
        is_doubtful = any(slot in slots for slot, _ in self.doubts)
        is_cut = any(
            call.step.drain_timeout == 0.001 and call.step.slot in slots for call in self.calls
        )
        is_excused = is_doubtful or is_cut or self.phase == "stopping"
        self.check(is_excused, f"{visit.page} was refused: {error}")

    # Refreshes

    async def refresh(self, step: Refresh, visit: Visit | None = None) -> Call:
        others = [call for call in self.calls if call.step.slot == step.slot]
        joins = any(call.ended is None for call in others)
        call = Call(step, len(self.items), joins)
        self.calls.append(call)
        if step.policy == "resource_preserving":
            self.doubts.add((step.slot, "withdrawn"))
        if visit is not None:
            visit.has_asked = True
        self.log.append(f"    {step} is asked for by {visit and visit.page}")
        self.callers += 1
        try:
            with call.scope:
                await self.call(call, visit)
        finally:
            self.callers -= 1
        return call

    async def call(self, call: Call, visit: Visit | None) -> None:
        step = call.step
        old = self.current(step.slot)
        try:
            container = (visit and visit.container) or self.app.lifespan_container
            draining = await container.refresh(
                self.originals[step.slot], policy=step.policy, drain_timeout=step.drain_timeout
            )
        except Exception as error:
            call.ended = len(self.items)
            call.told = error
            self.log.append(f"    {step} failed: {error!r}")
            others = [one for one in self.calls if one is not call]
            is_alone = all(one.ended is not None and one.ended <= call.began for one in others)
            if is_alone and not self.was_overridden:
                self.leftovers += self.items[call.began :]
            self.check(self.is_expected(call, error, visit), f"{step} failed: {error!r}")
            return
        self.log.append(f"    {step} is done")
        call.ended = len(self.items)
        if step.slot in self.cached_slots and not call.joins and self.phase == "serving":
            try:
                value = self.app.lifespan_container[self.originals[step.slot]]
            except LifespanDependencyError as error:
                is_excused = bool(self.doubts) or self.was_overridden
                self.check(is_excused, f"after {step}: {error}")
            else:
                is_fresh = value.number >= call.began or self.was_overridden
                self.check(is_fresh, f"after {step} {value} goes on")
        if not step.waits or (visit is not None and visit.values):
            return  # a request that may be waited for does not wait for others
        try:
            await draining.wait()
        except RefreshError:
            self.check(
                # in a middleware nobody knows what it will use
                visit is not None and visit.page.how == "late",
                f"{step} could not be waited for",
            )
        else:
            if not (call.joins or self.was_overridden):
                for item in old:
                    is_gone = item.state == "gone" or not item.is_left
                    self.check(is_gone, f"{step} has drained, but {item} is {item.state}")

    def current(self, slot: int) -> list[Item]:
        """The values that are, or are made of, that of a dependency."""
        found: list[Item] = []
        for one in self.cached_slots if self.phase == "serving" else []:
            try:
                found.append(self.app.lifespan_container[self.originals[one]])
            except LifespanDependencyError:
                self.check(bool(self.doubts) or self.was_overridden, f"{one} has no value")
        return [item for item in found if any(below.slot == slot for below in item.all)]

    def is_expected(self, call: Call, error: Exception, visit: Visit | None) -> bool:
        """Whether a refresh may fail so."""
        if any(error is one for one in self.start_errors):
            return True
        if isinstance(error, UninitializedLifespanDependency):
            return any(why == "crashed" for _, why in self.doubts)
        if self.phase == "stopping":
            return isinstance(error, RefreshError | LifespanNotRunning)
        slot = call.step.slot
        if isinstance(error, RefreshError):
            # for the end of the request, if it is not refused
            waits = any(
                other.step.policy == "resource_preserving"
                for other in self.calls
                if other is call or other.ended is None
            )
            # an override may have left it without a dependent
            is_needed = slot in self.declared_slots and not self.was_overridden
            return not is_needed or (waits and visit is not None)
        return False

    # The story

    async def rest(self) -> None:
        """Let others go on, threads too."""
        for _ in range(3):
            for _ in range(12):
                await anyio.lowlevel.checkpoint()
            await anyio.to_thread.run_sync(int)

    async def until(self, what: str, holds: Callable[[], bool]) -> bool:
        with anyio.move_on_after(PATIENCE):
            while not holds():
                await anyio.to_thread.run_sync(int)
        self.check(holds(), f"for ever: {what}")
        return holds()

    async def take_step(self, step: Step) -> None:
        self.log.append(f"{step}")
        match step:
            case Rest():
                await self.rest()
            case Refresh():
                self.tasks.start_soon(self.refresh, step)
            case Abandon(which):
                running = [call for call in self.calls if call.ended is None]
                if running:
                    running[which % len(running)].scope.cancel()
            case Ask(number, refresh):
                page = self.story.pages[number % len(self.story.pages)]
                self.tasks.start_soon(self.ask, Visit(page, refresh))
            case Answer(which) if self.active:
                self.active[which % len(self.active)].turn.release()
            case Disconnect(which) if self.active:
                self.active[which % len(self.active)].scope.cancel()
            case Trouble(slot, moment, what):
                self.troubles[slot, moment] = what
            case Unblock(which):
                waiting = [gate for gate in self.gates if gate.is_waited_for]
                if waiting:
                    waiting[which % len(waiting)].open()
            case Crash(slot):
                for item in self.items[::-1]:
                    if item.slot == slot and item.state == "alive":
                        return item.crash.set()
            case Override(slot, is_set):
                self.was_overridden = True
                self.doubts |= {
                    (one, "failed")
                    for one in range(len(self.story.specs))
                    if any(what == "fail" for (at, _), what in self.troubles.items() if at == one)
                }
                if is_set:
                    self.app.dependency_overrides[self.originals[slot]] = self.fakes[slot]
                else:
                    self.app.dependency_overrides.pop(self.originals[slot], None)
        return None

    def free(self) -> None:
        """Let every request and provider go on."""
        self.troubles.clear()
        for gate in self.gates:
            gate.open()
        self.is_free = True
        for visit in self.active:
            self.let_go(visit)

    def let_go(self, visit: Visit) -> None:
        for _ in range(3):
            visit.turn.release()

    async def heal(self) -> None:
        """Make all well again, and find it so: in use is what is current, the rest is gone."""
        self.log.append("heal")
        self.app.dependency_overrides.clear()
        self.free()
        await self.rest()
        if not await self.until("requests", lambda: not (self.active or self.callers)):
            return
        leftovers = [item for item in self.leftovers if item.is_left]
        await self.until("leftovers", lambda: all(item.state == "gone" for item in leftovers))
        abandoned = {call.step.slot for call in self.calls if call.ended is None}
        for slot in abandoned:  # it is joined, if it goes on, and it may fail
            await self.refresh(Refresh(slot))
        slots = sorted(self.declared_slots)
        if self.story.heals == "from above":
            needs = [need for slot in slots for need in self.story.specs[slot].needs]
            alone = {need.slot for need in (*needs, *self.needs) if not need.cached}
            needed = {need.slot for need in needs} - alone
            slots = [slot for slot in slots[::-1] if slot not in needed]
        for slot in slots:
            call = await self.refresh(Refresh(slot))
            self.check(call.told is None, f"{slot} could not be brought back: {call.told!r}")
        for call in self.calls:
            call.ended = len(self.items)
        self.doubts.clear()
        visits = [Visit(page) for page in self.story.pages]
        for visit in visits:
            await self.ask(visit)
        self.check_generation([value for visit in visits for value in visit.values], "in the end")
        current: set[Item] = set().union(*(visit.held for visit in visits))
        await self.until(
            "old items",
            lambda: all(
                item.state == "gone" or item in current for item in self.items if item.is_left
            ),
        )
        self.was_overridden = False
        self.is_free = False
        for error in (*self.stop_errors, *self.crashes):
            self.check(self.logged(error) == 1, f"{error} was logged {self.logged(error)} times")

    def logged(self, error: BaseException) -> int:
        return sum(error in leaves(seen) for _, seen in self.records.seen)

    async def live(self) -> BaseException | None:
        """From the start to the end of the application. Return what its lifespan raises."""
        story = self.story
        for trouble in story.at_start:
            self.troubles[trouble.slot, trouble.moment] = trouble.what
        raised: BaseException | None = None
        async with anyio.create_task_group() as self.tasks:
            with anyio.CancelScope() as self.life:
                try:
                    async with self.app.router.lifespan_context(self.app):
                        self.phase = "serving"
                        for step, ticks in story.steps:
                            await self.take_step(step)
                            for _ in range(ticks):
                                await anyio.lowlevel.checkpoint()
                        if story.heals is not None:
                            await self.heal()
                        self.log.append(story.end)
                        self.phase = "stopping"
                        for gate in self.gates:
                            if gate.is_waited_for:
                                self.tasks.start_soon(self.unblock, gate)
                        if story.end == "released":
                            self.free()
                        if story.end == "fails":
                            raise Failure("while serving")
                        if story.end == "cancelled":
                            self.life.cancel()
                            await anyio.lowlevel.checkpoint()
                except Exception as error:
                    raised = error
            self.log.append(f"ended: {raised!r}")
            for visit in self.active:
                visit.scope.cancel()
            await self.until("callers of refresh", lambda: not self.callers)
            self.tasks.cancel_scope.cancel()
        self.check_raised(raised)
        return raised

    def check_raised(self, raised: BaseException | None) -> None:
        found = leaves(raised)
        for error in (*self.stop_errors, *self.crashes):
            self.check(self.logged(error) <= 1, f"{error} was logged {self.logged(error)} times")
        if self.life.cancelled_caught:
            return
        if self.phase == "starting":
            first = self.start_errors if self.story.start == "concurrent" else self.start_errors[:1]
            is_start_error = any(raised is error for error in first)
            is_dead = isinstance(raised, UninitializedLifespanDependency) and bool(self.crashes)
            self.check(is_start_error or is_dead, f"the startup raised {raised!r}")
            notes = "".join(getattr(raised, "__notes__", []))
            for error in (*self.stop_errors, *self.crashes):
                self.check(str(error) in notes, f"{error} is not in the notes of {raised!r}")
            return
        expected = [*self.stop_errors, *self.crashes]
        for error in expected:
            times = sum(one is error for one in found)
            self.check(times == 1, f"{error} was raised {times} times")
        told = [call.told for call in self.calls]
        for error in found:
            is_known = any(error is one for one in (*expected, *self.start_errors))
            # of a refresh that was asked for, and could not start on what had died
            is_known = is_known or isinstance(error, UninitializedLifespanDependency)
            if not is_known and self.story.end == "fails":
                is_known = str(error) == "while serving"
            self.check(is_known, f"in the end {error!r} was raised")
            self.check(all(error is not one for one in told), f"{error!r} was raised twice")

    def check_end(self) -> None:
        for item in self.items:
            is_gone = item.state == "gone" or not item.is_left
            self.check(is_gone, f"{item} was never left: it is {item.state}")
        expected = (
            "ended by itself",
            "failed to start",
            "failed to stop",
            "is stopped after",
            "was not refreshed",
        )
        for text, error in self.records.seen:
            is_known = any(part in text for part in expected)
            # who had asked for it was cancelled
            is_known = is_known or (text.startswith("The ") and text.endswith(" failed"))
            self.check(is_known, f"logged: {text} {error!r}")

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
        references = [weakref.ref(item) for item in self.items]
        for kept in (self.items, self.leftovers, self.calls):
            kept.clear()
        for errors in (self.start_errors, self.stop_errors, self.crashes):
            errors.clear()
        self.records.seen.clear()

        def all_are_gone() -> bool:
            gc.collect()
            return all(reference() is None for reference in references)

        await self.until("values", all_are_gone)
        await self.until("tasks", lambda: {task.id for task in anyio.get_running_tasks()} <= tasks)


def signed(
    function: Any,
    name: str,
    needs: Sequence[Need],
    providers: Sequence[Callable[..., Any]],
    **others: Any,
) -> Any:
    """Give a function a name, and a parameter for each need."""
    parameters = others | {
        f"need_{index}": Annotated[
            Item, Depends(providers[need.slot], scope="lifespan", use_cache=need.cached)
        ]
        for index, need in enumerate(needs)
    }
    function.__name__ = function.__qualname__ = name
    function.__signature__ = Signature(
        [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)
            for name, annotation in parameters.items()
        ]
    )
    return function


def play(story: Story, backend: str) -> None:
    """Play a story, and fail if anything in it went against what is promised."""
    gc.freeze()  # what earlier stories have left behind, too
    played = Play(story)
    anyio.run(played.run, backend=backend)
    assert played.violations == [], "\n".join(played.log)


backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@backends
@settings(report_multiple_bugs=False)
@given(story=stories(is_short=True))
def test_a_start_that_goes_wrong_anyhow_leaves_nothing_behind(story: Story, backend: str) -> None:
    play(story, backend)


@backends
@settings(report_multiple_bugs=False)
@given(story=stories())
def test_whatever_happens_what_is_entered_is_left_once_and_nobody_uses_it_later(
    story: Story, backend: str
) -> None:
    play(story, backend)


# --- Stories that went wrong once


def on(*slots: int) -> Spec:
    return Spec("async generator", tuple(map(Need, slots)))


def page(*slots: int) -> Page:
    return Page("plain", needs=tuple(map(Need, slots)))


def told(specs: Sequence[Spec], pages: Sequence[Page], *steps: Step, **options: Any) -> Story:
    """A story in which everything comes to rest after each step."""
    return Story(
        specs=tuple(specs),
        fakes=(on(),) * len(specs),
        pages=tuple(pages),
        steps=tuple((step, 30) for step in steps),
        **options,
    )


FOUND = {
    "the error of a refresh was raised again at the end": told(
        [on()], [page(0)], Trouble(0, "start", "fail"), Refresh(0)
    ),
    "a refresh did not see that an override was gone": told(
        [on(), on(0)], [page(1)], Override(1, True), Ask(0), heals="from below"
    ),
    "what depends on an override that failed could not be left alone": told(
        [on(), on(), on(0, 1)],
        [page(2)],
        Trouble(1, "start", "fail"),
        Override(1, True),
        Ask(0),
        Refresh(0),
    ),
    "one that had died kept what was above it from what was below it": told(
        [on(), on(0), on(1)],
        [page(2)],
        Trouble(2, "stop", "block"),
        Crash(1),
        start="concurrent",
    ),
    "one that had died kept another one from being refreshed": told(
        [on(), on(), on(0, 1)], [page(0, 2)], Crash(1), heals="from below"
    ),
    "a refresh in the end was told what nobody had asked for": told(
        [on()], [page(0)], Trouble(0, "start", "block"), Override(0, True), Refresh(0)
    ),
    "a refresh waited for the request that waited for another one": told(
        [on(), on()],
        [page(0), page(1), Page("plain", (Need(0),), (Need(0),))],
        Override(0, True),
        Ask(2, Refresh(1)),
        Refresh(0, "resource_preserving"),
        Override(0, False),
        Ask(1),
        heals="from above",
    ),
}


@backends
@pytest.mark.parametrize("story", FOUND.values(), ids=FOUND)
def test_what_went_wrong_once_goes_well(story: Story, backend: str) -> None:
    play(story, backend)


@backends
def test_refreshes_are_done_in_the_order_in_which_they_are_asked_for(backend: str) -> None:
    """Else one of them waits for the request that waits for the other. Trio shuffles tasks."""
    specs, pages = (on(), on()), (page(0), page(1))
    steps = ((Ask(0, Refresh(1)), 0), (Refresh(0, "resource_preserving"), 30))
    for _ in range(20):
        play(Story(specs, specs, pages, steps=steps, heals="from below"), backend)


# --- Stories that can be foretold: nothing happens but the start and the end


@st.composite
def graphs(draw: st.DrawFn) -> Story:
    """What a route lists, in any order, and what of it fails."""
    specs: list[Spec] = []
    troubles: list[Trouble] = []
    for slot in range(draw(st.integers(1, 6))):
        needs = draw(st.sets(st.integers(0, slot - 1), max_size=3)) if slot else set()
        spec = Spec(draw(st.sampled_from(KINDS)), tuple(map(Need, sorted(needs))))
        moments = (None, None, "stop", "start") if spec.is_generator else (None, None, "start")
        if moment := draw(st.sampled_from(moments)):
            troubles.append(Trouble(slot, moment, "fail"))
        specs.append(spec)
    listed = draw(st.lists(st.integers(0, len(specs) - 1), min_size=1, unique=True))
    end = draw(st.sampled_from(("left", "fails", "cancelled")))
    return foretold(specs, listed, *troubles, end=end)


def foretold(
    specs: Sequence[Spec], listed: Sequence[int], *troubles: Trouble, end: str = "left"
) -> Story:
    return Story(tuple(specs), (), (page(*listed),), at_start=troubles, end=end)


class Graph:
    """An application whose providers have no `try`: only a proper stop gets them to their end."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.events: list[str] = []
        self.errors: dict[tuple[int, str], Exception] = {}
        self.body_error = Failure("while serving")
        self.raised: BaseException | None = None
        self.served = self.was_cancelled = False
        self.troubles = {(trouble.slot, trouble.moment) for trouble in story.at_start}
        providers: list[Callable[..., Any]] = []
        for slot, spec in enumerate(story.specs):
            providers.append(self.provider(slot, spec, [providers[on.slot] for on in spec.needs]))
        self.app = app_with(*(providers[need.slot] for need in story.pages[0].needs))

    def provider(
        self, slot: int, spec: Spec, needs: Sequence[Callable[..., Any]]
    ) -> Callable[..., Any]:
        name = str(slot)

        def fail(moment: str) -> None:
            if (slot, moment) in self.troubles:
                self.errors[slot, moment] = error = Failure(f"{moment} of {name}")
                raise error

        def start(values: dict[str, Value]) -> Value:
            fail("start")
            return opened(name, self.events, values)

        def stop(value: Value) -> None:
            closed(value, self.events)
            fail("stop")

        async def async_generator(**values: Value) -> AsyncIterator[Value]:
            await anyio.lowlevel.checkpoint()
            value = start(values)
            yield value
            await anyio.lowlevel.checkpoint()
            stop(value)

        def generator(**values: Value) -> Iterator[Value]:
            value = start(values)
            yield value
            stop(value)

        async def async_function(**values: Value) -> Value:
            return start(values)

        def function(**values: Value) -> Value:
            return start(values)

        kinds: dict[str, Any] = {
            "async generator": async_generator,
            "generator": generator,
            "async function": async_function,
            "function": function,
        }
        return named(kinds[spec.kind], name, needs)

    def start_order(self) -> list[int]:
        """What the contract says: depth first, in the order of the route and of the parameters."""
        order: list[int] = []

        def visit(need: Need) -> None:
            for below in self.story.specs[need.slot].needs:
                visit(below)
            if need.slot not in order:
                order.append(need.slot)

        for need in self.story.pages[0].needs:
            visit(need)
        return order

    async def run(self) -> None:
        with anyio.fail_after(30), anyio.CancelScope() as scope:
            try:
                async with self.app.router.lifespan_context(self.app):
                    self.served = True
                    if self.story.end == "fails":
                        raise self.body_error
                    if self.story.end == "cancelled":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
            except Exception as error:
                self.raised = error
        self.was_cancelled = scope.cancelled_caught


@backends
@given(story=graphs())
@example(
    story=foretold(
        [
            Spec("generator"),
            Spec("async generator", (Need(0),)),
            Spec("function", (Need(0), Need(1))),
            Spec("async generator", (Need(2),)),
        ],
        [3],
        Trouble(0, "stop", "fail"),
        Trouble(1, "stop", "fail"),
        Trouble(3, "start", "fail"),
    )
)
def test_clauses_5_and_6_hold_for_any_graph_and_any_failures(story: Story, backend: str) -> None:
    graph = Graph(story)
    anyio.run(graph.run, backend=backend)
    order = graph.start_order()
    failing = [slot for slot in order if (slot, "start") in graph.troubles]
    expected = order[: order.index(failing[0])] if failing else order

    started, stopped = starts_and_stops(graph.events)
    assert started == [str(slot) for slot in expected]
    to_stop = [slot for slot in reversed(expected) if story.specs[slot].is_generator]
    assert stopped == [str(slot) for slot in to_stop]
    assert graph.served == (not failing)

    stop_errors = [
        graph.errors[slot, "stop"] for slot in to_stop if (slot, "stop") in graph.troubles
    ]
    if failing:
        assert graph.raised is graph.errors[failing[0], "start"]
        notes = "".join(getattr(graph.raised, "__notes__", []))
        assert all(f"Failure: {error}" in notes for error in stop_errors)
    elif story.end == "cancelled":
        assert graph.was_cancelled
    else:
        body_errors = [graph.body_error] if story.end == "fails" else []
        assert leaves(graph.raised) == [*body_errors, *stop_errors]
