"""The view of a run for synchronous code: what it does in the event loop, it waits for."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any

from anyio import CancelScope
from anyio.from_thread import BlockingPortal, start_blocking_portal

from fastapi_lifespan_deps._compat import kind_of
from fastapi_lifespan_deps.live.asking import Standing, under
from fastapi_lifespan_deps.live.refresh import Draining, Policy

from .calls import check_thread, invoking
from .health import HealthReport
from .inject import original_of
from .threads import call_in_thread
from .view import View


def asked(portal: BlockingPortal, function: Callable[[], Awaitable[Any]]) -> Any:
    """Await something in the event loop; interrupted, cancel it, and wait for its end."""
    begun: list[CancelScope] = []
    ended = Event()

    async def asking() -> tuple[Any, BaseException | None]:
        begun.append(CancelScope())
        try:
            with begun[0]:
                return await function(), None
        except BaseException as error:  # it is the caller's, and not the event loop's
            return None, error
        finally:
            ended.set()
        return None, None  # cancelled, and nobody waits

    def cancel() -> None:
        for scope in begun:
            scope.cancel()

    try:
        value, raised = portal.start_task_soon(asking).result()
    except BaseException:
        portal.call(cancel)  # after the task has begun, if it was to begin
        ended.wait(None if begun else 0)
        raise
    if raised is not None:
        try:
            raise raised
        finally:
            del raised  # see `Supervisor.close`
    return value


class SyncView(View):
    """The same, whose methods block; they may be called in any thread but the event loop's."""

    def __init__(self, standing: Standing, portal: BlockingPortal) -> None:
        super().__init__(standing)
        self._portal = portal

    def call(  # it blocks
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function with its dependencies, once: see `View.call`.

        A synchronous one runs in this thread. If this is interrupted (Ctrl-C), the call is
        cancelled, and left, before that is raised.
        """
        function = original_of(function)
        kind = kind_of(function)
        invoking(function, kind)  # which refuses a stream
        if not kind.is_async:
            return call_in_thread(self._standing, function, args, kwargs)
        self._check_here()
        return asked(self._portal, partial(super().call, function, *args, **kwargs))

    def _check_here(self) -> None:
        self._standing.run.calls.check_open()
        check_thread(self._standing.run)

    def refresh(  # type: ignore[override]
        self,
        provider: Callable[..., Any],
        *,
        policy: Policy = "availability_preserving",
        drain_timeout: float | timedelta | None = None,
    ) -> "SyncDraining":
        """Put a fresh instance in the place of the one that serves: see `View.refresh`."""
        self._check_here()
        refresh = partial(super().refresh, provider, policy=policy, drain_timeout=drain_timeout)
        return SyncDraining(self._portal.call(refresh), self._portal)

    def check_health(  # type: ignore[override]
        self, *, timeout: float | timedelta = 0.8
    ) -> HealthReport:
        """Ask whether each lifespan dependency is in order: see `View.check_health`."""
        self._check_here()
        return self._portal.call(partial(super().check_health, timeout=timeout))

    def enter(  # type: ignore[override]
        self, provider: Callable[..., Any]
    ) -> AbstractContextManager[Any]:
        """Enter one request-style dependency by itself: see `View.enter`."""
        self._check_here()
        return self._portal.wrap_async_context_manager(super().enter(provider))


class SyncDraining:
    """What `SyncView.refresh` returns: the end of the old instances can be waited for."""

    def __init__(self, draining: Draining, portal: BlockingPortal) -> None:
        self._draining = draining
        self._portal = portal

    def wait(self) -> None:
        """Wait until the old instances have ended: see `Draining.wait`."""
        self._portal.call(self._draining.wait)


# Not by contextlib: a frozen exception does not get through its managers.


class RunningInThread(AbstractContextManager[SyncView]):
    """A run of a container in an event loop in a thread."""

    def __init__(self, running: AbstractAsyncContextManager[View]) -> None:
        self._running = running
        self._thread = start_blocking_portal("asyncio", name="lifespan container")

    def __enter__(self) -> SyncView:
        portal = self._thread.__enter__()
        try:
            view = asked(portal, self._running.__aenter__)
        except BaseException:
            self._thread.__exit__(None, None, None)
            raise
        self._portal = portal
        self._token = under.set(view._standing)
        return SyncView(view._standing, portal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ValueError):  # it may be left in another thread
            under.reset(self._token)
        try:
            asked(self._portal, partial(self._running.__aexit__, kind, error, traceback))
        finally:
            self._thread.__exit__(None, None, None)
