"""Calls outside of requests: fresh dependencies and shared values, entered and left in order."""

import asyncio
import dataclasses
import functools
import gc
import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any, get_type_hints

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi import Depends as Stock
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    InvalidLifespanDependency,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    LifespanTimeout,
    RefreshError,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    View,
    current_container,
    enable_lifespan_scope,
    get_container,
    inject,
    lifespan_container,
)
from fastapi_lifespan_deps.call.inject import original_of
from fastapi_lifespan_deps.call.streams import Stream
from fastapi_lifespan_deps.live.entering import in_thread
from fastapi_lifespan_deps.live.generation import Pin
from tests import postponed_calls
from tests.clients import client_of, settle

pytestmark = pytest.mark.anyio

Log = list[str]
log: Log = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


class Engine:
    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self.is_alive = True


async def get_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    log.append("engine up")
    yield engine
    engine.is_alive = False
    log.append("engine down")


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]


def noted(name: str, error: BaseException) -> None:
    log.append(f"{name} sees {type(error).__name__}")


async def get_session(engine: EngineDep) -> AsyncIterator[str]:
    log.append("open session")
    try:
        yield f"session of {engine.name}"
    except BaseException as error:
        noted("session", error)
        raise
    finally:
        await anyio.lowlevel.checkpoint()
        log.append("close session")


SessionDep = Annotated[str, Stock(get_session)]


def get_unit(session: SessionDep) -> Iterator[str]:
    log.append("open unit")
    try:
        yield f"unit of {session}"
    except BaseException as error:
        noted("unit", error)
        raise
    finally:
        log.append("close unit")


UnitDep = Annotated[str, Stock(get_unit)]


async def get_name() -> str:
    return "name"


def get_number(name: Annotated[str, Stock(get_name)]) -> int:
    return len(name)


async def handle(text: str, unit: UnitDep, session: SessionDep, engine: EngineDep) -> str:
    assert unit == f"unit of {session}"
    assert engine.is_alive
    log.append(f"handle {text}")
    return f"{text} {unit}"


def handle_sync(text: str, unit: UnitDep, session: SessionDep, engine: EngineDep) -> str:
    assert unit == f"unit of {session}"
    log.append(f"handle {text}")
    return f"{text} {unit}"


AROUND = ["open session", "open unit", "handle a", "close unit", "close session"]


@pytest.mark.parametrize("function", [handle, handle_sync])
async def test_a_call_makes_what_is_fresh_and_shares_what_lives(function: Any) -> None:
    container = LifespanContainer(handlers=[function])
    async with container as view:
        for _ in range(2):
            assert await view.call(function, "a") == "a unit of session of engine"
    assert log == ["engine up", *AROUND, *AROUND, "engine down"]


async def test_a_dependency_is_made_once_for_a_call_unless_it_says_otherwise() -> None:
    made = []

    async def get_item() -> object:
        made.append(object())
        return made[-1]

    Item = Annotated[object, Stock(get_item)]
    Own = Annotated[object, Stock(get_item, use_cache=False)]

    async def get_pair(item: Any) -> Any:
        return item

    get_pair.__annotations__["item"] = Item

    async def function(a: Any, b: Any, c: Any, pair: Any) -> list[bool]:
        return [a is b, a is c, pair is a]

    function.__annotations__ |= {"a": Item, "b": Item, "c": Own}
    function.__annotations__["pair"] = Annotated[object, Stock(get_pair)]
    async with LifespanContainer() as view:
        assert await view.call(function) == [True, False, True]
        assert len(made) == 2
        await view.call(function)
        assert len(made) == 4


async def test_what_has_the_scope_of_the_function_is_left_first() -> None:
    def entering(name: str) -> Callable[[], Iterator[str]]:
        def enter() -> Iterator[str]:
            yield name
            log.append(name)

        return enter

    async def function(
        one: Annotated[str, Stock(entering("request 1"))],
        two: Annotated[str, Stock(entering("function 1"), scope="function")],
        three: Annotated[str, Stock(entering("request 2"))],
        four: Annotated[str, Stock(entering("function 2"), scope="function")],
    ) -> None: ...

    async with LifespanContainer() as view:
        await view.call(function)
    assert log == ["function 2", "function 1", "request 2", "request 1"]


async def test_every_kind_of_dependency() -> None:
    async def function(
        number: Annotated[int, Stock(get_number)],
        container: Annotated[LifespanContainer, Stock(get_container)],
        engine: EngineDep,
    ) -> list[Any]:
        return [number, container[get_engine] is engine, type(container) is View]

    async with LifespanContainer(handlers=[function]) as view:
        assert await view.call(function) == [4, True, True]


# Errors


class Wrong(Exception): ...


class Severe(BaseException): ...


@pytest.mark.parametrize("error", [Wrong("no"), Severe(), StopAsyncIteration(1)])
@pytest.mark.parametrize("is_sync", [False, True])
async def test_an_error_is_thrown_into_the_dependencies_innermost_first(
    error: BaseException, is_sync: bool
) -> None:
    async def fail(unit: UnitDep) -> None:
        raise error

    def fail_sync(unit: UnitDep) -> None:
        raise error

    function: Any = fail_sync if is_sync else fail
    async with LifespanContainer(handlers=[function]) as view:
        with pytest.raises(type(error)) as caught:
            await view.call(function)
    assert caught.value is error
    name = type(error).__name__
    assert log[3:-1] == [
        *(f"unit sees {name}", "close unit"),
        *(f"session sees {name}", "close session"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_dependency_swallows_is_raised_all_the_same(is_async: bool) -> None:
    def swallow(session: SessionDep) -> Iterator[None]:
        try:
            yield
        except Wrong:
            log.append("swallowed")

    async def swallow_async(session: SessionDep) -> AsyncIterator[None]:
        try:
            yield
        except Wrong:
            log.append("swallowed")

    async def fail(
        nothing: Annotated[None, Stock(swallow_async if is_async else swallow)],
    ) -> None:
        raise Wrong

    async with LifespanContainer(handlers=[fail]) as view:
        with pytest.raises(Wrong):
            await view.call(fail)
    assert log[2:4] == ["swallowed", "session sees Wrong"]


def failing(name: str, fails: bool = True) -> Callable[[], Iterator[str]]:
    def enter() -> Iterator[str]:
        try:
            yield name
        finally:
            log.append(f"leave {name}")
            if fails:
                raise Wrong(name)

    return enter


def failing_async(name: str) -> Callable[[], AsyncIterator[str]]:
    async def enter() -> AsyncIterator[str]:
        try:
            yield name
        finally:
            log.append(f"leave {name}")
            raise Wrong(name)

    return enter


@pytest.mark.parametrize("make", [failing, failing_async])
async def test_an_error_after_yield_fails_the_call(make: Callable[[str], Any]) -> None:
    async def function(session: SessionDep, one: Annotated[str, Stock(make("one"))]) -> None: ...

    async def function_of_two(
        one: Annotated[str, Stock(make("one"))], two: Annotated[str, Stock(make("two"))]
    ) -> None: ...

    async def function_that_fails(one: Annotated[str, Stock(make("one"))]) -> None:
        raise ValueError("its own")

    handlers: list[Any] = [function, function_of_two, function_that_fails]
    async with LifespanContainer(handlers=handlers) as view:
        with pytest.raises(Wrong, match="one"):
            await view.call(function)
        assert log[-3:] == ["leave one", "session sees Wrong", "close session"]
        with pytest.raises(ExceptionGroup) as group:
            await view.call(function_of_two)
        assert [str(one) for one in group.value.exceptions] == ["two", "one"]
        with pytest.raises(ValueError, match="its own") as caught:
            await view.call(function_that_fails)
        assert "Wrong: one" in caught.value.__notes__[0]


async def test_an_error_on_the_way_in_leaves_what_was_entered() -> None:
    async def fail() -> None:
        raise Wrong

    async def function(session: SessionDep, nothing: Annotated[None, Stock(fail)]) -> None:
        raise AssertionError

    async with LifespanContainer(handlers=[function]) as view:
        with pytest.raises(Wrong):
            await view.call(function)
    assert log[2:4] == ["session sees Wrong", "close session"]


def never() -> Iterator[None]:
    yield from ()


async def never_async() -> AsyncIterator[None]:
    for _ in ():
        yield


def twice() -> Iterator[None]:
    yield
    yield


async def twice_async() -> AsyncIterator[None]:
    yield
    yield


def goes_on() -> Iterator[None]:
    while True:
        with suppress(Wrong):
            yield


async def goes_on_async() -> AsyncIterator[None]:
    while True:
        with suppress(Wrong):
            yield


@pytest.mark.parametrize("provider", [never, never_async])
async def test_a_dependency_that_never_yields_is_named(provider: Any) -> None:
    async def function(nothing: Annotated[None, Stock(provider)]) -> None: ...

    async with LifespanContainer(handlers=[function]) as view:
        with pytest.raises(RuntimeError, match=r"`never.* came to its end without a `yield`"):
            await view.call(function)


@pytest.mark.parametrize("provider", [twice, twice_async, goes_on, goes_on_async])
async def test_a_dependency_that_yields_twice_is_named(provider: Any) -> None:
    async def function(nothing: Annotated[None, Stock(provider)], fails: bool = False) -> None:
        if fails:
            raise Wrong

    async with LifespanContainer(handlers=[function]) as view:
        with pytest.raises(RuntimeError, match=r"`(twice|goes_on).* didn't stop after its `yield`"):
            await view.call(function)
        if provider in (goes_on, goes_on_async):
            with pytest.raises(Wrong) as caught:
                await view.call(function, fails=True)
            assert "didn't stop" in caught.value.__notes__[0]


async def test_a_cancelled_call_is_left_to_the_end() -> None:
    begun = anyio.Event()

    async def wait(unit: UnitDep) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with LifespanContainer(handlers=[wait]) as view, anyio.create_task_group() as tasks:
        tasks.start_soon(view.call, wait)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert [one.partition(" sees")[0] for one in log[3:]] == [
        *("unit", "close unit", "session", "close session", "engine down"),
    ]


async def test_a_dependency_may_hold_a_task_group() -> None:
    async def get_tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()

    async def function(
        tasks: Annotated[anyio.abc.TaskGroup, Stock(get_tasks)], session: SessionDep
    ) -> str:
        tasks.start_soon(anyio.sleep_forever)
        return session

    async with LifespanContainer(handlers=[function]) as view:
        assert await view.call(function) == "session of engine"


# What a dependency may take


async def test_a_dependency_takes_what_the_caller_gave_by_name() -> None:
    def get_tenant(message: dict[str, str], region: str = "eu") -> str:
        return message["tenant"] + region

    async def function(
        message: dict[str, str],
        tenant: Annotated[str, Stock(get_tenant)],
        region: str = "us",
        *,
        tag: str = "",
    ) -> str:
        return tenant + tag

    async with LifespanContainer(handlers=[function]) as view:
        assert await view.call(function, {"tenant": "a"}) == "aus"
        assert await view.call(function, message={"tenant": "b"}, region="x", tag="!") == "bx!"


def get_user(request: Request) -> None: ...
def get_token(token: Annotated[str, Header()]) -> None: ...
def get_page(page: int) -> None: ...


@pytest.mark.parametrize(
    ("provider", "found"),
    [
        (get_user, "which exists only during a request"),
        (get_token, r"a parameter of a request \(header\)"),
        (get_page, "for nothing gives it"),
    ],
)
async def test_what_exists_only_in_a_request_is_refused_at_once(provider: Any, found: str) -> None:
    async def get_more(value: Annotated[None, Stock(provider)]) -> None: ...

    async def function(more: Annotated[None, Stock(get_more)]) -> None: ...

    container = LifespanContainer()
    with pytest.raises(DependencyScopeError, match=found) as caught:
        container.inject(function)
    message = str(caught.value)
    assert "is called outside of a request" in message
    assert "get_more" in message
    assert "test_calls.py:" in message
    with pytest.raises(DependencyScopeError):
        LifespanContainer(handlers=[function])

    LifespanContainer(handlers=[function], overrides={provider: lambda: None})


async def test_a_parameter_of_a_request_of_the_function_itself_is_refused() -> None:
    async def function(token: Annotated[str, Header()]) -> None: ...

    with pytest.raises(DependencyScopeError, match="header"):
        LifespanContainer(handlers=[function])


async def test_a_circle_of_dependencies_is_refused() -> None:
    async def one(other: Any) -> None: ...

    async def two(other: Annotated[None, Stock(one)]) -> None: ...

    one.__annotations__["other"] = Annotated[None, Stock(two)]

    async def function(value: Annotated[None, Stock(one)]) -> None: ...

    with pytest.raises(DependencyCycleError):
        LifespanContainer(handlers=[function])


async def test_what_cannot_live_is_refused_at_once() -> None:
    async def get_bad(request: Request) -> None: ...

    async def function(bad: Annotated[None, Depends(get_bad, scope="lifespan")]) -> None: ...

    with pytest.raises(DependencyScopeError, match="is started once"):
        LifespanContainer(handlers=[function])


async def test_an_explicit_argument_wins() -> None:
    async def function(session: SessionDep, engine: EngineDep) -> str:
        return f"{session} {engine.name}"

    container = LifespanContainer()
    injected = container.inject(function)
    async with container:
        assert await injected(session="mine") == "mine engine"
        assert await injected(engine=Engine("mine")) == "session of engine mine"
    assert log.count("open session") == 1


async def test_overrides_hold_at_any_depth_and_while_running() -> None:
    def get_fake() -> Engine:
        return Engine("fake")

    def get_other() -> str:
        return "other session"

    container = LifespanContainer(handlers=[handle], overrides={get_engine: get_fake})
    async with container as view:
        assert await view.call(handle, "a") == "a unit of session of fake"
        assert "engine up" not in log
        container.dependency_overrides[get_session] = get_other
        assert await view.call(handle, "b") == "b unit of other session"
        container.dependency_overrides.clear()
        assert await view.call(handle, "c") == "c unit of session of engine"


async def test_use_cache_false_is_one_instance_for_each_place() -> None:
    async def one(a: Any, b: Any) -> bool:
        return a is b

    async def two(a: Any) -> Any:
        return a

    own = Annotated[Engine, Depends(get_engine, scope="lifespan", use_cache=False)]
    one.__annotations__ |= {"a": own, "b": own}
    two.__annotations__["a"] = own
    async with LifespanContainer(handlers=[one, two]) as view:
        assert log.count("engine up") == 3
        assert await view.call(one) is False
        assert await view.call(two) is await view.call(two)


# Pins


async def test_a_call_sees_one_set_of_values_and_keeps_it_alive() -> None:
    begun, go_on = anyio.Event(), anyio.Event()
    old: Any = None
    draining: Any = None

    async def slow(engine: EngineDep, session: SessionDep) -> str:
        begun.set()
        await go_on.wait()
        assert engine.is_alive
        assert await current_container().call(fast) is engine  # pinned as the outer one is
        return session

    async def fast(engine: EngineDep) -> Engine:
        return engine

    async with LifespanContainer(handlers=[slow, fast]) as view:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.call, slow)
            await begun.wait()
            old = view[get_engine]
            draining = await view.refresh(get_engine)
            assert (await view.call(fast)) is view[get_engine] is not old
            assert old.is_alive
            go_on.set()
        await draining.wait()
        assert not old.is_alive


async def test_a_call_that_asks_for_a_refresh_sees_the_new_values() -> None:
    async def fast(engine: EngineDep) -> Engine:
        return engine

    async def renew(
        engine: EngineDep, container: Annotated[LifespanContainer, Stock(get_container)]
    ) -> bool:
        await container.refresh(get_engine)
        new = await container.call(fast)
        assert new is container[get_engine]
        return new is not engine

    async with LifespanContainer(handlers=[renew, fast]) as view:
        assert await view.call(renew)


async def test_without_a_value_a_call_is_refused_before_anything_is_entered() -> None:
    seen: list[Exception] = []

    async def hold(engine: EngineDep) -> None:
        begun.set()
        await go_on.wait()

    async def refused(session: SessionDep, engine: EngineDep) -> None:
        raise AssertionError

    begun, go_on = anyio.Event(), anyio.Event()
    async with (
        LifespanContainer(handlers=[hold, refused]) as view,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(view.call, hold)
        await begun.wait()

        async def refresh() -> None:
            await view.refresh(get_engine, policy="resource_preserving")

        tasks.start_soon(refresh)
        while not seen:
            await anyio.lowlevel.checkpoint()
            try:
                view[get_engine]
            except UnavailableLifespanDependency as error:
                seen.append(error)
        with pytest.raises(UnavailableLifespanDependency):
            await view.call(refused)
        go_on.set()
    assert "open session" not in log


async def test_a_call_in_a_request_is_pinned_as_the_request_is() -> None:
    async def fast(engine: EngineDep) -> Engine:
        return engine

    app = LifespanFastAPI()

    @app.get("/")
    async def read(
        engine: EngineDep, container: Annotated[LifespanContainer, Stock(get_container)]
    ) -> list[bool]:
        app.dependency_overrides[get_unrelated] = lambda: None
        first = await container.call(fast)
        second = await app.lifespan_container.call(fast)
        return [first is engine, second is engine]

    async with app.router.lifespan_context(app):
        async with client_of(app) as client:
            assert (await client.get("/")).json() == [True, True]
        assert await app.lifespan_container.call(fast) is app.lifespan_container[get_engine]


def get_unrelated() -> None: ...


# What is never silent


async def test_a_generator_function_cannot_be_called() -> None:
    async with LifespanContainer() as view:
        for function in (twice, twice_async):
            with pytest.raises(LifespanDependencyError, match="cannot be called once"):
                await view.call(function)


async def test_without_a_running_container_nothing_is_called() -> None:
    container = LifespanContainer()
    injected = container.inject(handle)
    with pytest.raises(LifespanNotRunning, match="was not entered, or was left"):
        await injected("a")
    async with container as view:
        pass
    for call in (injected, functools.partial(view.call, handle)):
        with pytest.raises(LifespanNotRunning):
            await call("a")
    with pytest.raises(LifespanNotRunning, match="runs under none"):
        current_container()


async def test_a_call_does_not_begin_while_the_container_is_left() -> None:
    async def late(engine: EngineDep) -> None:
        raise AssertionError

    async def get_busy(engine: EngineDep) -> AsyncIterator[None]:
        yield
        with pytest.raises(LifespanNotRunning, match="it is being left"):
            await view.call(late)
        log.append("refused")

    async with LifespanContainer(Depends(get_busy, scope="lifespan"), handlers=[late]) as view:
        pass
    assert "refused" in log


async def test_running_calls_end_before_the_values_stop() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(engine: EngineDep) -> None:
        begun.set()
        await go_on.wait()
        assert engine.is_alive
        log.append("slow is over")

    async with anyio.create_task_group() as tasks, LifespanContainer(handlers=[slow]) as view:
        tasks.start_soon(view.call, slow)
        await begun.wait()
        tasks.start_soon(go_on_soon, go_on)
    assert log == ["engine up", "slow is over", "engine down"]


async def go_on_soon(go_on: anyio.Event) -> None:
    await anyio.lowlevel.checkpoint()
    go_on.set()


async def test_calls_that_do_not_end_are_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastapi_lifespan_deps.call.calls.GRACE", 0.01)
    begun = anyio.Event()
    raised: list[BaseException] = []

    async def endless(unit: UnitDep) -> None:
        begun.set()
        await anyio.sleep_forever()

    async def call() -> None:
        try:
            await view.call(endless)
        except LifespanNotRunning as error:
            raised.append(error)

    async with (
        anyio.create_task_group() as tasks,
        LifespanContainer(handlers=[endless]) as view,
    ):
        tasks.start_soon(call)
        await begun.wait()
    assert "was left while" in str(raised[0])
    assert "endless" in str(raised[0])
    assert log[-2:] == ["close session", "engine down"]
    assert "Calls are cancelled" in caplog.text


# inject


async def test_an_injected_function_looks_as_if_it_took_what_its_caller_gives() -> None:
    container = LifespanContainer()
    injected = container.inject(handle)
    assert str(inspect.signature(injected)) == "(text: str) -> str"
    assert injected.__annotations__ == {"text": str, "return": str}
    assert not hasattr(injected, "__wrapped__")
    assert injected.__name__ == "handle"
    assert inspect.iscoroutinefunction(injected)
    async with container:
        assert await injected("a") == "a unit of session of engine"
        with pytest.raises(TypeError):
            await injected()


async def test_a_method_is_injected_where_it_is_defined_or_bound() -> None:
    container = LifespanContainer()

    class Service:
        name = "service"

        @container.inject
        async def handle(self, engine: EngineDep) -> str:
            return f"{self.name} {engine.name}"

        async def other(self, engine: EngineDep) -> str:
            return f"other {self.name} {engine.name}"

    other = container.inject(Service().other)
    async with container as view:
        handle: Callable[..., Awaitable[str]] = Service().handle
        assert await handle() == "service engine"
        assert await other() == "other service engine"
        assert await view.call(Service().other) == "other service engine"


@pytest.mark.parametrize("thing", [functools.partial(handle, "a"), object(), LifespanContainer])
async def test_what_is_no_function_cannot_be_injected(thing: Any) -> None:
    with pytest.raises(LifespanDependencyError, match="is not a function or a method"):
        LifespanContainer().inject(thing)


async def test_a_package_injects_without_knowing_the_container() -> None:
    @inject
    async def helper(engine: EngineDep) -> str:
        return current_container()[get_engine].name + engine.name

    async def function(engine: EngineDep) -> str:
        return await helper()

    with pytest.raises(LifespanNotRunning, match="helper` was called under none"):
        await helper()
    async with LifespanContainer(handlers=[function]) as view:
        assert current_container()[get_engine] is view[get_engine]
        assert await helper() == "engineengine"
        assert await view.call(function) == "engineengine"
        injected = view.inject(function)
        assert await injected() == "engineengine"


async def test_what_a_container_starts_knows_it() -> None:
    async def get_later(engine: EngineDep) -> AsyncIterator[View]:
        yield current_container()

    async with LifespanContainer(Depends(get_later, scope="lifespan")) as view:
        assert isinstance(view[get_later], View)


# enter


async def test_one_dependency_is_entered_by_itself() -> None:
    async with LifespanContainer(handlers=[handle]) as view:
        async with view.enter(get_unit) as unit:
            assert unit == "unit of session of engine"
            assert log[-1] == "open unit"
        assert log[-2:] == ["close unit", "close session"]
        with pytest.raises(Wrong):
            async with view.enter(get_unit):
                raise Wrong
        assert log[-4:] == [
            *("unit sees Wrong", "close unit"),
            *("session sees Wrong", "close session"),
        ]
        with pytest.raises(RuntimeError, match="without a `yield`"):
            async with view.enter(never):
                raise AssertionError


# The container


async def test_a_container_starts_its_providers_and_what_its_functions_declare() -> None:
    async def get_other() -> AsyncIterator[str]:
        log.append("other up")
        yield "other"

    def get_third() -> str:
        return "third"

    container = LifespanContainer(
        Depends(get_other, scope="lifespan", refresh_every=3600), get_third, handlers=[handle]
    )
    for _ in range(2):  # with fresh values
        log.clear()
        async with container as view:
            assert container[get_other] == view[get_other] == "other"
            assert view.get(get_third) == "third"
            assert get_engine in container
        assert log == ["other up", "engine up", "engine down"]


async def test_a_container_does_not_run_twice_at_once() -> None:
    container = LifespanContainer()
    async with container:
        with pytest.raises(LifespanNotRunning, match="runs already"):
            async with container:
                raise AssertionError
        assert container.get(get_engine) is None


async def test_only_what_functions_need_is_started() -> None:
    async def status() -> str:
        return "fine"

    container = LifespanContainer(get_name, handlers=[handle, status])
    async with container.running(only=[status]) as view:
        assert await view.call(status) == "fine"
        assert get_engine not in view
        assert get_name not in view
    assert log == []


async def test_a_failed_start_is_raised_as_it_is_and_leaves_nothing() -> None:
    async def fail(engine: EngineDep) -> None:
        raise Wrong("at the start")

    container = LifespanContainer(fail)
    for _ in range(2):
        log.clear()
        with pytest.raises(Wrong, match="at the start"):
            async with container:
                raise AssertionError
        assert log == ["engine up", "engine down"]


async def test_what_goes_wrong_in_the_block_is_raised_after_the_stop() -> None:
    container = LifespanContainer(get_engine)
    with pytest.raises(Wrong):
        async with container:
            raise Wrong
    assert log == ["engine up", "engine down"]


async def test_events_and_a_concurrent_start_as_of_an_application() -> None:
    kinds = []
    container = LifespanContainer(
        get_engine,
        lifespan_start="concurrent",
        on_lifespan_event=lambda event: kinds.append(event.kind),
    )
    async with container:
        pass
    assert kinds == ["starting", "started", "up", "stopping", "stopped", "down"]
    wrong: Any = "slowly"
    with pytest.raises(ValueError, match="lifespan_start='slowly'"):
        LifespanContainer(lifespan_start=wrong)


async def test_bad_providers_are_refused() -> None:
    bad: Any = 3
    with pytest.raises(InvalidLifespanDependency):
        LifespanContainer(bad)


async def get_title(app: FastAPI) -> str:
    return app.title


async def test_without_an_application_nothing_can_take_it() -> None:
    with pytest.raises(
        DependencyScopeError, match="is started outside of an application"
    ) as caught:
        async with LifespanContainer(get_title):
            raise AssertionError
    assert "for_app" in str(caught.value)


async def test_for_app_starts_what_its_routes_declare_without_serving() -> None:
    app = LifespanFastAPI(title="A title")
    app.router.on_startup.append(lambda: log.append("hook"))

    @app.get("/")
    async def read(
        engine: EngineDep, title: Annotated[str, Depends(get_title, scope="lifespan")]
    ) -> str:
        return engine.name + title

    async def report(engine: EngineDep) -> str:
        return engine.name

    container = LifespanContainer.for_app(app, get_name, handlers=[report])
    async with container as view:
        assert view[get_title] == "A title"
        assert view[get_name] == "name"
        assert await view.call(report) == "engine"
    assert log == ["engine up", "engine down"]

    app.dependency_overrides[get_engine] = lambda: Engine("fake")
    async with container as view:
        assert await view.call(report) == "fake"
    app.dependency_overrides.clear()

    async with LifespanContainer.for_app(app, get_title, routes=False) as view:
        assert view[get_title] == "A title"
        assert get_engine not in view
    with TestClient(app) as client:
        assert client.get("/").json() == "engineA title"


async def test_calls_of_an_application_end_before_its_values_stop() -> None:
    async def use(engine: EngineDep, session: SessionDep) -> str:
        return session

    app = LifespanFastAPI(dependencies=[Depends(get_engine, scope="lifespan")])
    async with app.router.lifespan_context(app):
        container = app.lifespan_container
        assert await container.call(use) == "session of engine"
    with pytest.raises(LifespanNotRunning):
        await container.call(use)


@pytest.mark.parametrize("make", [LifespanFastAPI, FastAPI])
async def test_what_handlers_of_an_application_declare_is_started(make: Any) -> None:
    seen = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        seen.append(await lifespan_container(app).call(handle, "at the start"))
        app.get("/late")(lambda: None)
        yield

    if make is FastAPI:
        app = enable_lifespan_scope(FastAPI(lifespan=lifespan), handlers=[handle])
        enable_lifespan_scope(app)
    else:
        app = LifespanFastAPI(lifespan=lifespan, handlers=[handle])
        app.router = APIRouter(lifespan=lifespan)  # it keeps them
    async with app.router.lifespan_context(app):
        seen.append(await lifespan_container(app).call(handle, "later"))
    assert seen == [f"{when} unit of session of engine" for when in ("at the start", "later")]
    assert log.count("engine up") == 1

    async def wrong(page: Annotated[None, Stock(get_page)]) -> None: ...

    with pytest.raises(DependencyScopeError):
        LifespanFastAPI(handlers=[wrong])


class Slotted:
    """A callable that nothing can be known of weakly."""

    __slots__ = ()

    def __call__(self, engine: EngineDep) -> str:
        return engine.name


async def test_any_callable_is_called() -> None:
    slotted = Slotted()
    async with LifespanContainer(handlers=[slotted]) as view:
        assert [await view.call(slotted) for _ in range(2)] == ["engine", "engine"]
        part = functools.partial(handle_sync, "a")
        assert await view.call(part) == "a unit of session of engine"


async def test_a_default_of_a_dependency_counts() -> None:
    def get_limit(limit: int = 3, engine: Any = None) -> int:
        return limit

    async def function(limit_of: Annotated[int, Stock(get_limit)], limit: int = 5) -> int:
        return limit_of

    async def function_of_none(limit_of: Annotated[int, Stock(get_limit)]) -> int:
        return limit_of

    async with LifespanContainer() as view:
        assert await view.call(function) == 5
        assert await view.call(function_of_none) == 3


async def test_a_stream_that_is_over_gives_nothing() -> None:
    async def fail() -> None:
        raise Wrong

    async def function(nothing: Annotated[None, Stock(fail)]) -> AsyncIterator[int]:
        yield 1

    async with LifespanContainer(handlers=[function]) as view:
        with pytest.raises(Wrong):
            async with Stream(view._standing, function, (), {}) as items:
                await settle()
                assert [one async for one in items] == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_another_event_loop_nothing_is_called() -> None:
    async with LifespanContainer(handlers=[handle]) as view:

        def elsewhere() -> None:
            with pytest.raises(LifespanNotRunning, match="another event loop"):
                asyncio.run(view.call(handle, "a"))

        await anyio.to_thread.run_sync(elsewhere)


variable: ContextVar[str] = ContextVar("variable", default="")


async def test_a_synchronous_dependency_keeps_its_context_from_end_to_end() -> None:
    def set_variable() -> Iterator[None]:
        token = variable.set("set")
        yield
        assert variable.get() == "set"
        variable.reset(token)
        log.append("reset")

    async def function(nothing: Annotated[None, Stock(set_variable)]) -> str:
        return variable.get()

    async with LifespanContainer() as view:
        assert await view.call(function) == ""
    assert log == ["reset"]


# Arguments


async def test_positional_arguments_are_those_of_the_visible_signature() -> None:
    container = LifespanContainer()

    @container.inject
    async def first(engine: EngineDep, text: str, number: int = 2) -> str:
        return f"{engine.name} {text} {number}"

    @container.inject
    async def between(text: str, engine: EngineDep, number: int = 2, *rest: int) -> str:
        return f"{engine.name} {text} {number} {rest}"

    @container.inject
    async def by_position(text: str, engine: EngineDep, /, number: int = 2, **more: int) -> str:
        return f"{engine.name} {text} {number} {more}"

    @container.inject
    async def last(text: str, engine: EngineDep, session: SessionDep) -> str:
        return f"{text} {engine.name} {session}"

    async with container:
        assert await first("a") == "engine a 2"
        assert await first("a", 3) == "engine a 3"
        assert await first(text="a", engine=Engine("mine")) == "mine a 2"
        assert await between("a", 3, 4, 5) == "engine a 3 (4, 5)"
        assert await by_position("a", 3, four=4) == "engine a 3 {'four': 4}"
        assert await last("a") == "a engine session of engine"
        for call in (first, between):
            with pytest.raises(TypeError, match="text"):
                await call()
        with pytest.raises(TypeError):
            await first("a", 1, 2)


async def test_what_nobody_has_any_more_is_not_declared_any_more() -> None:
    container = LifespanContainer()

    def make() -> None:
        @container.inject
        async def function(engine: EngineDep) -> None: ...

    for _ in range(3):
        make()
    gc.collect()
    async with container:
        assert log == []
    container.inject(get_name)
    assert len(container._functions) == 1


async def test_for_app_checks_under_the_overrides_of_the_application() -> None:
    async def report(user: Annotated[None, Stock(get_user)]) -> str:
        return "reported"

    app = LifespanFastAPI()
    with pytest.raises(DependencyScopeError):
        LifespanContainer.for_app(app, handlers=[report])
    app.dependency_overrides[get_user] = lambda: None
    async with LifespanContainer.for_app(
        app, handlers=[report], lifespan_start="concurrent", on_lifespan_event=lambda event: None
    ) as view:
        assert await view.call(report) == "reported"


async def test_a_package_finds_the_container_of_a_request() -> None:
    @inject
    async def helper(engine: EngineDep) -> str:
        return engine.name

    app = LifespanFastAPI()

    @app.get("/")
    async def read(engine: EngineDep) -> list[Any]:
        return [current_container()[get_engine] is engine, await helper()]

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/")).json() == [True, "engine"]


# Cancellation, and what a dependency cancels itself


async def limited() -> AsyncIterator[None]:
    with anyio.fail_after(0.01):
        yield


async def cut_off() -> AsyncIterator[None]:
    with anyio.move_on_after(0.01):
        yield


async def failing_child() -> AsyncIterator[None]:
    async def fail() -> None:
        raise Wrong("child")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        yield


@pytest.mark.parametrize(
    ("provider", "expected"),
    [(limited, TimeoutError), (cut_off, RuntimeError), (failing_child, ExceptionGroup)],
)
async def test_what_a_dependency_cancels_is_told_by_its_error(
    provider: Any, expected: type[Exception]
) -> None:
    async def wait(session: SessionDep, limit: Annotated[None, Stock(provider)]) -> None:
        await anyio.sleep_forever()

    async with LifespanContainer(handlers=[wait]) as view:
        with pytest.raises(expected) as caught:
            await view.call(wait)
    if expected is RuntimeError:
        assert "was cancelled by one of its dependencies" in str(caught.value)
    assert "close session" in log


@pytest.mark.parametrize("whose", ["stream", "enter"])
async def test_a_stream_that_is_still_entering_is_cancelled(whose: str) -> None:
    async def never_there(session: SessionDep) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    container = LifespanContainer()

    @container.inject
    async def stream(nothing: Annotated[None, Stock(never_there)]) -> AsyncIterator[int]:
        yield 1

    async with container as view:
        with anyio.move_on_after(0.01) as scope:
            if whose == "stream":
                async for _ in stream():
                    raise AssertionError
            async with view.enter(never_there):
                raise AssertionError
        assert scope.cancelled_caught
    assert log[-2:] == ["close session", "engine down"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_cannot_cut_a_thread_of_a_call_off() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def work(session: SessionDep, engine: EngineDep) -> None:
        entered.set()
        assert go_on.wait(20)
        assert engine.is_alive
        log.append("worked")

    async with LifespanContainer(handlers=[work]) as view:
        task = asyncio.create_task(view.call(work))
        await anyio.to_thread.run_sync(entered.wait, 20)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert log[2:] == ["worked", "session sees CancelledError", "close session", "engine down"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_cannot_stop_values_under_a_call() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(engine: EngineDep) -> None:
        begun.set()
        await go_on.wait()
        assert engine.is_alive
        log.append("slow is over")

    calls: list[asyncio.Task[None]] = []

    async def run() -> None:
        async with LifespanContainer(handlers=[slow]) as view:
            calls.append(asyncio.create_task(view.call(slow)))
            await begun.wait()

    running = asyncio.create_task(run())
    await begun.wait()
    await settle()
    running.cancel()
    await settle()
    go_on.set()
    with pytest.raises((asyncio.CancelledError, LifespanNotRunning)):
        await calls[0]
        raise LifespanNotRunning("it may end", "as well")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert log[-1] == "engine down"


async def test_whoever_holds_a_value_cannot_wait_for_its_end() -> None:
    async def refresh() -> None:
        await current_container().refresh(get_engine, policy="resource_preserving")

    async def outer(engine: EngineDep) -> None:
        await current_container().call(refresh)

    async with LifespanContainer(handlers=[outer]) as view:
        with pytest.raises(RefreshError, match="would wait for its own end"):
            await view.call(outer)
        with pytest.raises(RefreshError, match="would wait for its own end"):
            async with view.enter(get_session):
                await view.refresh(get_engine, policy="resource_preserving")


async def test_a_dependency_that_outlives_another_cannot_take_it() -> None:
    def get_short() -> Iterator[None]:
        yield

    def get_long(short: Annotated[None, Stock(get_short, scope="function")]) -> Iterator[None]:
        yield

    async def function(value: Annotated[None, Stock(get_long)]) -> None: ...

    with pytest.raises(DependencyScopeError, match="which is left before it"):
        LifespanContainer(handlers=[function])


async def test_an_explicit_argument_may_be_taken_by_dependencies_too() -> None:
    def get_copy(session: str = "default") -> str:
        return f"copy of {session}"

    async def function(session: SessionDep, copy: Annotated[str, Stock(get_copy)]) -> str:
        return f"{session}, {copy}"

    async with LifespanContainer(handlers=[function]) as view:
        assert await view.call(function, session="mine") == "mine, copy of mine"
        assert await view.call(function) == "session of engine, copy of default"


async def test_a_method_is_another_function_when_it_is_bound() -> None:
    def get_owner(self: Any) -> str:
        return f"owner {self.name}"

    class Service:
        name = "service"

        async def greet(self, owner: Annotated[str, Stock(get_owner)]) -> str:
            return owner

    async with LifespanContainer() as view:
        assert await view.call(Service.greet, Service()) == "owner service"
        with pytest.raises(DependencyScopeError):
            await view.call(Service().greet)


async def test_what_waits_for_a_thread_can_be_cancelled() -> None:
    limiter = anyio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("another")
    with anyio.move_on_after(0.01) as scope:
        await in_thread(log.append, "called", limiter=limiter)
    assert scope.cancelled_caught
    assert log == []


@pytest.mark.parametrize("is_application", [False, True])
async def test_a_request_of_another_application_pins_nothing(is_application: bool) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(engine: EngineDep) -> None:
        begun.set()
        await go_on.wait()

    async def fast(engine: EngineDep) -> Engine:
        return engine

    container = LifespanContainer(handlers=[slow, fast])
    other = LifespanFastAPI(handlers=[slow, fast])
    app = LifespanFastAPI(dependencies=[Depends(get_name, scope="lifespan")])

    @app.get("/")
    async def read() -> bool:
        view = other.lifespan_container if is_application else container
        before = await view.call(fast)
        await view.refresh(get_engine)
        return await view.call(fast) is not before

    async with (
        container,
        other.router.lifespan_context(other),
        app.router.lifespan_context(app),
        client_of(app) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon((other.lifespan_container if is_application else container).call, slow)
        await begun.wait()
        assert (await client.get("/")).json() is True
        go_on.set()


async def test_a_call_in_a_thread_is_not_pinned_to_what_is_not_current() -> None:
    async with LifespanContainer(handlers=[handle]) as view:
        former = view._standing.run.current
        await view.refresh(get_engine)
        assert former.take(Pin()) is False
        assert former.pins == {}


async def test_who_takes_the_items_of_a_stream_cannot_wait_for_its_end() -> None:
    @inject
    async def numbers(engine: EngineDep) -> AsyncIterator[int]:
        yield 1
        assert engine.is_alive

    async with LifespanContainer(handlers=[numbers]) as running:
        draining = None
        async for _ in numbers():
            with pytest.raises(RefreshError, match="would wait for its own end"):
                await running.refresh(get_engine, policy="resource_preserving")
            draining = await running.refresh(get_engine)
            with pytest.raises(RefreshError, match="uses the old value itself"):
                await draining.wait()
        assert draining is not None
        await draining.wait()
        await running.refresh(get_engine, policy="resource_preserving")


async def test_what_is_entered_in_a_request_is_pinned_as_the_request_is() -> None:
    async def read_engine(engine: EngineDep) -> Engine:
        return engine

    app = LifespanFastAPI(handlers=[read_engine])

    @app.get("/")
    async def read(engine: EngineDep) -> bool:
        await app.lifespan_container.refresh(get_engine)  # it has asked, and others see the new one
        async with app.lifespan_container.enter(read_engine) as entered:
            return entered is engine

    @app.get("/other")
    async def read_other(engine: EngineDep) -> bool:
        async def refresh() -> None:
            await app.lifespan_container.refresh(get_engine)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh)
        async with app.lifespan_container.enter(read_engine) as entered:
            return entered is engine

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/")).json() is False
        assert (await client.get("/other")).json() is True


async def hidden(session: "Annotated[Missing, Depends(get_session)]") -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def in_between(hidden: Annotated[None, Stock(hidden)]) -> None: ...


@pytest.mark.parametrize("function", [hidden, in_between])
async def test_a_declaration_that_cannot_be_read_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(LifespanDependencyError) as caught:
        LifespanContainer().inject(function)
    text = str(caught.value)
    assert f"`hidden` (tests{os.sep}test_calls.py:" in text
    assert "declares `session: Annotated[Missing, Depends(get_session)]`" in text
    with pytest.raises(LifespanDependencyError, match="not all of these names exist"):
        LifespanContainer(handlers=[function])


async def test_annotations_are_resolved_where_the_function_is() -> None:
    container = LifespanContainer()
    injected = container.inject(postponed_calls.handle)
    message = postponed_calls.Message
    assert get_type_hints(injected) == {"message": message, "return": message}
    assert str(inspect.signature(injected)).startswith("(message: tests.postponed_calls.Message)")
    counting = container.inject(postponed_calls.count)
    assert counting.__annotations__ == {"message": message, "return": "Decimal"}


async def test_what_another_library_makes_of_an_injected_function_declares_the_same() -> None:
    class Task:
        """As those of Celery are."""

        def __init__(self, function: Callable[..., Any]) -> None:
            self.__wrapped__ = function

        def __call__(self, *args: Any) -> Any:
            return self.__wrapped__(*args)

    container = LifespanContainer()
    recorded: list[bool] = []

    @Task
    @container.inject
    def task(engine: EngineDep) -> None:
        recorded.append(engine.is_alive)

    async with container.running(only=[task]) as running:
        await running.call(task)
    await anyio.to_thread.run_sync(container.run, task)
    async with LifespanContainer(handlers=[task]) as running:
        assert running[get_engine].is_alive
    assert recorded == [True, True]


async def test_options_hold_that_are_declared_by_what_is_not_started() -> None:
    began: list[str] = []

    async def get_slow() -> AsyncIterator[None]:
        began.append("slow")
        await anyio.sleep_forever()
        yield

    app = LifespanFastAPI()

    @app.get("/")
    async def read(
        slow: Annotated[None, Depends(get_slow, scope="lifespan", start_timeout=0.001)],
        engine: EngineDep,
    ) -> None: ...

    async def work(slow: Annotated[None, Depends(get_slow, scope="lifespan")]) -> None: ...

    containers = [
        LifespanContainer.for_app(app, get_slow, routes=False).running(),
        LifespanContainer.for_app(app).running(only=[work]),
        LifespanContainer(
            Depends(get_slow, scope="lifespan", start_timeout=0.001), get_engine
        ).running(only=[work]),
    ]
    for container in containers:
        with pytest.raises(LifespanTimeout):
            async with container:
                raise AssertionError
    assert began == ["slow"] * 3
    assert log == []  # nothing else was started


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    reason: str


async def test_a_frozen_exception_gets_through() -> None:
    container = LifespanContainer(get_engine)
    with pytest.raises(Frozen):
        async with container:
            raise Frozen("in the block")
    async with container as view:
        with pytest.raises(Frozen):
            async with view.enter(get_session):
                raise Frozen("in the session")
    assert log.count("session sees Frozen") == 1
    assert log.count("engine up") == log.count("engine down") == 2


def test_a_frozen_exception_gets_through_synchronous_code() -> None:
    container = LifespanContainer(get_engine)
    with pytest.raises(Frozen), container.sync():
        raise Frozen("in synchronous code")
    with container.sync() as running, pytest.raises(Frozen), running.enter(get_session):
        raise Frozen("in the session of synchronous code")
    assert log.count("engine up") == log.count("engine down") == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda handlers: LifespanContainer(handlers=handlers),
        lambda handlers: LifespanFastAPI(handlers=handlers),
        lambda handlers: LifespanContainer.for_app(FastAPI(), handlers=handlers),
        lambda handlers: enable_lifespan_scope(FastAPI(), handlers=handlers),
    ],
)
async def test_wrong_handlers_are_refused(make: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="handlers=handle: give a list of functions"):
        make(handle)
    for wrong in ("handle", 42):
        with pytest.raises(TypeError, match=f"handlers={wrong!r}: give a list of functions"):
            make(wrong)
    with pytest.raises(TypeError, match="42 cannot be called, and so nothing can be injected"):
        make([handle, 42])


async def test_what_is_no_function_cannot_be_run() -> None:
    container = LifespanContainer()
    wrong: Any = 42
    with pytest.raises(TypeError, match="42 cannot be called"):
        container.run(wrong)
    with pytest.raises(LifespanDependencyError, match="`42` is not a function or a method"):
        container.command(wrong)
    with pytest.raises(TypeError, match="42 cannot be called"):
        async with container.running(only=[wrong]):
            raise AssertionError
    with pytest.raises(InvalidLifespanDependency, match="names no provider"):
        LifespanContainer(None)


async def test_what_a_container_did_not_know_is_told_by_its_function() -> None:
    first, second = LifespanContainer(), LifespanContainer()

    @first.inject
    async def read(engine: EngineDep) -> None: ...

    def read_in_thread(engine: EngineDep) -> None: ...

    async with second as running:
        for function in (read_in_thread, original_of(read)):
            with pytest.raises(UninitializedLifespanDependency) as caught:
                await running.call(function)
            text = str(caught.value)
            assert "`get_engine`" in text
            assert f"{function.__name__}` (tests{os.sep}test_calls.py:" in text
            assert "was not known to the container that calls it when that started" in text
            assert "Name it in its `handlers=[...]`" in text


async def test_what_a_container_cannot_start_is_refused() -> None:
    for wrong in (Depends(get_engine), Stock(get_engine), Depends(get_engine, scope="request")):
        with pytest.raises(InvalidLifespanDependency, match="is not for a container"):
            LifespanContainer(wrong)


async def test_a_command_is_made_of_a_function() -> None:
    with pytest.raises(LifespanDependencyError, match="is not a function or a method"):
        LifespanContainer().command(functools.partial(handle, "a"))


async def test_asyncio_cannot_keep_a_dependency_in_a_thread_from_being_left(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("in trio, only who owns a scope can cancel")

    def get_unit() -> Iterator[None]:
        yield
        log.append("left")

    async def function(unit: Annotated[None, Stock(get_unit)]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # it comes when the dependency is about to be left

    async with LifespanContainer(handlers=[function]) as running:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(running.call(function))
    assert log == ["left"]


async def test_a_method_has_one_place_for_each_parameter_whatever_it_is_bound_to() -> None:
    made: list[Engine] = []

    def get_own() -> Engine:
        made.append(Engine())
        return made[-1]

    class Service:
        @inject
        async def read(
            self, own: Annotated[Engine, Depends(get_own, scope="lifespan", use_cache=False)]
        ) -> Engine:
            return own

    async with LifespanContainer(handlers=[Service.read]) as running:
        assert await Service().read() is await Service().read()
        assert await running.call(Service().read) in made
    assert len(made) == 1


async def test_an_explicit_argument_may_stand_before_one_by_position() -> None:
    container = LifespanContainer()

    @container.inject
    async def function(engine: EngineDep, number: int, word: str = "word") -> str:
        return f"{engine.name} {number} {word}"

    async with container:
        assert await function(1) == "engine 1 word"
        assert await function(1, "other") == "engine 1 other"
        assert await function(1, engine=Engine("mine")) == "mine 1 word"
        assert await function(1, "other", engine=Engine("mine")) == "mine 1 other"


async def test_a_block_that_is_cancelled_cancels_what_it_has_entered() -> None:
    async def get_unit() -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            log.append(type(error).__name__)
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("left")

    async with LifespanContainer() as running:
        with anyio.CancelScope() as scope:
            async with running.enter(get_unit):
                scope.cancel()
                await anyio.sleep_forever()
    assert log == [anyio.get_cancelled_exc_class().__name__, "left"]
