"""The public view of a run: look values up, refresh them, and call functions with them."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args, overload

from starlette.requests import HTTPConnection
from typing_extensions import TypeVar

from fastapi_lifespan_deps._compat import overrides_provider_of
from fastapi_lifespan_deps.absence import current_run, not_running
from fastapi_lifespan_deps.declare.options import in_seconds, seconds_given
from fastapi_lifespan_deps.declare.params import SCOPE_KEY, Key
from fastapi_lifespan_deps.exceptions import LifespanNotRunning
from fastapi_lifespan_deps.live.asking import Standing, standing_here, under
from fastapi_lifespan_deps.live.generation import Generation, Pin
from fastapi_lifespan_deps.live.refresh import Draining, Policy
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.see.graph import LifespanGraph, graph_of

from .calls import Calls
from .health import HealthReport
from .inject import injecting
from .order import check
from .streams import Entering

R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D", default=None)

if TYPE_CHECKING:
    # What a function gives that makes a `T`, but is not one itself.
    Made = (
        AsyncIterator[T]
        | Iterator[T]
        | Awaitable[T]
        | contextlib._AsyncGeneratorContextManager[T]
        | contextlib._GeneratorContextManager[T]
    )


class View:
    """The running set of lifespan dependencies: of an application, or of a container by itself.

    Inject it with `Depends(get_container)`: then it belongs to the request, or to the call, and
    gives the values that this sees itself, until it asks for a refresh. `app.lifespan_container`
    and `async with container` belong to nobody, and give the latest values; these may be stopped
    when the next ones come.

    Use it in the event loop where it runs, and not later. Values may be looked up in threads that
    have no event loop, too, such as that of a `def` endpoint.

    Example:
        ```python
        @app.get("/pool-size")
        async def read_pool_size(
            container: Annotated[LifespanContainer, Depends(get_container)],
        ) -> int:
            return container[get_pool].size
        ```
    """

    def __init__(self, standing: Standing) -> None:
        self._stands = standing

    @property
    def _standing(self) -> Standing:
        return self._stands

    @property
    def _generation(self) -> Generation:
        at = self._standing
        run, pin = at.run, at.pin
        run.live.supervisor.tasks.check_loop(or_none=True)
        if pin is None or pin.has_asked or pin.everything_of is None:
            current: Generation = run.current
            return current
        return pin.everything_of

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function with its dependencies, once.

        What it declares with `scope="lifespan"` is shared; other dependencies are made anew for
        this call, once each, and left when it has ended: those with `scope="function"` first,
        each in reverse. An error of the function is thrown into them, innermost first, and raised
        to the caller, whatever they do with it. If code after a `yield` fails, the call has
        failed. A cancellation reaches the function; the code after `yield` runs to its end.

        The call sees one set of values from beginning to end, as a request does.

        Args:
            function: an async function, called in this task, or a plain one, called in a worker
                thread. A dependency may take, by name, what the function takes.
            *args: its arguments, without those that are injected.
            **kwargs: the same by name. An injected one that is given here is not made.

        Raises:
            LifespanNotRunning: it does not run in this event loop, or is being left.
            DependencyScopeError: something is declared that exists only in a request.
            UninitializedLifespanDependency: a value is not there.

        Example:
            ```python
            async with container:
                await container.call(handle, message)
            ```
        """
        at = self._standing
        return await at.run.calls.call(at, function, args, kwargs)

    def enter(self, provider: Callable[..., Any]) -> AbstractAsyncContextManager[Any]:
        """Enter one request-style dependency by itself, left at the end of the block.

        An error in the block is thrown into it, and raised all the same.

        Raises:
            DependencyScopeError: something is declared that exists only in a request.
            LifespanNotRunning: it does not run in this event loop, or is being left.

        Example:
            ```python
            async with container.enter(get_session) as session:
                await session.execute(statement)
            ```
        """
        return Entering(self._standing, provider)

    def inject(self, function: Callable[..., R]) -> Callable[..., R]:
        """Fill the parameters of a function that declare dependencies: a decorator.

        See `LifespanContainer.inject`, of which this is the form for one run.
        """
        check(function, self._standing.overrides_provider, {})
        injected: Callable[..., R] = injecting(function, lambda: self._standing)
        return injected

    async def refresh(
        self,
        provider: Callable[..., Any],
        *,
        policy: Policy = "availability_preserving",
        drain_timeout: float | timedelta | None = None,
    ) -> Draining:
        """Put a fresh instance of a lifespan dependency in the place of the one that serves.

        What depends on it is started anew as well; everything else is left alone. Then one switch
        gives all the new values to the requests that arrive from then on, and this returns. An
        old instance goes on for the requests that may still use it, and stops, dependents first,
        when the last of them has ended.

        It runs in a task of its own: if the caller is cancelled, the refresh goes on. While a
        dependency is being refreshed, other calls for it join that refresh, with its policy and
        time limit. If it is overridden, its override is refreshed; if it has died, or a refresh
        has failed to bring it back, it comes back.

        Args:
            provider: the callable given to `Depends(..., scope="lifespan")`.
            policy: `"availability_preserving"` starts the new before it stops the old. With
                `"resource_preserving"`, for when there is no room for two, the requests that use
                the old end first, it stops, and then the new starts. Meanwhile requests that need
                it are answered 503 with `Retry-After`, WebSockets closed with code 1013.
            drain_timeout: seconds, or a `timedelta`, after which the old instances are stopped
                even if requests still use them; a warning names their routes. By default this
                waits as long as it takes.

        Returns:
            A `Draining`: `await draining.wait()` waits until the old instances have stopped.

        Raises:
            RefreshError: the application does not serve, or does not declare the dependency; or,
                with `"resource_preserving"`, whoever asks would have to end first.
            LifespanNotRunning: this is another event loop than that of the application, or none.
                In the thread of a `def` endpoint, write
                `anyio.from_thread.run(container.refresh, provider)`.
            Exception: what the start raises. The old values serve on; with
                `"resource_preserving"` requests are answered 503 until another refresh succeeds.

        Example:
            ```python
            @app.post("/admin/reload")
            async def reload(
                container: Annotated[LifespanContainer, Depends(get_container)],
            ) -> str:
                await container.refresh(get_model)
                return container[get_model].version
            ```
        """
        at = self._standing
        if policy not in get_args(Policy):
            raise ValueError(f"policy={policy!r}: use one of {', '.join(get_args(Policy))}")
        seconds = None if drain_timeout is None else in_seconds(drain_timeout)
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r}: give seconds, or a timedelta")
        draining: Draining = await at.run.refresher.refresh(provider, policy, seconds, at.pin)
        return draining

    async def check_health(self, *, timeout: float | timedelta = 0.8) -> HealthReport:
        """Ask whether each lifespan dependency is in order, by its `Depends(..., health=check)`.

        All checks are made at once, those of plain functions in worker threads. A check that is
        under way for somebody else is joined. A value is not stopped under its check. When the
        time is up, a check is cancelled, and fails; a thread goes on, and no other check of that
        value begins before it has ended. A dependency that has died, is being replaced, or could
        not be started fails. One without a check passes while it is alive. What overrides a
        dependency has only a check of its own.

        It tells of what requests get that arrive now, also where the container belongs to a
        request. A change is told to the listener, and logged.

        Args:
            timeout: seconds, or a `timedelta`, that each check may take.

        Raises:
            ValueError: `timeout` is not more than 0.
            LifespanDependencyError: a health check asks for it.
            LifespanNotRunning: this is another event loop than that of the application.

        Example:
            ```python
            @asynccontextmanager
            async def lifespan(app: LifespanFastAPI) -> AsyncIterator[None]:
                report = await app.lifespan_container.check_health()
                if report.status == "fail":
                    raise RuntimeError(report)
                yield
            ```
        """
        seconds = seconds_given("timeout", timeout)
        report: HealthReport = await self._standing.run.calls.checks.report(seconds)
        return report

    def graph(self) -> LifespanGraph:
        """What runs, and what depends on what: see `LifespanGraph`.

        Plain data of this moment: the states, and how long each start took. After a refresh or an
        override it shows what requests get that arrive now, also where the container belongs to a
        request. It may be made in threads, too.

        Raises:
            LifespanNotRunning: this is another event loop than that of the application.

        Example:
            ```python
            @app.get("/admin/graph", response_class=PlainTextResponse)
            async def read_graph(
                container: Annotated[LifespanContainer, Depends(get_container)],
            ) -> str:
                return container.graph().tree()
            ```
        """
        run = self._standing.run
        run.live.supervisor.tasks.check_loop(or_none=True)
        generation = run.current
        plan = generation.plan
        return graph_of(plan, run.overrides.planning.declarations(plan), generation.status)

    @overload
    def __getitem__(self, provider: type[T]) -> T: ...
    @overload
    def __getitem__(self, provider: "Callable[..., Made[T]]") -> T: ...
    @overload
    def __getitem__(self, provider: Callable[..., T]) -> T: ...
    def __getitem__(self, provider: Callable[..., Any]) -> Any:
        """The value of a lifespan dependency, or of what overrides it.

        Args:
            provider: the callable given to `Depends(..., scope="lifespan")`, with the default
                `use_cache=True` in at least one place.

        Raises:
            UninitializedLifespanDependency: it has no value, for the reason that is given.
            LifespanNotRunning: this is another event loop than that of the application.
        """
        return self._generation.value(self._standing.overrides_provider, Key(provider))

    @overload
    def get(self, provider: type[T], default: D = ...) -> T | D: ...
    @overload
    def get(self, provider: "Callable[..., Made[T]]", default: D = ...) -> T | D: ...
    @overload
    def get(self, provider: Callable[..., T], default: D = ...) -> T | D: ...
    def get(self, provider: Callable[..., Any], default: Any = None) -> Any:
        """The value of a lifespan dependency, or `default` if no route declares it.

        Raises:
            UninitializedLifespanDependency: it is declared, but failed.
        """
        if provider not in self:
            return default
        return self[provider]

    def __contains__(self, provider: object) -> bool:
        """Whether the application declares this lifespan dependency."""
        return (self._standing.overrides_provider, Key(provider)) in self._generation.plan.resolved  # type: ignore[arg-type]  # any object may be asked for


async def get_container(connection: HTTPConnection) -> View:
    """Give a request the container, pinned to the values that the request itself sees.

    Declare it as an ordinary dependency: `Annotated[LifespanContainer, Depends(get_container)]`.
    Awaited in middleware, around the request, it gives the container with the latest values. A
    function that is called outside of requests gets that of its call.

    Raises:
        UninitializedLifespanDependency: the application is not running, or has no lifespan
            dependencies.
    """
    scope = connection.scope
    pin: Pin | None = scope.get(SCOPE_KEY)
    if pin is not None:
        pin.run.live.supervisor.tasks.check_loop()
        pin.run.live.give_everything(pin)
        return View(Standing(pin.run, overrides_provider_of(scope), pin))
    run = current_run(scope)
    if run is None:
        raise not_running(get_container, scope)
    await run.overrides.apply()  # as a request would that comes now
    return View(Standing(run, scope.get("app")))


get_container.__lifespan_container__ = True  # type: ignore[attr-defined]  # read by collect.py


def current_container() -> View:
    """The container that the code runs under: that of the call, or of the request.

    Known in every call, also in the threads (by anyio or asyncio) and the tasks that it starts; in
    the task that serves a request; in the block of a container, and in what starts with it.

    Raises:
        LifespanNotRunning: nothing has called this code through a container.

    Example:
        ```python
        def log(text: str) -> None:
            current_container()[get_log].write(text)
        ```
    """
    at = standing_here()
    if at is None:
        raise LifespanNotRunning(
            "the code runs under none",
            "Call it through one: decorate the function with `container.inject`, or write `await "
            "container.call(function)`.",
        )
    return View(at)


def open_calls(run: Run) -> None:
    """Let functions be called with the values of a run."""
    run.calls = Calls(run, View)
    run.live.supervisor.tasks.remember(under, Standing(run, run.overrides_provider))
