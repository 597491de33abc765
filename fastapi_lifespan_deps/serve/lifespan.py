"""The merged lifespan: the whole story of a run, from startup to shutdown."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import (
    asynccontextmanager,
)
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter

from fastapi_lifespan_deps._compat import hooked_router, is_async_callable
from fastapi_lifespan_deps.call.order import Handler
from fastapi_lifespan_deps.call.view import open_calls
from fastapi_lifespan_deps.declare.collect import (
    LifecycleFunction,
    ListedDependency,
    Source,
    Sources,
    collect_routes,
    mounted_routers,
)
from fastapi_lifespan_deps.declare.params import SCOPE_KEY
from fastapi_lifespan_deps.declare.plan import Plan
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.live.generation import Pin
from fastapi_lifespan_deps.live.run import Leaving, Run, RunOptions, Runs
from fastapi_lifespan_deps.live.values import LiveValues
from fastapi_lifespan_deps.see.watch import Step, Watch

from .binding import Binder
from .own_code import OwnCode, Stack, Synchronous, Watched

Hook = Callable[..., Any]

# The attributes of a router that list its hooks.
STARTUP, SHUTDOWN = "on_startup", "on_shutdown"


@dataclass(eq=False)
class Host:
    """What an application has from one run to the next."""

    router: APIRouter
    runs: Runs
    options: RunOptions = RunOptions()  # noqa: RUF009  # it is frozen
    handlers: tuple[Handler, ...] = ()
    parts: list[Any] = field(default_factory=list)
    """Of the merged lifespan: the user's lifespan functions, and FastAPI's default ones."""

    hooked: list[Any] = field(default_factory=list)
    """The routers whose hooks a default lifespan runs: it is a part, or inside of one."""

    def merge(self, parts: list[Any]) -> None:
        """Take these for the parts of the merged lifespan."""
        self.parts = parts
        routers = (hooked_router(part) for part in parts)
        known = {id(one) for one in (None, *self.hooked)}
        self.hooked += [one for one in routers if id(one) not in known]

    def planning(self) -> Planning:
        """What plans that which is declared by now, and starts nothing."""
        sources = Sources()
        sources.update(Lifecycle(self, None).sources(is_last=True), ())
        application = self.router.dependency_overrides_provider
        return Planning(application, sources, has_application=True)


class Lifespan:
    """The merged lifespan of an application: what `router.lifespan_context` is."""

    def __init__(self, host: Host, parts: list[Any]) -> None:
        self.parts = parts
        self._host = host

    @asynccontextmanager
    async def __call__(self, app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        """Run the application, from startup to shutdown."""
        host, entering = self._host, _entering.get(None)
        if host.parts is not self.parts:
            # Somebody wrapped it and assigned the wrapper: a run is under way already, which
            # could not know what is inside.
            is_ours = entering is not None and entering.host is host
            lifecycle = entering if entering is not None and is_ours else Lifecycle(host, None)
            await lifecycle.start(self.parts)
            async with Stack() as stack:
                yield await lifecycle.enter(self.parts, app, stack)
            return
        if entering is not None and entering.takes_in(host):
            async with entering.joined(host, app) as state:
                yield state
            return

        application = host.router.dependency_overrides_provider
        run = Run(host.router, application, application, host.options, binder=Binder)
        open_calls(run)
        lifecycle = Lifecycle(host, run)
        failure: BaseException | None = None
        try:
            async with Leaving(run, lambda: [partial(host.runs.close, run)]):
                await lifecycle.start(is_last=not lifecycle.has_code)
                host.runs.open(run)
                async with lifecycle.entered(app) as state:
                    host.runs.open(run)  # which may have values now
                    check_required(run.live.originals, run.current.plan)
                    run.serve()
                    try:
                        yield state if run.is_empty else {**(state or {}), SCOPE_KEY: run}
                    finally:
                        run.begin_to_stop()
                        await run.calls.close()
        except BaseException as error:
            failure = error
            raise
        finally:
            run.end(failure)
            del failure  # see `Supervisor.close`


def check_required(originals: Plan, plan: Plan) -> None:
    """Raise unless a plan has what the routers need, those of mounted applications among them."""
    for application in plan.overrides:
        router = getattr(application, "router", None)
        for check in getattr(router, "requirements", ()):
            check(originals, plan)


async def _release(live: LiveValues, pin: Pin) -> None:
    live.release(pin)


class Lifecycle:
    """The application's own code around a run: its hooks, and its lifespan functions.

    On the way up: the application's hooks, its lifespan function, and then, as FastAPI has them,
    the hooks and lifespan functions of included routers; on the way down the reverse. FastAPI has
    a hook of an included router in several places, and runs it in each; here it runs in the last.
    """

    def __init__(self, host: Host, run: Run | None, outer: "Lifecycle | None" = None) -> None:
        self.host = host
        self._run = run  # None for a lifespan that is entered where no run is under way
        self._outer = outer  # of the application that this one is mounted in, and whose run it is
        self._task: int | None = None  # in which the application's code is being entered
        self._known: dict[int, LifecycleFunction] = {}
        self._done: dict[str, list[Hook]] = {STARTUP: [], SHUTDOWN: []}
        self._later: list[Any] = []  # the parts that come after the one that is being entered

    async def start(self, others: Iterable[Any] = (), *, is_last: bool = False) -> None:
        """Start what the application declares, and what these other parts of a lifespan do."""
        if self._run is not None:
            functions: list[Source] = [
                self._function(part, passed=1) for part in _functions(others)
            ]
            if self._outer is not None:
                functions += self._own()
            sources = (self._outer or self).sources(is_last=is_last)
            await self._run.start(sources, functions)

    def takes_in(self, host: Host) -> bool:
        """Whether a lifespan that is entered now is that of something which is mounted here.

        It is the application's own code that enters it, not a task that this has started.
        """
        run = self._run
        if run is None or host is self.host or self._task != anyio.get_current_task().id:
            return False
        routers = mounted_routers(run.overrides_provider)
        return any(router is host.router for router in routers)

    @asynccontextmanager
    async def joined(self, host: Host, app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        """Run the code of a mounted application around the run of this one."""
        assert self._run is not None
        lifecycle = Lifecycle(host, self._run, self._outer or self)
        is_first = host.runs.open(self._run)
        try:
            await lifecycle.start()
            async with lifecycle.entered(app) as state:
                host.runs.open(self._run)  # which may have values now
                yield state
        finally:
            if is_first:
                host.runs.leave(self._run)

    @property
    def has_code(self) -> bool:
        """Whether there is something that may have altered the application."""
        return bool(_functions(self.host.parts) or self._registered(STARTUP))

    @asynccontextmanager
    async def entered(self, app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        """Run all of it, on the way up and on the way down."""
        shutdown = self._without_place
        await self._start_up(self._without_place(STARTUP))
        async with (
            self._leaving(lambda: shutdown(SHUTDOWN)),
            Stack() as stack,
        ):
            state = await self.enter(self.host.parts, app, stack)
            # those whose place was taken away, by a lifespan that was assigned
            shutdown = self._registered
            await self._start_up(self._registered(STARTUP))
            if self.has_code:
                await self.start(is_last=True)  # what it has added
            yield state

    async def enter(self, parts: list[Any], app: Any, stack: Stack) -> Mapping[str, Any] | None:
        """Enter parts of a merged lifespan, and give the state that they yield."""
        state: Mapping[str, Any] | None = None
        token, outer, task = _entering.set(self), self._later, self._task
        self._task = anyio.get_current_task().id
        try:
            for index, part in enumerate(parts):
                router, later = hooked_router(part), [*parts[index + 1 :], *outer]
                self._later = later
                if router is None:
                    found = await self._enter_function(part, app, stack)
                    if found is not None:
                        state = {**found, **(state or {})}
                else:
                    await self._start_up(_hooks_of(router, STARTUP, later))
                    hooks = partial(_hooks_of, router, SHUTDOWN, later)
                    await stack.enter_async_context(self._leaving(hooks))
        finally:
            self._later, self._task = outer, task
            _entering.reset(token)
        return state

    def _leaving(self, hooks: Callable[[], list[Hook]]) -> Leaving:
        return Leaving(self._run, lambda: self._calls(SHUTDOWN, hooks()))

    async def _enter_function(self, part: Any, app: Any, stack: Stack) -> Any:
        """Enter a lifespan function, given the application and the values that it declares."""
        function = self._function(part, passed=1)
        if self._run is None or not function.injection.parameters:
            return await self._enter(stack, part, part(app))
        live = self._run.live
        pin = live.pin(function.injection)
        await stack.enter_async_context(Leaving(self._run, lambda: [partial(_release, live, pin)]))
        values = pin.generation.values_of(function.injection)
        generator = inspect.unwrap(part)
        if inspect.isgeneratorfunction(generator):  # FastAPI's wrapper takes the application alone
            context = contextlib.contextmanager(generator)(app, **values)
            return await self._enter(stack, part, Synchronous(context))
        return await self._enter(stack, part, part(app, **values))

    async def _enter(self, stack: Stack, part: Any, context: Any) -> Any:
        return await stack.enter_async_context(Watched(OwnCode(part, self._watch), context))

    async def _start_up(self, hooks: list[Hook]) -> None:
        last = [hook for index, hook in enumerate(hooks) if hook not in hooks[index + 1 :]]
        token, task = _entering.set(self), self._task
        self._task = anyio.get_current_task().id
        try:
            for call in self._calls(STARTUP, last):
                await call()
        finally:
            self._task = task
            _entering.reset(token)

    def _calls(self, kind: str, hooks: Iterable[Hook]) -> Iterator[Callable[[], Awaitable[None]]]:
        """The calls of those hooks that have not run yet."""
        done = self._done[kind]
        for hook in hooks:
            if hook not in done:
                done.append(hook)
                yield partial(self._call_hook, kind, hook)

    async def _call_hook(self, kind: str, hook: Hook) -> None:
        run = self._run
        call = hook if run is None else run.current[self._function(hook).injection]
        step: Step = "start" if kind == STARTUP else "stop"
        await OwnCode(hook, self._watch).call(step, call, is_async=is_async_callable(hook))

    @property
    def _watch(self) -> Watch | None:
        return None if self._run is None else self._run.live.supervisor.watch

    def _without_place(self, kind: str) -> list[Hook]:
        """The hooks that no default lifespan runs: FastAPI drops them."""
        placed = [hook for router in self.host.hooked for hook in getattr(router, kind)]
        return [hook for hook in getattr(self.host.router, kind) if hook not in placed]

    def _registered(self, kind: str) -> list[Hook]:
        routers = self.host.router, *self.host.hooked
        return [hook for router in routers for hook in getattr(router, kind)]

    def _function(self, function: Callable[..., Any], passed: int = 0) -> LifecycleFunction:
        known = self._known.get(id(function))
        if known is None:
            overrides_provider = self.host.router.dependency_overrides_provider
            known = self._known[id(function)] = LifecycleFunction(
                function, overrides_provider, passed
            )
        return known

    def sources(self, *, is_last: bool) -> Iterator[Source]:
        """All that declares something in the application as it is now."""
        for source in collect_routes(self.host.router.dependency_overrides_provider):
            # an entry of a list for no route may yet get one, and then be that route's own
            if is_last or not isinstance(source, ListedDependency) or source.depends.use_cache:
                yield source
        yield from self._own()

    def _own(self) -> Iterator[Source]:
        """The application's hooks, lifespan functions, and what it calls by itself."""
        for kind in (STARTUP, SHUTDOWN):
            hooks: list[Hook] = []
            for hook in self._registered(kind):
                if hook not in hooks:
                    hooks.append(hook)
                    yield self._function(hook)
        for part in _functions(self.host.parts):
            yield self._function(part, passed=1)
        yield from self.host.handlers


# The lifecycle whose lifespan functions are being entered: one of them may be a wrapper around what
# was the application's lifespan before.
_entering: ContextVar[Lifecycle] = ContextVar("fastapi_lifespan_deps_entering")


def _functions(parts: Iterable[Any]) -> list[Any]:
    return [part for part in parts if hooked_router(part) is None]


def _hooks_of(router: Any, kind: str, later: list[Any]) -> list[Hook]:
    """The hooks of an included router that no later part of the lifespan has."""
    others = [hooked_router(part) for part in later]
    found = [hook for other in others if other is not None for hook in getattr(other, kind)]
    return [hook for hook in getattr(router, kind) if hook not in found]
