"""What is called outside of requests, as type checkers see it. Nobody runs this file."""

import signal
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, assert_type

from fastapi_lifespan_deps import (
    DependencySet,
    Depends,
    LifespanContainer,
    View,
    WorkerSummary,
    current_container,
    dependency_sets,
    inject,
    run_worker,
)


def get_engine() -> str:
    return "engine"


EngineDep = Annotated[str, Depends(get_engine, scope="lifespan")]

container = LifespanContainer(get_engine, overrides={get_engine: get_engine})


@container.inject
def read(number: int, engine: EngineDep) -> bytes:
    return b""


@inject
async def read_async(number: int, engine: EngineDep) -> bytes:
    return b""


@container.command
async def show(number: int, engine: EngineDep) -> bytes:
    return b""


async def messages() -> AsyncIterator[int]:
    yield 1


async def use() -> None:
    assert_type(read(1), bytes)  # without what is injected
    assert_type(await read_async(1), bytes)
    assert_type(show(1), bytes)  # a command is synchronous
    assert_type(current_container(), View)
    assert_type(dependency_sets(), dict[str, DependencySet])
    assert_type(LifespanContainer.from_set("cpu"), LifespanContainer)
    async with container as view:
        assert_type(view, View)
        assert_type(view[get_engine], str)
        summary = await run_worker(
            read, messages(), container=view, on_done=print, signals=[signal.SIGTERM]
        )
        assert_type(summary, WorkerSummary)
        assert_type(summary.done, int)
        assert_type(summary.stopped_by, signal.Signals | Literal["its container"] | None)
        await run_worker(read, messages, container=container, signals=())
    async with container.running(only=[read]) as view:
        assert_type(view, View)


def use_sync(function: Callable[..., Any]) -> None:
    with container.sync() as running:
        assert_type(running[get_engine], str)
        with running.enter(get_engine) as value:
            assert_type(value, Any)
    container.run(function, 1)
