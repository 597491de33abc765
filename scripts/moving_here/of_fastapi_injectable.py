"""What the page on fastapi-injectable says of that library.

Its plugin for pytest empties its caches around each test.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext, suppress
from typing import Annotated

import fastapi
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, Request
from fastapi_injectable import (
    DependencyCleanupError,
    cleanup_exit_stack_of_func,
    get_injected_obj,
    injectable,
    injectable_scope,
    main,
    register_app,
    setup_graceful_shutdown,
)
from packaging.version import Version

from docs_src.database import Pool
from docs_src.moving.fastapi_injectable import before

ONE = ["open the pool", "begin", "commit", "close the pool"]

# From 0.162.7 on, FastAPI doesn't let its exit stacks be closed in a task of their own.
CAN_CLEAN_UP = Version(fastapi.__version__) < Version("0.162.7")
in_another_task = (
    nullcontext()
    if CAN_CLEAN_UP
    else pytest.raises(DependencyCleanupError, match="in a different task")
)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    before.log.clear()
    yield before.log
    main._app = None


async def get_broken() -> AsyncIterator[int]:
    yield 1
    raise ValueError("the commit failed")


@injectable
async def takes_broken(value: Annotated[int, Depends(get_broken)]) -> None: ...


@injectable
async def fails(transaction: before.TransactionDep) -> None:
    raise KeyError("wrong")


def test_each_message_has_a_pool_of_its_own(log: list[str]) -> None:
    users = asyncio.run(before.work([1, 2]))
    assert users == [f"user {number} of postgresql://localhost/shop" for number in (1, 2)]
    assert log == [*ONE, *ONE]


def test_command(log: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with in_another_task:
        before.show_url()
    assert capsys.readouterr().out == "postgresql://localhost/shop\n"
    assert log == ONE


def test_without_a_scope_all_calls_share_everything_and_nothing_is_left(log: list[str]) -> None:
    async def work() -> None:
        await before.handle(1)
        await before.handle(2)
        assert log == ["open the pool", "begin"]

    asyncio.run(work())


def test_without_the_cache_all_calls_have_everything_and_nothing_is_left(log: list[str]) -> None:
    @injectable(use_cache=False)
    async def handle(transaction: before.TransactionDep) -> None: ...

    async def work() -> None:
        await handle()
        await handle()
        assert log == ["open the pool", "begin"] * 2

    asyncio.run(work())


@pytest.mark.skipif(not CAN_CLEAN_UP, reason="the end of a call fails before")
def test_without_a_scope_the_end_of_one_call_leaves_what_another_uses() -> None:
    async def work() -> bool:
        entered, cleaned_up = asyncio.Event(), asyncio.Event()

        async def get_pool() -> AsyncIterator[Pool]:
            pool = Pool("url")
            yield pool
            await pool.close()

        @injectable(use_cache=False)
        async def handle(waits: bool, pool: Annotated[Pool, Depends(get_pool)]) -> bool:
            if waits:
                entered.set()
                await cleaned_up.wait()
            return pool.is_open

        first = asyncio.create_task(handle(True))
        await entered.wait()
        assert await handle(False)
        await cleanup_exit_stack_of_func(handle, raise_exception=True)
        cleaned_up.set()
        return await first

    assert asyncio.run(work()) is False


def test_a_failure_of_the_clean_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await takes_broken()
        await cleanup_exit_stack_of_func(takes_broken)

    asyncio.run(work())
    assert "Failed to cleanup" in caplog.text


def test_a_failure_of_the_clean_up_is_raised_by_a_scope() -> None:
    async def work() -> None:
        async with injectable_scope():
            await takes_broken()

    with pytest.raises(ValueError, match="the commit failed"):
        asyncio.run(work())


def test_an_error_reaches_dependencies_in_a_scope(log: list[str]) -> None:
    async def work() -> None:
        async with injectable_scope():
            await fails()

    with pytest.raises(KeyError):
        asyncio.run(work())
    assert log == ["open the pool", "begin", "roll back", "close the pool"]


def test_an_error_is_committed_without_a_scope_unless_it_is_handed_on(log: list[str]) -> None:
    async def work() -> None:
        try:
            await fails()
        finally:
            await cleanup_exit_stack_of_func(fails)

    with pytest.raises(KeyError):
        asyncio.run(work())
    assert log == ONE


def test_an_error_that_a_dependency_swallows_is_lost() -> None:
    async def get_swallowing() -> AsyncIterator[int]:
        with suppress(KeyError):
            yield 1

    @injectable
    async def handle(value: Annotated[int, Depends(get_swallowing)]) -> None:
        raise KeyError

    async def work() -> None:
        async with injectable_scope():
            await handle()

    asyncio.run(work())


def test_overrides_need_an_application_and_reach_any_depth(log: list[str]) -> None:
    async def work() -> str:
        app = FastAPI()
        app.dependency_overrides[before.get_pool] = lambda: Pool("fake")
        await register_app(app)
        return (await before.work([1]))[0]

    assert asyncio.run(work()) == "user 1 of fake"
    assert log == ["begin", "commit"]


def test_an_argument_replaces_a_dependency_by_keyword() -> None:
    assert asyncio.run(before.handle(1, transaction=Pool("fake"))) == "user 1 of fake"


def test_a_parameter_of_a_request_has_its_default_or_is_missing() -> None:
    def get_tenant(tenant: Annotated[str, Header()] = "none") -> str:
        return tenant

    def get_name(name: Annotated[str, Header()]) -> str:
        return name

    def get_path(request: Request) -> str:
        return request.url.path

    def get_tasks(tasks: BackgroundTasks) -> str:
        tasks.add_task(print, "never")
        return "added"

    assert get_injected_obj(get_tenant) == "none"
    assert get_injected_obj(get_tasks) == "added"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        get_injected_obj(get_name)
    with pytest.raises(KeyError, match="path"):
        get_injected_obj(get_path)


def test_get_injected_obj_is_refused_in_an_event_loop() -> None:
    async def work() -> None:
        get_injected_obj(before.get_pool)

    with pytest.raises(RuntimeError, match="an event loop is already running"):
        asyncio.run(work())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_graceful_shutdown_fails_in_an_event_loop(log: list[str]) -> None:
    async def work() -> None:
        await before.handle(1)
        setup_graceful_shutdown(signals=[signal.SIGTERM])
        signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="an event loop is already running"):
            asyncio.run(work())
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert not {"commit", "roll back"} & set(log)  # the event loop closes the generators at its end
