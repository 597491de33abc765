"""Starting and stopping (clauses 5 and 6), whatever fails or is cancelled on the way."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest
import trio
from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI, lifespan_graph
from tests.recording import (
    Value,
    app_with,
    closed,
    leaves,
    opened,
    provider,
    starts_and_stops,
    sync_provider,
)

pytestmark = pytest.mark.anyio

Trouble = Callable[[str], Awaitable[None]]


# --- Clause 5: order


@pytest.mark.parametrize("make", [provider, sync_provider])
async def test_clause_5_dependencies_start_in_the_order_of_the_routes_after_what_they_need(
    make: Callable[..., Any],
) -> None:
    events: list[str] = []
    engine = make("engine", events)
    cache = make("cache", events)
    model = make("model", events, engine)
    queue = make("queue", events, model, cache)
    app = app_with(cache, queue)

    @app.get("/engine", dependencies=[Depends(engine, scope="lifespan")])
    async def read_engine() -> None: ...

    async with app.router.lifespan_context(app):
        assert starts_and_stops(events) == (["cache", "engine", "model", "queue"], [])
    started, stopped = starts_and_stops(events)
    assert stopped == started[::-1]


async def test_clause_5_the_order_is_the_same_the_next_time() -> None:
    """Though what FastAPI solves has changed."""
    events: list[str] = []
    first, second, third = (provider(name, events) for name in ("first", "second", "third"))

    def get_user(it: Annotated[Any, Depends(first, scope="lifespan")]) -> None: ...

    def get_name(
        user: Annotated[None, Depends(get_user)],
        it: Annotated[Any, Depends(second, scope="lifespan")],
    ) -> None: ...

    app = LifespanFastAPI()

    @app.get("/")
    async def read_root(
        name: Annotated[None, Depends(get_name)],
        it: Annotated[Any, Depends(third, scope="lifespan")],
    ) -> None: ...

    planned = lifespan_graph(app)
    for _ in range(2):
        events.clear()
        async with app.router.lifespan_context(app):
            assert lifespan_graph(app).json() == planned.json()
        assert starts_and_stops(events)[0] == ["first", "second", "third"]


async def test_clause_5_a_failed_start_is_raised_as_it_is_with_stop_errors_as_notes() -> None:
    events: list[str] = []
    start_error = OSError("no route to host")
    stop_errors = {"stop of first": ValueError("one"), "stop of second": KeyError("two")}

    async def trouble(moment: str) -> None:
        if moment == "start of third":
            raise start_error
        if moment in stop_errors:
            raise stop_errors[moment]

    names = ("first", "second", "third", "fourth")
    app = app_with(*(provider(name, events, trouble=trouble) for name in names))
    with pytest.raises(OSError) as raised:
        async with app.router.lifespan_context(app):
            raise AssertionError("it serves")

    assert raised.value is start_error
    assert events == ["start first", "start second", "stop second", "stop first"]
    note = "\n".join(start_error.__notes__)
    assert "Then, while stopping:" in note
    assert note.index("KeyError: 'two'") < note.index("ValueError: one")


# --- Clause 6: one trouble, anywhere

MOMENTS = [
    "start of other",
    "stop of other",
    "startup hook",
    "shutdown hook",
    "lifespan up",
    "lifespan down",
    "router's lifespan up",
    "router's lifespan down",
    "serving",
]


def eventful_app(events: list[str], trouble: Trouble) -> LifespanFastAPI:
    """An application in which everything that can fail awaits `trouble`."""
    pool = provider("pool", events)
    repository = provider("repository", events, pool)
    other = provider("other", events, trouble=trouble)
    last = sync_provider("last", events, repository)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await trouble("lifespan up")
        yield
        await trouble("lifespan down")

    @asynccontextmanager
    async def routers_lifespan(app: FastAPI) -> AsyncIterator[None]:
        await trouble("router's lifespan up")
        yield
        await trouble("router's lifespan down")

    async def startup() -> None:
        await trouble("startup hook")

    async def shutdown() -> None:
        await trouble("shutdown hook")

    app = app_with(repository, other, last, lifespan=lifespan)
    app.router.on_startup.append(startup)
    app.router.on_shutdown.append(shutdown)
    app.include_router(APIRouter(lifespan=routers_lifespan))
    return app


def assert_all_is_stopped(events: list[str]) -> None:
    started, stopped = starts_and_stops(events)
    assert started[:2] == ["pool", "repository"]
    assert stopped == started[::-1]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_clause_6_code_after_yield_runs_once_whatever_fails(moment: str) -> None:
    events: list[str] = []
    error = OSError(moment)

    async def trouble(now: str) -> None:
        if now == moment:
            raise error

    app = eventful_app(events, trouble)
    with pytest.raises(OSError) as raised:
        async with app.router.lifespan_context(app):
            await trouble("serving")
    assert raised.value is error
    notes = "".join(getattr(error, "__notes__", []))
    if moment in ("start of other", "stop of other"):
        step, _, name = moment.partition(" of ")
        assert re.fullmatch(rf"`{name}` \(\S+\) failed to {step}", notes)
    else:
        assert notes == ""
    assert_all_is_stopped(events)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_clause_6_code_after_yield_runs_once_whatever_a_cancel_scope_cancels(
    moment: str,
) -> None:
    events: list[str] = []

    async def trouble(now: str) -> None:
        if now == moment:
            scope.cancel()
        await anyio.lowlevel.checkpoint()

    app = eventful_app(events, trouble)
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        async with app.router.lifespan_context(app):
            await trouble("serving")
        await anyio.lowlevel.checkpoint()  # the stop itself is shielded to its end
    assert scope.cancelled_caught
    assert_all_is_stopped(events)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clause_6_code_after_yield_runs_once_whenever_the_task_is_cancelled(
    moment: str,
) -> None:
    events: list[str] = []

    async def trouble(now: str) -> None:
        if now == moment:
            task.cancel()
        await asyncio.sleep(0)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await trouble("serving")

    app = eventful_app(events, trouble)
    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    assert_all_is_stopped(events)


@pytest.mark.parametrize("patience", range(3))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clause_6_a_task_that_is_cancelled_again_and_again_still_stops_everything(
    patience: int,
) -> None:
    events: list[str] = []

    async def trouble(now: str) -> None:
        if now.startswith("stop"):
            for _ in range(3):
                task.cancel()
                for _ in range(patience):
                    await asyncio.sleep(0)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            pass

    app = eventful_app(events, trouble)
    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    assert_all_is_stopped(events)


async def test_clause_6_generator_exit_stops_everything() -> None:
    events: list[str] = []
    app = eventful_app(events, no_trouble)
    context = app.router.lifespan_context(app)
    await context.__aenter__()
    generator: Any = context
    await generator.gen.aclose()
    assert_all_is_stopped(events)


async def no_trouble(moment: str) -> None: ...


# --- Clause 6: several troubles


@pytest.mark.parametrize("stops_fail", [0, 1, 2])
@pytest.mark.parametrize("body", ["succeeds", "fails", "is cancelled"])
@pytest.mark.parametrize("start", ["succeeds", "fails"])
async def test_clause_6_the_matrix_of_failures(start: str, body: str, stops_fail: int) -> None:
    events: list[str] = []
    start_error, body_error = OSError("start"), LookupError("body")
    stop_errors = [ValueError(f"stop of {name}") for name in ("b", "a")[:stops_fail]]

    async def trouble(moment: str) -> None:
        if moment == "start of c" and start == "fails":
            raise start_error
        for error in stop_errors:
            if str(error) == moment:
                raise error

    app = app_with(*(provider(name, events, trouble=trouble) for name in "abc"))
    raised: BaseException | None = None
    served = False
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        try:
            async with app.router.lifespan_context(app):
                served = True
                if body == "fails":
                    raise body_error
                if body == "is cancelled":
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        except BaseException as error:
            raised = error
            if not isinstance(error, Exception):
                raise

    started, stopped = starts_and_stops(events)
    assert stopped == started[::-1]
    assert served == (start == "succeeds")
    if start == "fails":
        assert raised is start_error
    elif body == "is cancelled":
        assert scope.cancelled_caught
    else:
        expected = [*([body_error] if body == "fails" else []), *stop_errors]
        assert leaves(raised) == expected
        assert isinstance(raised, ExceptionGroup) == (len(expected) > 1)
    if raised is start_error or body == "is cancelled":
        notes = "".join(getattr(raised, "__notes__", []))
        assert all(f"ValueError: {error}" in notes for error in stop_errors)


@pytest.mark.parametrize(
    ("moments", "last_message"),
    [
        ([], "lifespan.shutdown.complete"),
        (["start of other"], "lifespan.startup.failed"),
        (["startup hook"], "lifespan.startup.failed"),
        (["lifespan up", "stop of other"], "lifespan.startup.failed"),
        (["stop of other"], "lifespan.shutdown.failed"),
        (["shutdown hook"], "lifespan.shutdown.failed"),
        (["lifespan down", "stop of other"], "lifespan.shutdown.failed"),
    ],
)
async def test_clause_6_the_server_is_told_what_failed(
    moments: list[str], last_message: str
) -> None:
    events: list[str] = []
    sent: list[Any] = []

    async def trouble(moment: str) -> None:
        if moment in moments:
            raise OSError(f"failed at the {moment}")

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = eventful_app(events, trouble)
    raised = None
    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except Exception as error:
        raised = error

    assert sent[-1]["type"] == last_message
    assert [message["type"] for message in sent[:-1]] == (
        [] if last_message == "lifespan.startup.failed" else ["lifespan.startup.complete"]
    )
    assert bool(raised) == bool(moments)
    for moment in moments:
        assert f"failed at the {moment}" in sent[-1]["message"]
    assert_all_is_stopped(events)


async def test_clause_6_an_error_of_a_fake_that_stopped_while_serving_is_raised_at_the_end() -> (
    None
):
    events: list[str] = []
    error = OSError("the fake")

    async def trouble(moment: str) -> None:
        if moment == "stop of fake":
            raise error

    original = provider("original", events)
    app = app_with(original)
    with pytest.raises(OSError) as raised:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                app.dependency_overrides[original] = provider("fake", events, trouble=trouble)
                await client.get("/")
                app.dependency_overrides.clear()
                await client.get("/")
                with anyio.fail_after(10):
                    await anyio.wait_all_tasks_blocked()
                assert events == ["start original", "start fake", "stop fake"]
    assert raised.value is error
    assert events[3:] == ["stop original"]


# --- Clause 6: cancelled in the middle of a start


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_clause_6_a_start_that_is_cancelled_while_it_awaits_is_given_up(
    how: str, anyio_backend: str
) -> None:
    events: list[str] = []
    waiting = anyio.Event()

    async def trouble(moment: str) -> None:
        if moment == "start of second":
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                events.append("given up")

    app = app_with(*(provider(name, events, trouble=trouble) for name in ("first", "second")))
    await cancel_startup(app, waiting.wait, lambda: None, how, anyio_backend)
    assert events == ["start first", "given up", "stop first"]


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_clause_6_a_start_that_is_cancelled_while_its_thread_works_is_stopped(
    how: str, anyio_backend: str
) -> None:
    events: list[str] = []
    waiting = anyio.Event()
    release = threading.Event()

    def get_second() -> Iterator[None]:
        anyio.from_thread.run_sync(waiting.set)
        assert release.wait(10)
        events.append("start second")
        yield
        events.append("stop second")

    app = app_with(provider("first", events), get_second)
    await cancel_startup(app, waiting.wait, release.set, how, anyio_backend)
    assert events == ["start first", "start second", "stop second", "stop first"]


async def cancel_startup(
    app: FastAPI,
    until: Callable[[], Awaitable[Any]],
    then: Callable[[], None],
    how: str,
    backend: str,
) -> None:
    """Start an application, wait, cancel the startup, do something, and wait for its end."""
    if how == "task" and backend == "trio":
        pytest.skip("a task of trio is cancelled by scopes only")

    async def run() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it serves")

    with anyio.fail_after(10):
        if how == "task":
            task = asyncio.create_task(run())
            await until()
            task.cancel()
            await anyio.lowlevel.checkpoint()
            then()
            await asyncio.wait([task])
            assert task.cancelled()
            return
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await until()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            then()


async def test_clause_6_an_error_of_a_start_that_was_given_up_is_not_lost() -> None:
    waiting = anyio.Event()
    caught: list[BaseException] = []

    async def get_value() -> AsyncIterator[None]:
        try:
            waiting.set()
            await anyio.sleep_forever()
            yield
        finally:
            raise OSError("could not roll back")

    async def run() -> None:
        try:
            async with app.router.lifespan_context(app):
                raise AssertionError("it serves")
        except BaseException as error:
            caught.append(error)
            raise

    app = app_with(get_value)
    with anyio.fail_after(10):
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await waiting.wait()
                group.cancel_scope.cancel()
        except ExceptionGroup as error:
            caught.append(error)
    told = [str(leaf) for error in caught for leaf in leaves(error)]
    told += [note for error in caught for note in getattr(error, "__notes__", [])]
    assert any("could not roll back" in text for text in told)


async def test_clause_6_a_startup_that_is_cancelled_at_any_step_stops_what_it_has_started() -> None:
    """Cancel after 0, 1, 2, ... steps of the event loop, until the startup is through."""
    for steps in range(1000):
        events: list[str] = []
        app = eventful_app(events, no_trouble)
        served = await cancelled_after(steps, app)
        started, stopped = starts_and_stops(events)
        assert stopped == started[::-1], f"cancelled after {steps} steps"
        if served:
            assert steps > 5
            return
    raise AssertionError("it never started")


async def cancelled_after(steps: int, app: FastAPI) -> bool:
    served = False

    async def run() -> None:
        nonlocal served
        async with app.router.lifespan_context(app):
            served = True
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    return served


# --- Clause 6: the event loop is torn down


def in_time(function: Callable[[], Any]) -> None:
    """Call something that might hang for ever."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    future.result(timeout=10)


@contextmanager
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "Task exception was never retrieved", no "Task was destroyed but it is pending"."""
    with caplog.at_level(logging.WARNING, "asyncio"):
        yield
    assert not [record for record in caplog.records if record.getMessage().startswith("Task ")]


async def left_open(app: FastAPI) -> AbstractAsyncContextManager[Any]:
    """Enter a run that nobody leaves."""
    context = app.router.lifespan_context(app)
    await context.__aenter__()
    return context


def run_asyncio(main: Callable[..., Any], *arguments: Any) -> None:
    asyncio.run(main(*arguments))


def run_trio(main: Callable[..., Any], *arguments: Any) -> None:
    trio.run(main, *arguments)


async def run(app: FastAPI, stays: bool) -> None:
    async with app.router.lifespan_context(app):
        if stays:
            await anyio.sleep_forever()


def test_clause_6_a_run_that_nobody_leaves_is_stopped_at_the_end_of_asyncio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[str] = []
    pool = provider("pool", events)
    app = app_with(pool, provider("repository", events, pool), sync_provider("last", events))
    with nothing_logged(caplog):
        in_time(lambda: asyncio.run(left_open(app)))
    assert_all_is_stopped(events)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_clause_6_a_run_that_nobody_leaves_is_stopped_at_the_end_of_trio() -> None:
    events: list[str] = []
    app = eventful_app(events, lambda moment: anyio.lowlevel.checkpoint())
    in_time(lambda: trio.run(left_open, app))
    assert_all_is_stopped(events)


def app_of_steps(events: list[str]) -> FastAPI:
    async def trouble(moment: str) -> None:
        await anyio.lowlevel.checkpoint()

    return app_with(*(provider(name, events, trouble=trouble) for name in "abc"))


@pytest.mark.parametrize("stays", [True, False], ids=["starting", "starting and stopping"])
@pytest.mark.parametrize("cancels_all", [False, True], ids=["loop ends", "all tasks cancelled"])
def test_clause_6_asyncio_may_end_at_any_step(
    cancels_all: bool, stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """End the event loop after 0, 1, 2, ... steps; what has started is stopped in reverse."""
    events: list[str] = []

    async def main(steps: int) -> None:
        app = app_of_steps(events)
        task = asyncio.create_task(run(app, stays))
        for _ in range(steps):
            await asyncio.sleep(0)
        if cancels_all:
            everything = asyncio.all_tasks() - {asyncio.current_task()}
            for other in everything:
                other.cancel()
            if everything:
                await asyncio.wait(everything)
            assert task.done()

    with nothing_logged(caplog):
        for steps in range(60):
            events.clear()
            in_time(partial(run_asyncio, main, steps))
            started, stopped = starts_and_stops(events)
            assert stopped == started[::-1], f"ended after {steps} steps"
    assert starts_and_stops(events) == (["a", "b", "c"], ["c", "b", "a"])


@pytest.mark.parametrize("stays", [True, False], ids=["starting", "starting and stopping"])
def test_clause_6_trio_may_end_at_any_step(stays: bool) -> None:
    events: list[str] = []

    async def system_task() -> None:
        with suppress(RuntimeError):  # trio forbids it in this place
            await run(app_of_steps(events), stays)

    async def main(steps: int) -> None:
        trio.lowlevel.spawn_system_task(system_task)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()

    for steps in range(60):
        events.clear()
        in_time(partial(run_trio, main, steps))
        started, stopped = starts_and_stops(events)
        assert stopped == started[::-1], f"ended after {steps} steps"
    assert starts_and_stops(events) == (["a", "b", "c"], ["c", "b", "a"])


@asynccontextmanager
async def holding_a_task_group() -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def holding_a_task_group_of_asyncio() -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.sleep(3600))
        yield
        task.cancel()


@asynccontextmanager
async def holding_a_timeout() -> AsyncIterator[None]:
    async with asyncio.timeout(3600):
        yield


@pytest.mark.parametrize(
    "holding", [holding_a_task_group, holding_a_task_group_of_asyncio, holding_a_timeout]
)
def test_clause_6_a_dependency_that_holds_a_scope_is_stopped_in_its_turn_when_asyncio_ends(
    holding: Callable[[], AbstractAsyncContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []

    async def scoped(
        engine: Annotated[Value, Depends(provider("engine", events), scope="lifespan")],
    ) -> AsyncIterator[Value]:
        async with holding():
            value = opened("scoped", events, {"engine": engine})
            yield value
        closed(value, events)

    app = app_with(provider("last", events, scoped))
    with nothing_logged(caplog):
        in_time(lambda: asyncio.run(left_open(app)))
    assert starts_and_stops(events) == (["engine", "scoped", "last"], ["last", "scoped", "engine"])


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_clause_6_a_thread_that_works_when_asyncio_ends_gets_to_its_end_in_its_turn(
    moment: str,
) -> None:
    events: list[str] = []
    release = threading.Event()

    async def bystander() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            asyncio.get_running_loop().call_soon(release.set)

    async def main() -> None:
        working = asyncio.Event()

        def work(now: str) -> None:
            if now == moment:
                anyio.from_thread.run_sync(working.set)
                assert release.wait(10)

        def get_second() -> Iterator[None]:
            work("start")
            events.append("start second")
            yield
            work("stop")
            events.append("stop second")

        app = app_with(provider("first", events), get_second)
        tasks = [asyncio.create_task(bystander()), asyncio.create_task(run(app, stays=False))]
        await working.wait()
        assert not any(task.done() for task in tasks)

    in_time(lambda: asyncio.run(main()))
    assert events == ["start first", "start second", "stop second", "stop first"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clause_6_what_a_dependency_raises_is_retrieved_by_somebody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio complains of a task whose exception nobody looked at, when it is collected."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))

    async def trouble(moment: str) -> None:
        if moment in ("start of third", "stop of first"):
            raise OSError(moment)

    names = ("first", "second", "third")
    app = app_with(*(provider(name, [], trouble=trouble) for name in names))
    with nothing_logged(caplog), pytest.raises(OSError):
        async with app.router.lifespan_context(app):
            pass
    asyncio.get_running_loop().set_exception_handler(None)
    assert contexts == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_clause_6_an_exit_that_a_dependency_asks_for_is_raised_after_all_was_stopped(
    error: type[BaseException],
) -> None:
    events: list[str] = []

    async def trouble(moment: str) -> None:
        if moment == "start of second":
            raise error

    app = app_with(*(provider(name, events, trouble=trouble) for name in ("first", "second")))
    with pytest.raises(error):
        async with app.router.lifespan_context(app):
            raise AssertionError("it serves")
    assert events == ["start first", "stop first"]


async def test_a_dependency_that_never_yields_fails_the_startup() -> None:
    async def get_value() -> AsyncIterator[None]:
        if not events:
            return
        yield

    events: list[str] = []
    app = app_with(get_value)
    with pytest.raises(RuntimeError, match="didn't yield"):
        async with app.router.lifespan_context(app):
            raise AssertionError("it serves")


async def test_a_dependency_that_yields_twice_fails_the_shutdown() -> None:
    async def get_value() -> AsyncIterator[int]:
        yield 1
        yield 2

    app = LifespanFastAPI()

    @app.get("/")
    async def read(value: Annotated[int, Depends(get_value, scope="lifespan")]) -> int:
        return value

    with pytest.raises(RuntimeError, match="didn't stop"):
        async with app.router.lifespan_context(app):
            pass
