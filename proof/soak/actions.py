"""What is done to the application while it serves, in its own process."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread

from fastapi_lifespan_deps import (
    LifespanContainer,
    LifespanDependencyError,
    LifespanNotRunning,
    RefreshError,
    View,
    run_worker,
)
from fastapi_lifespan_deps.live.refresh import Policy

from . import application as here
from .application import app
from .values import Planned, faults

REFRESHED: dict[str, Callable[..., Any]] = {
    "engine": here.get_engine,
    "model": here.get_model,
    "service": here.get_service,
    "own": here.get_own,
    "settings": here.Settings,
    "clock": here.get_clock,
    "ledger": here.get_ledger,
    "gauge": here.get_gauge,
    "archive": here.get_archive,
    "journal": here.get_journal,
    "scarce": here.get_scarce,
}
# Those that no override stands for, nor for what they need: a refresh gives another value.
RENEWED = ("engine", "settings", "clock", "ledger", "archive", "journal")
FAKES: dict[str, Callable[..., Any]] = {"fake": here.fake_model, "other": here.other_model}
SOON = 0.02


async def view() -> View:
    """That of the run; there is none for a moment while the server is started again."""
    while True:
        try:
            return app.lifespan_container
        except LifespanNotRunning:
            await anyio.sleep(SOON)


async def value_of(provider: str) -> object:
    """What it is now; where there is none, something else each time."""
    try:
        found: object = (await view())[REFRESHED[provider]]
    except LifespanDependencyError:  # the run is about to end
        found = object()
    return found


async def refresh(
    provider: str, policy: Policy = "availability_preserving", fails: str = ""
) -> str:
    before = await value_of(provider) if provider in RENEWED else None
    if fails:
        faults.add(fails)
    try:
        draining = await (await view()).refresh(REFRESHED[provider], policy=policy)
    except Planned:
        return "failed"
    except RefreshError:  # the server is about to stop
        return "refused"
    finally:
        faults.discard(fails)
    if policy == "resource_preserving":
        await draining.wait()
    if before is not None and await value_of(provider) is before:
        raise RuntimeError(f"the {provider} was refreshed, and is what it was")
    return "done"


async def scarce(fails: bool = False) -> str:
    """Without room for two: while it goes on, requests are answered 503."""
    policy: Policy = "resource_preserving"
    first = await refresh("scarce", policy, "scarce") if fails else ""
    return f"{first} {await refresh('scarce', policy)}"


async def override(fake: str, anew: bool = False) -> str:
    overrides: dict[Callable[..., Any], Callable[..., Any]] = {here.get_model: FAKES[fake]}
    if anew:
        app.dependency_overrides = {**overrides}
    else:
        app.dependency_overrides.update(overrides)
    return "done"


async def clear() -> str:
    app.dependency_overrides.pop(here.get_model, None)
    return "done"


async def break_gauge() -> str:
    """A fake that doesn't start: the requests that need it fail, and no others."""
    app.dependency_overrides = {**app.dependency_overrides, here.get_gauge: here.broken_gauge}
    return "done"


async def mend_gauge() -> str:
    app.dependency_overrides.pop(here.get_gauge, None)
    return "done"


async def crash() -> str:
    """Let the feed die, and bring it back."""
    feed = (await view())[here.get_feed]
    feed.dies.set()
    await feed.died.wait()
    while True:
        # it may have been stopped by the end of the run, not by this
        container = await view()
        try:
            await container.refresh(here.get_feed)
            return "done"
        except RefreshError:
            await anyio.sleep(SOON)


async def call(message: str = "") -> str:
    """Outside of a request: it succeeds, fails, or is cancelled in the middle."""
    container = await view()
    with anyio.move_on_after(SOON) as scope:
        try:
            await container.call(here.handle, message)
        except (Planned, LifespanNotRunning) as error:
            return type(error).__name__
    return "cancelled" if scope.cancelled_caught else "done"


async def call_from_thread(message: str = "") -> str:
    """A synchronous function, injected, from a thread."""
    container = await view()

    def run() -> str:
        try:
            return here_injected(message)
        except (Planned, LifespanNotRunning) as error:
            return type(error).__name__

    here_injected = container.inject(here.plain)
    return await anyio.to_thread.run_sync(run)


async def call_in_thread(message: str = "") -> str:
    container = await view()
    try:
        result: str = await container.call(here.work, message)
    except (Planned, LifespanNotRunning) as error:
        return type(error).__name__
    return result


async def worker(messages: int = 10) -> str:
    """A worker with the values of the application: some messages fail, some take too long."""

    async def source() -> AsyncIterator[str]:
        for number in range(messages):
            yield ("", "fails", "hangs", "")[number % 4]

    async def note(message: str, error: Exception) -> None: ...

    try:
        summary = await run_worker(
            here.handle,
            source(),
            container=await view(),
            concurrency=3,
            on_error=note,
            call_timeout=SOON,
        )
    except LifespanNotRunning:
        return "refused"
    return str(summary)


async def container() -> str:
    """A container by itself, with values of its own, which is refreshed, too."""
    lone = LifespanContainer(here.get_service, handlers=[here.handle])
    async with lone:
        await lone.call(here.handle, "alone")
        await lone.refresh(here.get_engine)
        await lone.call(here.handle, "alone")
    return "done"


async def health() -> str:
    report = await (await view()).check_health()
    return report.status


async def graph() -> str:
    return str((await view()).graph())[:1]


ACTIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    action.__name__: action
    for action in (
        *(refresh, scarce, override, clear, break_gauge, mend_gauge, crash, call, call_from_thread),
        *(call_in_thread, worker, container, health, graph),
    )
}
