"""Hundreds of refreshes under calls of all kinds: none sees a dead value, and nothing is left."""

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import Depends as FastAPIDepends

from fastapi_lifespan_deps import Depends, LifespanContainer, UnavailableLifespanDependency
from fastapi_lifespan_deps.live.refresh import Policy
from fastapi_lifespan_deps.live.run import Run
from tests.clients import progressing

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CALLERS, THREADS = 16, 8


class Engine:
    def __init__(self) -> None:
        self.is_alive = True


alive: weakref.WeakSet[Engine] = weakref.WeakSet()


async def get_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    alive.add(engine)
    yield engine
    engine.is_alive = False
    alive.discard(engine)


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]


async def get_session(engine: EngineDep) -> AsyncIterator[Engine]:
    assert engine.is_alive
    yield engine
    await anyio.lowlevel.checkpoint()
    assert engine.is_alive


def get_unit(engine: EngineDep) -> Iterator[Engine]:
    yield engine
    assert engine.is_alive


container = LifespanContainer()
handled = dict.fromkeys(("call", "thread", "stream"), 0)


@container.inject
async def handle(
    engine: EngineDep, session: Annotated[Engine, FastAPIDepends(get_session)]
) -> None:
    await anyio.lowlevel.checkpoint()
    assert engine is session
    assert engine.is_alive


@container.inject
def handle_in_thread(
    engine: EngineDep,
    session: Annotated[Engine, FastAPIDepends(get_session)],
    unit: Annotated[Engine, FastAPIDepends(get_unit)],
) -> None:
    assert engine is session is unit
    assert engine.is_alive


@container.inject
async def stream(session: Annotated[Engine, FastAPIDepends(get_session)]) -> AsyncIterator[bool]:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
        yield session.is_alive


async def test_refreshes_under_calls_threads_and_streams(is_thorough: bool) -> None:
    is_over = threading.Event()
    runs: list[Run] = []

    async def call() -> None:
        while not is_over.is_set():
            try:
                await handle()
            except UnavailableLifespanDependency:
                await anyio.lowlevel.checkpoint()
            else:
                handled["call"] += 1

    def call_in_thread() -> None:
        while not is_over.is_set():
            try:
                handle_in_thread()
            except UnavailableLifespanDependency:
                is_over.wait(0.001)
            else:
                handled["thread"] += 1

    async def take() -> None:
        while not is_over.is_set():
            try:
                assert [item async for item in stream()] == [True] * 5
            except UnavailableLifespanDependency:
                await anyio.lowlevel.checkpoint()
            else:
                handled["stream"] += 1

    async def refresh(go_on: Callable[[], None]) -> None:
        for number in range(200 if is_thorough else 40):
            before = dict(handled)
            policy: Policy = "availability_preserving"
            if number % 10 == 9:
                policy = "resource_preserving"
            draining = await container.refresh(get_engine, policy=policy)
            await draining.wait()
            while any(handled[kind] == count for kind, count in before.items()):
                await anyio.lowlevel.checkpoint()  # each kind of call goes on
            go_on()

    with ThreadPoolExecutor(THREADS) as threads:
        async with container as view, anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(call)
            tasks.start_soon(take)
            others = [threads.submit(call_in_thread) for _ in range(THREADS)]
            try:
                with progressing() as go_on:
                    await refresh(go_on)
            finally:
                is_over.set()
            for other in others:
                await anyio.to_thread.run_sync(other.result)
            await anyio.wait_all_tasks_blocked()
            assert len(alive) == 1
            runs.append(view._standing.run)
    assert not runs[0].calls._running
    assert not runs[0].current.pins
    assert not alive
