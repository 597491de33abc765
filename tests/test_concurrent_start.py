"""`lifespan_start="concurrent"`: each starts as soon as it can, and stops as soon as it can."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
import trio
from fastapi import FastAPI

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    RefreshError,
    enable_lifespan_scope,
)
from fastapi_lifespan_deps.live.supervisor import MAX_THREADS
from tests.clients import running, settle
from tests.recording import (
    Provider,
    Value,
    app_with,
    leaves,
    provider,
    starts_and_stops,
    sync_provider,
)

pytestmark = pytest.mark.anyio

concurrent_app = partial(app_with, lifespan_start="concurrent")


class Moments:
    """Everything that happened; one moment may wait for others.

    Give `trouble` to `provider`. What waits for a moment that does not come fails after a while.
    """

    def __init__(self, **errors: BaseException) -> None:
        self.events: list[str] = []
        self.errors: Mapping[str, BaseException] = {
            moment.replace("_", " "): error for moment, error in errors.items()
        }
        self.needs: dict[str, set[str]] = {}
        self._came: set[str] = set()
        self._next = anyio.Event()

    def let(self, moment: str, *after: str) -> None:
        """Let one moment wait for others."""
        self.needs.setdefault(moment, set()).update(after)

    async def trouble(self, moment: str) -> None:
        self.note(moment)
        await self.until(*self.needs.get(moment, ()))
        if moment in self.errors:
            raise self.errors[moment]
        await anyio.lowlevel.checkpoint()

    def note(self, moment: str) -> None:
        self._came.add(moment)
        self._next.set()
        self._next = anyio.Event()

    async def until(self, *moments: str) -> None:
        with anyio.fail_after(10):
            while not self._came.issuperset(moments):
                await self._next.wait()

    async def end(self, name: str) -> None:
        """Wait until its code after `yield` has run."""
        with anyio.fail_after(10):
            while f"stop {name}" not in self.events:
                await anyio.lowlevel.checkpoint()

    def provider(self, name: str, *needs: Provider) -> Provider:
        return provider(name, self.events, *needs, trouble=self.trouble)

    def providers(self, names: str) -> list[Provider]:
        return [self.provider(name) for name in names]


# --- The start


async def test_independent_dependencies_start_and_stop_together() -> None:
    moments = Moments()
    for moment in ("start", "stop"):
        for name in "abc":  # each waits until the others have come as far
            moments.let(f"{moment} of {name}", *(f"{moment} of {other}" for other in "abc"))
    app = concurrent_app(*moments.providers("abc"))
    async with running(app) as client:
        assert (await client.get("/")).status_code == 200
        assert sorted(moments.events) == ["start a", "start b", "start c"]
    assert sorted(moments.events[3:]) == ["stop a", "stop b", "stop c"]


async def test_by_default_one_starts_and_stops_after_the_other() -> None:
    events: list[str] = []

    async def trouble(moment: str) -> None:
        events.append(f"({moment})")
        await checkpoints(moment)

    async with running(app_with(*(provider(name, events, trouble=trouble) for name in "ab"))):
        assert events == ["(start of a)", "start a", "(start of b)", "start b"]
        events.clear()
    assert events == ["stop b", "(stop of b)", "stop a", "(stop of a)"]


async def test_each_starts_as_soon_as_what_it_takes_has_started() -> None:
    """And stops as soon as what takes it has stopped. `slow` needs the others to get through."""
    moments = Moments()
    base, slow = moments.providers(["base", "slow"])  # type: ignore[arg-type]
    middle = moments.provider("middle", base)
    top = moments.provider("top", middle)
    moments.let("start of slow", "start of top")
    app = concurrent_app(slow, top)
    async with running(app):
        assert moments.events == ["start base", "start middle", "start top", "start slow"]
        moments.let("stop of slow", "stop of base")
    stops = moments.events[4:]
    assert [stop for stop in stops if stop != "stop slow"] == [
        "stop top",
        "stop middle",
        "stop base",
    ]
    assert "stop slow" in stops


async def test_a_diamond_is_built_once() -> None:
    moments = Moments()
    base = moments.provider("base")
    left, right = moments.provider("left", base), moments.provider("right", base)
    top = moments.provider("top", left, right)
    moments.let("start of left", "start of right")
    moments.let("start of right", "start of left")
    moments.let("stop of left", "stop of right")
    moments.let("stop of right", "stop of left")
    app = LifespanFastAPI(lifespan_start="concurrent")
    values: list[Value] = []

    @app.get("/")
    async def read(
        right: Annotated[Value, Depends(right, scope="lifespan")],
        top: Annotated[Value, Depends(top, scope="lifespan")],
        own: Annotated[Value, Depends(base, scope="lifespan", use_cache=False)],
    ) -> None:
        values.extend((right, *top.needs, own))

    async with running(app) as client:
        await client.get("/")
    started, stopped = starts_and_stops(moments.events)
    assert sorted(started) == sorted(stopped) == ["base", "base", "left", "right", "top"]
    for side in ("left", "right"):
        assert started.index(side) < started.index("top")
        assert stopped.index(side) > stopped.index("top")
    shared, left_value, right_value, own = values
    assert shared is right_value
    assert left_value.needs == right_value.needs != (own,)


@pytest.mark.parametrize("kind", ["function", "generator"])
async def test_synchronous_ones_start_in_threads_as_many_as_there_may_be(kind: str) -> None:
    """As many start together as there may be threads, and the others after them."""
    together = threading.Barrier(MAX_THREADS)
    lock = threading.Lock()
    threads: set[int] = set()
    working = most = count = 0

    def work() -> int:
        nonlocal working, most, count
        with lock:
            working += 1
            most = max(most, working)
            threads.add(threading.get_ident())
        together.wait(10)
        with lock:
            working -= 1
            count += 1
            return count

    def make() -> Provider:
        def function() -> int:
            return work()

        def generator() -> Iterator[int]:
            yield work()
            work()

        kinds: dict[str, Provider] = {"function": function, "generator": generator}
        return kinds[kind]

    app = concurrent_app(*(make() for _ in range(2 * MAX_THREADS)))
    async with running(app):
        assert count == 2 * MAX_THREADS
    assert count == (2 if kind == "function" else 4) * MAX_THREADS
    assert most == MAX_THREADS
    assert threading.get_ident() not in threads


async def test_threads_of_synchronous_ones_hold_up_no_asynchronous_one() -> None:
    release = threading.Event()
    waiting = threading.Semaphore(0)

    def make() -> Provider:
        def blocked() -> None:
            waiting.release()
            assert release.wait(10)

        return blocked

    async def free() -> None:
        for _ in range(MAX_THREADS):
            await anyio.to_thread.run_sync(waiting.acquire)
        release.set()

    app = concurrent_app(*(make() for _ in range(2 * MAX_THREADS)), free)
    with anyio.fail_after(20):
        async with running(app) as client:
            assert (await client.get("/")).status_code == 200


async def test_a_synchronous_one_and_an_asynchronous_one_start_together() -> None:
    events: list[str] = []
    thread_is_there = anyio.Event()
    go_on = threading.Event()

    def in_a_thread() -> Iterator[str]:
        anyio.from_thread.run_sync(thread_is_there.set)
        assert go_on.wait(10)
        yield "thread"
        events.append("stop thread")

    async def in_the_loop() -> AsyncIterator[str]:
        await thread_is_there.wait()
        go_on.set()
        yield "loop"
        events.append("stop loop")

    with anyio.fail_after(20):
        async with running(concurrent_app(in_a_thread, in_the_loop)):
            pass
    assert sorted(events) == ["stop loop", "stop thread"]


# --- A failure


@pytest.mark.parametrize("first", [True, False], ids=["declared first", "declared last"])
async def test_the_first_failure_ends_the_start(first: bool) -> None:
    """Those that start are cancelled, those that have are stopped in reverse."""
    error = OSError("broken")
    moments = Moments(start_of_broken=error)
    base = moments.provider("base")
    middle = moments.provider("middle", base)
    broken = moments.provider("broken")
    after = moments.provider("after", broken, middle)
    cancelled: list[str] = []

    async def slow() -> AsyncIterator[None]:
        moments.note("start of slow")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("slow")
        yield

    async def waits(slow: Annotated[None, Depends(slow, scope="lifespan")]) -> None:
        raise AssertionError("it was called")

    moments.let("start of broken", "start of slow", "start of middle")
    moments.let("start of middle", "start of base")
    needs = [waits, middle, after]
    app = concurrent_app(*([broken, *needs] if first else [*needs, broken]))
    with pytest.raises(OSError) as failed:
        async with running(app):
            raise AssertionError("it serves")
    assert failed.value is error
    assert failed.value.__notes__ == [failed.value.__notes__[0]]
    assert "failed to start" in failed.value.__notes__[0]
    assert cancelled == ["slow"]
    started, stopped = starts_and_stops(moments.events)
    assert started[0] == "base"
    assert stopped == started[::-1]
    assert set(started) <= {"base", "middle"}


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_what_else_goes_wrong_is_noted(order: str) -> None:
    """Another start that fails meanwhile, a clean-up, and a stop."""
    error = OSError("first")
    moments = Moments(start_of_broken=error, stop_of_base=OSError("stop of base"))
    moments.let("start of broken", "start of cleaning", "start of thread", "start of base")
    release = threading.Event()

    async def cleaning() -> None:
        moments.note("start of cleaning")
        try:
            await anyio.sleep_forever()
        finally:
            release.set()
            raise LookupError("while cleaning up")

    def thread() -> None:
        anyio.from_thread.run_sync(moments.note, "start of thread")
        assert release.wait(10)
        raise ArithmeticError("in a thread")

    needs = [cleaning, moments.provider("base"), thread, moments.provider("broken")]
    app = concurrent_app(*(needs if order == "ab" else needs[::-1]))
    with pytest.raises(OSError) as failed:
        async with running(app):
            raise AssertionError("it serves")
    assert failed.value is error
    notes = "\n".join(failed.value.__notes__)
    for text in ("LookupError: while cleaning up", "ArithmeticError: in a thread", "stop of base"):
        assert notes.count(text) == 1, text


async def test_two_that_fail_at_once() -> None:
    moments = Moments(start_of_a=OSError("a"), start_of_b=OSError("b"))
    for name in "ab":
        moments.let(f"start of {name}", "start of a", "start of b")
    with pytest.raises(OSError) as failed:
        async with running(concurrent_app(*moments.providers("ab"))):
            raise AssertionError("it serves")
    told = {str(failed.value)} | {
        name for name in "ab" if any(f"OSError: {name}" in note for note in failed.value.__notes__)
    }
    assert told == {"a", "b"}


async def test_a_value_that_comes_in_spite_of_the_cancellation_is_stopped() -> None:
    events: list[str] = []
    moments = Moments(start_of_broken=OSError("broken"))
    moments.let("start of broken", "start of stubborn", "start of thread")
    release = threading.Event()

    async def stubborn() -> AsyncIterator[None]:
        moments.note("start of stubborn")
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        release.set()
        events.append("start stubborn")
        yield
        events.append("stop stubborn")

    def thread() -> Iterator[None]:
        anyio.from_thread.run_sync(moments.note, "start of thread")
        assert release.wait(10)
        events.append("start thread")
        yield
        events.append("stop thread")

    with pytest.raises(OSError, match="broken"):
        async with running(concurrent_app(stubborn, thread, moments.provider("broken"))):
            raise AssertionError("it serves")
    started, stopped = starts_and_stops(events)
    assert sorted(started) == sorted(stopped) == ["stubborn", "thread"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_exit_that_one_asks_for_ends_the_others(error: type[BaseException]) -> None:
    moments = Moments(start_of_b=error())
    moments.let("start of b", "start of a", "start of c")
    moments.let("start of c", "never")
    with pytest.raises(error):
        async with running(concurrent_app(*moments.providers("abc"))):
            raise AssertionError("it serves")
    assert moments.events in (["start a", "stop a"], [])


async def test_errors_of_stops_are_all_raised() -> None:
    errors = {f"stop_of_{name}": OSError(name) for name in "abc"}
    moments = Moments(**errors)
    for name in "abc":
        moments.let(f"stop of {name}", "stop of a", "stop of b", "stop of c")
    with pytest.raises(ExceptionGroup) as failed:
        async with running(concurrent_app(*moments.providers("abc"), moments.provider("d"))):
            pass
    assert {id(error) for error in leaves(failed.value)} == {id(e) for e in errors.values()}
    assert sorted(moments.events[4:]) == ["stop a", "stop b", "stop c", "stop d"]


# --- Cancellation, and the end of the event loop


@pytest.mark.parametrize("moment", ["starting", "stopping"])
async def test_a_run_that_is_cancelled_stops_what_has_started(moment: str) -> None:
    moments = Moments()
    base = moments.provider("base")
    top = moments.provider("top", base)
    if moment == "starting":
        moments.let("start of slow", "never")
    else:
        moments.let("stop of slow", "cancelled")
    app = concurrent_app(moments.provider("slow"), top)
    served = False

    async def run() -> None:
        nonlocal served
        async with running(app):
            served = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        if moment == "starting":
            await moments.until("start of slow", "start of top")
            await settle()
        else:
            await moments.end("base")
        tasks.cancel_scope.cancel()
        moments.note("cancelled")
    assert served == (moment == "stopping")
    started, stopped = starts_and_stops(moments.events)
    assert sorted(started) == sorted(stopped)
    assert [name for name in stopped if name != "slow"] == ["top", "base"]
    assert ("slow" in started) == (moment == "stopping")


async def test_a_startup_that_is_cancelled_at_any_step_stops_what_it_has_started() -> None:
    """Cancel after 0, 1, 2, ... steps of the event loop, until the startup is through."""
    for steps in range(1000):
        events: list[str] = []
        app = diamond_app(events)
        served = False

        async def run(app: FastAPI = app) -> None:
            nonlocal served
            async with app.router.lifespan_context(app):
                served = True
                await anyio.sleep_forever()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        check_diamond(events)
        if served:
            assert steps > 5
            assert len(events) == 12
            return
    raise AssertionError("it never started")


async def checkpoints(moment: str) -> None:
    for _ in range(3):
        await anyio.lowlevel.checkpoint()


def diamond_app(events: list[str]) -> FastAPI:
    """A diamond and two more apart; what is opened or closed asserts that what it takes is open."""
    make = partial(provider, trouble=checkpoints)
    base = make("base", events)
    left, right = make("left", events, base), make("right", events, base)
    top = make("top", events, left, right)
    return concurrent_app(top, make("apart", events), sync_provider("thread", events))


def check_diamond(events: list[str]) -> None:
    """All that has started has stopped once, after what takes it."""
    started, stopped = starts_and_stops(events)
    assert sorted(started) == sorted(stopped)
    assert len(set(stopped)) == len(stopped)
    for before, after in (("top", "left"), ("top", "right"), ("left", "base"), ("right", "base")):
        if before in started:
            assert started.index(after) < started.index(before)
            assert stopped.index(before) < stopped.index(after)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """ "Task exception was never retrieved", "Task was destroyed but it is pending"."""
    return [text for text in caplog.messages if text.startswith("Task ")]


async def left_open(app: FastAPI) -> Any:
    """Enter a run that nobody leaves."""
    context = app.router.lifespan_context(app)
    await context.__aenter__()
    return context


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_a_run_that_nobody_leaves_is_stopped_when_the_event_loop_ends(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    anyio.run(left_open, diamond_app(events), backend=anyio_backend)
    check_diamond(events)
    assert len(events) == 12
    assert complaints(caplog) == []


@pytest.mark.parametrize("stays", [True, False], ids=["starting", "starting and stopping"])
def test_the_event_loop_may_end_at_any_step(
    stays: bool, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """End it after 0, 1, 2, ... steps; what has started is stopped."""
    events: list[str] = []

    async def run() -> None:
        app = diamond_app(events)
        with suppress(RuntimeError):  # trio forbids it in this place
            async with app.router.lifespan_context(app):
                if stays:
                    await anyio.sleep_forever()

    async def main(steps: int) -> None:
        if anyio_backend == "trio":
            trio.lowlevel.spawn_system_task(run)
        else:
            task = asyncio.create_task(run())
            task.add_done_callback(lambda task: task.cancelled() or task.result())
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()

    for steps in range(80):
        events.clear()
        anyio.run(main, steps, backend=anyio_backend)
        check_diamond(events)
    assert len(events) >= 10  # the thread may take more time
    assert complaints(caplog) == []


def test_what_waits_for_a_thread_to_stop_in_is_stopped_when_the_event_loop_ends(
    anyio_backend: str,
) -> None:
    events: list[str] = []
    release = threading.Event()
    busy = threading.Semaphore(0)

    def make(name: str) -> Provider:
        def generator() -> Iterator[None]:
            events.append(f"start {name}")
            yield
            busy.release()
            assert release.wait(10)
            events.append(f"stop {name}")

        return generator

    async def run() -> None:
        with suppress(RuntimeError):  # trio forbids it in this place
            async with running(concurrent_app(*map(make, names))):
                pass

    async def bystander() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoints("")
            release.set()

    async def main() -> None:
        tasks = []
        for function in (bystander, run):
            if anyio_backend == "trio":
                trio.lowlevel.spawn_system_task(function)
            else:
                tasks.append(asyncio.create_task(function()))
        for _ in range(MAX_THREADS):
            await anyio.to_thread.run_sync(busy.acquire)
        await settle()

    names = [str(number) for number in range(MAX_THREADS + 2)]
    anyio.run(main, backend=anyio_backend)
    started, stopped = starts_and_stops(events)
    assert sorted(started) == sorted(stopped) == sorted(names)


def test_ctrl_c_stops_what_has_started(anyio_backend: str, request: pytest.FixtureRequest) -> None:
    """Once while others start, once while it serves."""
    # In the background of a shell, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    for moment in ("starting", "serving"):
        moments: list[Moments] = []

        async def main(moment: str = moment, moments: list[Moments] = moments) -> None:
            moments.append(Moments())
            base = moments[0].provider("base")
            top = moments[0].provider("top", base)

            async def interrupted() -> None:
                if moment == "starting":
                    await moments[0].until("start of top")
                    await settle()
                    signal.raise_signal(signal.SIGINT)
                    await anyio.sleep_forever()

            async with running(concurrent_app(interrupted, top)):
                signal.raise_signal(signal.SIGINT)
                await anyio.sleep_forever()

        with pytest.raises(KeyboardInterrupt):
            anyio.run(main, backend=anyio_backend)
        assert moments[0].events == ["start base", "start top", "stop top", "stop base"]


# --- While serving


class Pair:
    """A dependency that two take, and something else."""

    def __init__(self, **options: Any) -> None:
        self.moments = moments = Moments()
        self.base = base = moments.provider("base")
        self.left, self.right = moments.provider("left", base), moments.provider("right", base)
        self.other = moments.provider("other")
        self.app = LifespanFastAPI(**options)
        needs = {"/pair": [self.left, self.right], "/other": [self.other]}
        for path in needs:
            depends = [Depends(get, scope="lifespan") for get in needs[path]]
            self.app.get(path, dependencies=depends)(lambda: None)

    def together(self, *moments: str) -> None:
        """Let these wait for each other from now on."""
        self.moments._came.clear()
        for moment in moments:
            self.moments.let(moment, *moments)


@pytest.mark.parametrize("policy", ["availability_preserving", "resource_preserving"])
async def test_a_refresh_starts_and_stops_together_too(policy: Any) -> None:
    pair = Pair(lifespan_start="concurrent")
    async with running(pair.app) as client:
        pair.moments.events.clear()
        pair.together("start of left", "start of right")
        pair.together("stop of left", "stop of right")
        draining = await pair.app.lifespan_container.refresh(pair.base, policy=policy)
        await draining.wait()
        events = pair.moments.events
        assert (await client.get("/pair")).status_code == 200
        starts = [event for event in events if event.startswith("start")]
        stops = [event for event in events if event.startswith("stop")]
        assert (starts[0], sorted(starts[1:])) == ("start base", ["start left", "start right"])
        assert (stops[-1], sorted(stops[:-1])) == ("stop base", ["stop left", "stop right"])
        is_saving = policy == "resource_preserving"
        assert events == ([*stops, *starts] if is_saving else [*starts, *stops])
        events.clear()
    started, stopped = starts_and_stops(pair.moments.events)
    assert (started, sorted(stopped)) == ([], ["base", "left", "other", "right"])


async def test_a_refresh_that_fails_ends_what_starts_with_it() -> None:
    """The error is the caller's: nothing of it is left for the shutdown."""
    pair = Pair(lifespan_start="concurrent")
    async with running(pair.app) as client:
        container = pair.app.lifespan_container
        old = container[pair.left]
        for broken, slow in (("left", "right"), ("right", "left")):
            pair.moments.events.clear()
            pair.moments._came.clear()
            error = OSError(broken)
            pair.moments.errors = {f"start of {broken}": error}
            pair.moments.needs = {
                f"start of {broken}": {f"start of {slow}"},
                f"start of {slow}": {"never"},
            }
            with pytest.raises(OSError) as failed:
                await container.refresh(pair.base)
            assert failed.value is error
            await settle()
            assert pair.moments.events == ["start base", "stop base"]
            assert container[pair.left] is old
            assert (await client.get("/pair")).status_code == 200
        pair.moments.errors = {}
        pair.moments.needs = {}
        await container.refresh(pair.base)
        assert container[pair.left] is not old


async def test_what_else_goes_wrong_in_a_refresh_is_noted_on_its_error() -> None:
    pair = Pair(lifespan_start="concurrent")
    async with running(pair.app):
        pair.together("start of left", "start of right")
        pair.moments.errors = {"start of left": OSError("l"), "start of right": OSError("r")}
        with pytest.raises(OSError) as failed:
            await pair.app.lifespan_container.refresh(pair.base)
        notes = "\n".join(failed.value.__notes__)
        assert f"OSError: {'r' if str(failed.value) == 'l' else 'l'}" in notes


async def test_overrides_start_and_stop_together_too() -> None:
    pair = Pair(lifespan_start="concurrent")
    fakes = {pair.left: pair.moments.provider("one"), pair.right: pair.moments.provider("two")}
    async with running(pair.app) as client:
        pair.moments.events.clear()
        pair.together("start of one", "start of two")
        pair.together("stop of one", "stop of two")
        pair.app.dependency_overrides.update(fakes)
        assert (await client.get("/pair")).status_code == 200
        assert sorted(pair.moments.events) == ["start one", "start two"]
        pair.app.dependency_overrides.clear()
        assert (await client.get("/pair")).status_code == 200
        for name in ("one", "two"):
            await pair.moments.end(name)
        assert sorted(pair.moments.events[2:]) == ["stop one", "stop two"]


async def test_an_override_that_fails_does_not_end_the_others() -> None:
    pair = Pair(lifespan_start="concurrent")
    moments = pair.moments
    fakes = {pair.left: moments.provider("one"), pair.other: moments.provider("two")}
    async with running(pair.app, raises=False) as client:
        moments.events.clear()
        moments.errors = {"start of one": OSError("one")}
        moments.let("start of two", "start of one")
        pair.app.dependency_overrides.update(fakes)
        assert (await client.get("/other")).status_code == 200
        assert (await client.get("/pair")).status_code == 500
        assert moments.events == ["start two"]


async def test_a_start_at_the_end_of_the_application_is_given_up() -> None:
    pair = Pair(lifespan_start="concurrent")
    refused: list[RefreshError] = []

    async def refresh() -> None:
        with pytest.raises(RefreshError, match="the application stops") as error:
            await pair.app.lifespan_container.refresh(pair.base)
        refused.append(error.value)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, running(pair.app):
            pair.moments.events.clear()
            pair.moments._came.clear()
            pair.moments.let("start of left", "never")
            pair.moments.let("start of right", "never")
            tasks.start_soon(refresh)
            await pair.moments.until("start of left", "start of right")
    assert len(refused) == 1
    started, stopped = starts_and_stops(pair.moments.events)
    assert (started, sorted(stopped)) == (["base"], ["base", "base", "left", "other", "right"])


# --- How it is asked for


async def is_concurrent(app: FastAPI) -> bool:
    """Whether two that wait for each other get started."""
    events: list[str] = []
    both = anyio.Event()

    async def first() -> None:
        events.append("first")
        with anyio.move_on_after(0.05):
            await both.wait()
            events.append("together")

    async def second() -> None:
        events.append("second")
        both.set()

    app.get("/", dependencies=[Depends(g, scope="lifespan") for g in (first, second)])(lambda: None)
    async with running(app):
        return "together" in events


def enabled(*modes: Any) -> FastAPI:
    app = FastAPI()
    for mode in modes:
        assert enable_lifespan_scope(app, lifespan_start=mode) is app
    return app


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LifespanFastAPI(), False),
        (lambda: LifespanFastAPI(lifespan_start=None), False),
        (lambda: LifespanFastAPI(lifespan_start="sequential"), False),
        (lambda: LifespanFastAPI(lifespan_start="concurrent"), True),
        (lambda: enable_lifespan_scope(FastAPI()), False),
        (lambda: enabled("concurrent"), True),
        (lambda: enabled("sequential"), False),
        (lambda: enabled(None, "concurrent"), True),
        (lambda: enabled("concurrent", None), True),
        (lambda: enabled("concurrent", "sequential"), False),
        (lambda: enable_lifespan_scope(LifespanFastAPI(), lifespan_start="concurrent"), True),
        (lambda: enable_lifespan_scope(LifespanFastAPI(lifespan_start="concurrent")), True),
    ],
)
async def test_how_it_is_asked_for(make: Callable[[], FastAPI], expected: bool) -> None:
    assert await is_concurrent(make()) == expected


@pytest.mark.parametrize("value", ["parallel", "", True, 1, "Concurrent"])
def test_an_unknown_value_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="'sequential' or 'concurrent'") as refused:
        LifespanFastAPI(lifespan_start=value)
    assert f"lifespan_start={value!r}" in str(refused.value)
    app = FastAPI()
    router = type(app.router)
    with pytest.raises(ValueError):
        enable_lifespan_scope(app, lifespan_start=value)
    assert type(app.router) is router


async def test_hooks_and_lifespan_functions_come_after_all_of_them() -> None:
    moments = Moments()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        moments.events.append("enter")
        yield
        moments.events.append("leave")

    app = LifespanFastAPI(lifespan=lifespan, lifespan_start="concurrent")
    needs = [Depends(get, scope="lifespan") for get in moments.providers("ab")]
    app.get("/", dependencies=needs)(lambda: None)
    async with running(app):
        pass
    events = moments.events
    assert (sorted(events[:2]), events[2:4]) == (["start a", "start b"], ["enter", "leave"])
    assert sorted(events[4:]) == ["stop a", "stop b"]
