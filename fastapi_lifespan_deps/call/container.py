"""The container by itself: what is started without an application, and called with it."""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from weakref import ref

from fastapi import FastAPI, params

from fastapi_lifespan_deps.declare.collect import (
    ListedDependency,
    Source,
    Sources,
    collect_routes,
)
from fastapi_lifespan_deps.declare.params import Depends, lifespan_marker
from fastapi_lifespan_deps.declare.plan import Overrides
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.events import Listener
from fastapi_lifespan_deps.exceptions import (
    InvalidLifespanDependency,
    LifespanNotRunning,
    name_of,
)
from fastapi_lifespan_deps.live.asking import Standing, standing_here, under
from fastapi_lifespan_deps.live.run import Leaving, LifespanStart, Run, RunOptions

from .inject import check_function, declaring, handlers_of, injecting, original_of, shown
from .order import Handler, check
from .sets import GROUP, chosen
from .sync import RunningInThread, SyncView
from .view import View, open_calls

R = TypeVar("R")


class LifespanContainer(View):
    """Lifespan dependencies without an application: for workers, commands, scripts, notebooks.

    A container is to injected functions what an application is to routes. It is a recipe: `async
    with container` starts what it names and what its functions declare, once, and stops it at the
    end of the block. It can be entered again, with fresh values; not twice at once.

    Args:
        *providers: what is started whether or not a function declares it: the callables, or, to
            give options, what `Depends(provider, scope="lifespan", ...)` returns.
        handlers: functions whose declarations count as those of injected functions do; for those
            that something else decorates.
        overrides: fills `dependency_overrides`, which has FastAPI's meaning, also while running.
        lifespan_start: `"sequential"` or `"concurrent"`: see `LifespanFastAPI`.
        on_lifespan_event: a listener: see `LifespanFastAPI`.
        slow_after: seconds until a warning of what still starts or stops: see `LifespanFastAPI`.

    Raises:
        InvalidLifespanDependency: something cannot be a lifespan dependency.
        DependencyScopeError: something is declared that exists only in a request.

    Example:
        ```python
        container = LifespanContainer()

        @container.inject
        async def handle(message: Message, session: SessionDep, model: ModelDep) -> None: ...

        async def main() -> None:
            async with container:
                async for message in queue:
                    await handle(message)
        ```
    """

    dependency_overrides: dict[Callable[..., Any], Callable[..., Any]]

    def __init__(
        self,
        *providers: Any,
        handlers: Iterable[Callable[..., Any]] = (),
        overrides: Overrides | None = None,
        lifespan_start: LifespanStart | None = None,
        on_lifespan_event: Listener | None = None,
        slow_after: float | timedelta | None = 10.0,
    ) -> None:
        self._options = RunOptions().changed(lifespan_start, on_lifespan_event, slow_after)
        self.dependency_overrides = {**(overrides or {})}
        self._application: FastAPI | None = None
        self._with_routes = False
        self._providers = [_declared(one) for one in providers]
        self._handlers: list[Callable[..., Any]] = []  # which are kept
        # What is declared, as long as somebody has the function.
        self._functions: list[ref[Callable[..., Any]]] = []
        self._here: Standing | None = None
        self._entered: AbstractAsyncContextManager[View] | None = None
        self._keep(handlers)

    @classmethod
    def for_app(
        cls,
        app: FastAPI,
        *providers: Any,
        handlers: Iterable[Callable[..., Any]] = (),
        routes: bool = True,
        lifespan_start: LifespanStart | None = None,
        on_lifespan_event: Listener | None = None,
        slow_after: float | timedelta | None = 10.0,
    ) -> Self:
        """An application's lifespan dependencies, without serving.

        Neither its hooks run nor its lifespan function. Its `dependency_overrides` hold.

        Args:
            app: the application.
            *providers: what is started besides.
            handlers: functions whose declarations count, too.
            routes: whether what its routes declare is started.
            lifespan_start: see `LifespanFastAPI`.
            on_lifespan_event: see `LifespanFastAPI`.
            slow_after: see `LifespanFastAPI`.

        Example:
            ```python
            container = LifespanContainer.for_app(app)
            container.run(clean_up)
            ```
        """
        container = cls(
            *providers,
            lifespan_start=lifespan_start,
            on_lifespan_event=on_lifespan_event,
            slow_after=slow_after,
        )
        container._application = app
        container._with_routes = routes
        container.dependency_overrides = app.dependency_overrides
        container._keep(handlers)
        return container

    @classmethod
    def from_set(
        cls,
        name: str | None = None,
        *,
        group: str = GROUP,
        handlers: Iterable[Callable[..., Any]] = (),
        overrides: Overrides | None = None,
        lifespan_start: LifespanStart | None = None,
        on_lifespan_event: Listener | None = None,
        slow_after: float | timedelta | None = 10.0,
    ) -> Self:
        """A container of what an installed package offers: see `dependency_sets`.

        Args:
            name: of the set. It may be left out if there is only one.
            group: the entry points' group.
            handlers: see `LifespanContainer`, as the other arguments. `overrides` go before those
                of the set.

        Raises:
            LifespanDependencyError: there is none of that name, or several and none is named.

        Example:
            ```python
            container = LifespanContainer.from_set(os.environ["DEPENDENCIES"])
            ```
        """
        providers, replaced = chosen(name, group)
        return cls(
            *providers,
            handlers=handlers,
            overrides={**replaced, **(overrides or {})},
            lifespan_start=lifespan_start,
            on_lifespan_event=on_lifespan_event,
            slow_after=slow_after,
        )

    def _add(self, providers: Iterable[Any], overrides: Overrides) -> None:
        """Start these besides, and override these."""
        self._providers += map(_declared, providers)
        self.dependency_overrides.update(overrides)

    @property
    def _overrides_provider(self) -> Any:
        return self._application or self

    @property
    def _standing(self) -> Standing:
        if self._here is None:
            raise LifespanNotRunning(
                "it was not entered, or was left",
                "Write `async with container:`, or in synchronous code `with container.sync():`.",
            )
        return self._here

    # Declare

    def inject(self, function: Callable[..., R]) -> Callable[..., R]:
        """Fill the parameters of a function that declare dependencies: a decorator.

        What is returned is of the same kind (`async` or not, a generator or not), and takes what
        is left: neither its signature nor its annotations show the injected parameters. An
        injected one may be given by keyword. Synchronous functions may be called in any thread
        but that of the event loop, and run there; the others in the event loop.

        Its declarations are checked at once, under the overrides that are set by then.

        Raises:
            DependencyScopeError: something is declared that exists only in a request.
            LifespanDependencyError: it is no function or method.

        Example:
            ```python
            @app.task
            @container.inject
            def resize(image_id: int, *, storage: StorageDep) -> None: ...
            ```
        """
        wrapper: Callable[..., R] = injecting(function, lambda: self._standing, self)
        self._collect(function)
        return wrapper

    def _collect(self, function: Callable[..., Any]) -> None:
        original = declaring(function)
        check(original, self._overrides_provider, self.dependency_overrides)
        known = [one for one in self._functions if one() is not None]
        self._functions = [*known, ref(original)]

    def _keep(self, handlers: Iterable[Callable[..., Any]]) -> None:
        """Collect what functions declare, to the end."""
        self._handlers += handlers_of(handlers, self._overrides_provider, self.dependency_overrides)

    def _sources(
        self, only: Iterable[Callable[..., Any]] | None
    ) -> tuple[list[Source], list[Source]]:
        """What is to be started, and what tells no more than the options of that."""
        provider = self._overrides_provider
        routes: list[Source] = []
        if self._application is not None:
            routes += collect_routes(self._application)
        functions = [*self._handlers, *(one() for one in self._functions)]
        named: list[Source] = [
            *(ListedDependency("the container", provider, *one) for one in self._listed()),
            *(Handler(declaring(one), provider) for one in functions if one is not None),
        ]
        if only is not None:
            for function in (wanted := [declaring(one) for one in only]):
                check(function, provider, self.dependency_overrides)
            return [Handler(one, provider) for one in wanted], [*routes, *named]
        return ([*routes, *named], []) if self._with_routes else (named, routes)

    def _planning(self) -> Planning:
        """What plans that which is declared by now, and starts nothing."""
        sources = Sources()
        started, sources.unstarted = self._sources(None)
        sources.update(started, ())
        provider, has_application = self._overrides_provider, self._application is not None
        return Planning(provider, sources, has_application=has_application)

    def _listed(self) -> Iterator[tuple[params.Depends, int]]:
        return ((depends, position) for position, depends in enumerate(self._providers))

    # Run

    def _new_run(self) -> Run:
        return Run(
            self,
            self._overrides_provider,
            self._application,
            self._options,
        )

    async def __aenter__(self) -> View:
        entered = self.running()
        view = await entered.__aenter__()
        self._entered = entered
        return view

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered, self._entered = self._entered, None
        assert entered is not None
        await entered.__aexit__(kind, error, traceback)

    def running(
        self, *, only: Iterable[Callable[..., Any]] | None = None
    ) -> AbstractAsyncContextManager[View]:
        """Start what is declared, and stop it at the end of the block: what `async with` does.

        Args:
            only: functions: what they need is started, and nothing else.

        Raises:
            LifespanNotRunning: it runs already.
            Exception: what a start raises.
        """
        return _Running(self, only)

    def sync(
        self, *, only: Iterable[Callable[..., Any]] | None = None
    ) -> AbstractContextManager[SyncView]:
        """The same for synchronous code: an event loop runs in a thread meanwhile.

        Args:
            only: functions: what they need is started, and nothing else.

        Example:
            ```python
            with container.sync() as running:
                running.call(handle, message)
            ```
        """
        return RunningInThread(self.running(only=only))

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Start what a function needs, and nothing else; call it, stop, and give its result.

        Example:
            ```python
            if __name__ == "__main__":
                container.run(import_users, "users.csv")
            ```
        """
        function = original_of(function)
        check(function, self._overrides_provider, self.dependency_overrides)
        with self.sync(only=[function]) as running:
            return running.call(function, *args, **kwargs)

    @overload
    def command(self, function: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., R]: ...
    @overload
    def command(self, function: Callable[..., R]) -> Callable[..., R]: ...
    def command(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`run` as a decorator: for commands of typer or click, and for cron jobs.

        Example:
            ```python
            @cli.command()
            @container.command
            async def import_users(path: Path, engine: EngineDep) -> None: ...
            ```
        """
        check_function(function)
        check(function, self._overrides_provider, self.dependency_overrides)

        def command(*args: Any, **kwargs: Any) -> Any:
            return self.run(function, *args, **kwargs)

        return shown(command, function)


# Not by contextlib: a frozen exception does not get through its managers.


class _Running(AbstractAsyncContextManager[View]):
    """A run of a container, from its start to its stop."""

    def __init__(
        self, container: LifespanContainer, only: Iterable[Callable[..., Any]] | None
    ) -> None:
        self._container = container
        self._only = only

    async def __aenter__(self) -> View:
        container = self._container
        if container._here is not None and container._here.run.is_of_this_process:
            raise LifespanNotRunning(
                "it runs already, and cannot run twice at once",
                "Make another container, or leave this one first.",
            )
        self._run = run = container._new_run()
        open_calls(run)
        container._here = at = Standing(run, container._overrides_provider)
        self._token = under.set(at)
        try:
            started, unstarted = container._sources(self._only)
            await run.start(started, unstarted=unstarted)
            run.serve()
        except BaseException as error:
            await self._leave(error)
            raise
        return View(at)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._run.begin_to_stop()
        await self._leave(error)

    async def _leave(self, failure: BaseException | None) -> None:
        run = self._run
        leaving = Leaving(run, lambda: [run.calls.close, run.live.close])
        try:
            await leaving.__aexit__(None, failure, None)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._container._here = None
            with suppress(ValueError):  # it may be left in another task
                under.reset(self._token)
            run.end(failure)
            del failure  # see `Supervisor.close`


def _declared(provider: Any) -> params.Depends:
    if isinstance(provider, params.Depends):
        if lifespan_marker(provider, inspect.Parameter.empty) is None:
            raise InvalidLifespanDependency(
                provider.dependency,
                'is not for a container, which starts what has scope="lifespan"',
                f'Give `{name_of(provider.dependency)}`, or `Depends(..., scope="lifespan")`.',
                asked=f"Depends({name_of(provider.dependency)})",
            )
        return provider
    if provider is None:  # which would stand for an annotation
        raise InvalidLifespanDependency(
            None,
            "names no provider",
            "Give the function or the class.",
            asked="LifespanContainer(None)",
        )
    depends: params.Depends = Depends(provider, scope="lifespan")
    return depends


def inject(function: Callable[..., R]) -> Callable[..., R]:
    """Inject for whoever calls: a package that does not know the container.

    It finds `current_container()` when it is called. What the function declares must be among the
    `handlers` of that container, or declared elsewhere.
    """

    def standing() -> Standing:
        at = standing_here()
        if at is None:
            raise LifespanNotRunning(
                f"`{name_of(function)}` was called under none",
                "Call it in a function that a container calls, or use `container.inject`.",
            )
        return at

    injected: Callable[..., R] = injecting(function, standing)
    return injected
