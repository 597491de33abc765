"""One line of the log for all starts, and one for all stops."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanEvent, LifespanFastAPI
from fastapi_lifespan_deps.see.summary import Summary
from tests.clients import running

pytestmark = pytest.mark.anyio


async def get_settings() -> AsyncIterator[None]:
    yield


async def get_pool(
    settings: Annotated[None, Depends(get_settings, scope="lifespan")],
) -> AsyncIterator[None]:
    yield


async def get_model(
    pool: Annotated[None, Depends(get_pool, scope="lifespan")],
) -> AsyncIterator[None]:
    yield


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "fastapi_lifespan_deps")

    def texts() -> list[str]:
        records = [one for one in caplog.records if one.levelno == logging.INFO]
        return [re.sub(r"\d+\.\d\d", "_", one.getMessage()) for one in records]

    return texts


async def test_what_starts_one_after_the_other_is_summed_up(info: Callable[[], list[str]]) -> None:
    app = LifespanFastAPI()
    app.get("/", dependencies=[Depends(get_model, scope="lifespan")])(lambda: None)
    async with running(app):
        [started] = info()
        head, _, rest = started.partition(": ")
        assert head == "Started 3 lifespan dependencies in _ s"
        assert {one for one in rest.split(", ") if "others" not in one} <= {
            "`get_settings` _ s",
            "`get_pool` _ s",
            "`get_model` _ s",
        }
        draining = await app.lifespan_container.refresh(get_pool)
        await draining.wait()  # what stops while it serves doesn't count
    assert info()[-1] == "Stopped 3 lifespan dependencies in _ s"


def test_what_stops_with_its_event_loop_is_counted_from_the_first(
    info: Callable[[], list[str]],
) -> None:
    app = LifespanFastAPI(dependencies=[Depends(get_model, scope="lifespan")])

    async def serve(is_up: asyncio.Event) -> None:
        async with app.router.lifespan_context(app):
            is_up.set()
            await asyncio.Event().wait()

    async def main() -> None:
        is_up = asyncio.Event()
        server = asyncio.create_task(serve(is_up))
        await is_up.wait()
        assert not server.done()  # and now it is cancelled, with all other tasks

    asyncio.run(main())
    assert info()[-1] == "Stopped 3 lifespan dependencies in _ s"


async def test_of_what_starts_at_once_the_longest_chain_is_named(
    info: Callable[[], list[str]],
) -> None:
    async with LifespanContainer(get_model, get_settings, lifespan_start="concurrent"):
        pass
    assert info() == [
        "Started 3 lifespan dependencies in _ s, the longest chain: `get_settings` _ s, "
        "`get_pool` _ s, `get_model` _ s",
        "Stopped 3 lifespan dependencies in _ s",
    ]


async def test_one_is_a_dependency(info: Callable[[], list[str]]) -> None:
    async with LifespanContainer(get_settings):
        pass
    assert info() == [
        "Started 1 lifespan dependency in _ s: `get_settings` _ s",
        "Stopped 1 lifespan dependency in _ s",
    ]


async def test_where_there_is_nothing_nothing_is_said(info: Callable[[], list[str]]) -> None:
    async with LifespanContainer():
        pass
    async with running(LifespanFastAPI()):
        pass
    assert info() == []


async def test_a_start_that_fails_is_not_summed_up(info: Callable[[], list[str]]) -> None:
    async def get_failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with LifespanContainer(get_settings, get_failing):
            raise AssertionError
    assert info() == []


# How it is worked out, by times that are given


@dataclass(eq=False)
class Started:
    provider: Callable[..., Any]
    start_seconds: float | None
    dependencies: list["Started"] = field(default_factory=list)


class Live:
    def __init__(self, instances: list[Started]) -> None:
        self.phase: Literal["starting", "serving", "stopping"] = "starting"
        self.instances = dict(enumerate(instances))


def summed_up(instances: list[Started], *, is_concurrent: bool = False) -> str:
    """What is said of these, which took as long as all of them."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("fastapi_lifespan_deps"), Handler()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        summary, now = Summary(Live(instances), is_concurrent=is_concurrent), 0
        for one in instances:
            summary(LifespanEvent(kind="starting", provider=one.provider, time_ns=now))
            now += int((one.start_seconds or 0) * 1e9)
            summary(LifespanEvent(kind="started", provider=one.provider, time_ns=now))
        summary(LifespanEvent(kind="up", time_ns=now))
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    [record] = records
    assert record.__dict__["lifespan_event"] == "up"
    return record.getMessage()


def named(name: str) -> Callable[[], None]:
    def provider() -> None: ...

    provider.__qualname__ = name
    return provider


def test_the_slowest_come_first_and_the_fast_ones_together() -> None:
    instances = [Started(named(f"get_{number}"), 0.04) for number in range(5)]
    instances[2:2] = [Started(named("get_pool"), 0.92), Started(named("get_model"), 3.1)]
    assert summed_up(instances) == (
        "Started 7 lifespan dependencies in 4.22 s: `get_model` 3.10 s, `get_pool` 0.92 s, "
        "5 others 0.20 s"
    )


def test_three_are_named_at_most() -> None:
    instances = [Started(named(f"get_{number}"), 1) for number in range(5)]
    assert summed_up(instances) == (
        "Started 5 lifespan dependencies in 5.00 s: `get_0` 1.00 s, `get_1` 1.00 s, "
        "`get_2` 1.00 s, 2 others 2.00 s"
    )


def test_a_single_one_that_is_left_is_named_as_well() -> None:
    instances = [Started(named("get_pool"), 2), Started(named("get_settings"), 0.01)]
    assert summed_up(instances) == (
        "Started 2 lifespan dependencies in 2.01 s: `get_pool` 2.00 s, `get_settings` 0.01 s"
    )


def test_the_longest_chain_goes_by_way_of_what_ended_last() -> None:
    slow, fast = Started(named("get_slow"), 3), Started(named("get_fast"), 0.5)
    gone = Started(named("get_gone"), 9)
    both = Started(named("get_both"), 1, [fast, slow, gone])
    alone = Started(named("get_alone"), 3.5)
    assert summed_up([slow, fast, both, alone], is_concurrent=True) == (
        "Started 4 lifespan dependencies in 8.00 s, the longest chain: `get_slow` 3.00 s, "
        "`get_both` 1.00 s"
    )
