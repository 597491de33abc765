"""The wrapper router: the whole story of a run, from startup to shutdown."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import Any, Literal, get_args

from fastapi import APIRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._compat import called_by, hooked_router, lifespan_parts
from .asking import serves_requests
from .collect import Function, Route, collect_routes
from .container import LifespanContainer
from .exceptions import LifespanNotRunning, together
from .generation import Pin
from .params import SCOPE_KEY
from .run import Run

LifespanStart = Literal["sequential", "concurrent"]


class LifespanRouter(APIRouter):
    """An application's router whose lifespan starts and stops lifespan dependencies.

    `adopt` turns the router of an existing application into one; its routes stay what they are.
    """

    lifespan_runs: list[Run]
    """The runs that are alive, several when one application is started several times at once."""

    closing_runs: list[Run]

    _only_run: Run | None
    """The run that is alive, if there was no other one beside it: it serves every request."""

    lifespan_start: LifespanStart

    _inner: ASGIApp
    """The router without what is added here."""

    is_pinning: bool
    """Whether a run has, or has had, lifespan dependencies. Without any, all is as in FastAPI."""

    @classmethod
    def adopt(cls, router: APIRouter, lifespan_start: LifespanStart | None) -> None:
        if lifespan_start not in (None, *get_args(LifespanStart)):
            known = " or ".join(map(repr, get_args(LifespanStart)))
            raise ValueError(f"lifespan_start={lifespan_start!r}: use {known}")
        if not isinstance(router, cls):
            context = router.__dict__.pop("lifespan_context")
            kind = type(router)
            router.__class__ = cls if kind is APIRouter else type(kind.__name__, (cls, kind), {})
            assert isinstance(router, cls)
            router.lifespan_runs, router.closing_runs = [], []
            router._only_run = None
            router.lifespan_start = "sequential"
            router.is_pinning = False
            router._inner = called_by(kind.__call__, router)
            router.lifespan_context = context
        router.lifespan_start = lifespan_start or router.lifespan_start

    # `include_router` reads the lifespan, merges another one into it, and assigns the result;
    # user code does the same by hand. Whatever is assigned becomes a part of one `Lifespan`.
    @property
    def lifespan_context(self) -> "Lifespan":
        return self._lifespan

    @lifespan_context.setter
    def lifespan_context(self, context: Any) -> None:
        parts: list[Any] = []
        for part in lifespan_parts(context):
            parts += part.parts if isinstance(part, Lifespan) else [part]
        self._lifespan = Lifespan(self, parts)

    @serves_requests
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, pinned to a generation: to the end of its response, its background
        tasks or its WebSocket. What is around it, middleware above all, holds no values.

        The hot path of every request: each line of it can be measured.
        """
        inner = self._inner
        if not self.is_pinning:
            return await inner(scope, receive, send)
        outer: Pin | None = scope.get(SCOPE_KEY)
        if outer is not None and outer.run.covers(self):
            return await inner(scope, receive, send)
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                return await inner(scope, receive, send)
            send = _closing(scope, send)
        run = self._only_run
        # most often there is one, and we are in its event loop
        if run is None or run.thread != get_ident() or not run.is_running():
            run = self.find_run(scope)
            if run is None:  # what needs a value says why there is none
                return await inner(scope, receive, send)
        overrides, live = run.overrides, run.live
        if (run.app.dependency_overrides or overrides.must_compare) and overrides.have_changed():
            await overrides.apply()
        generation = live.current
        scope[SCOPE_KEY] = pin = Pin()
        pin.holder = scope
        pin.generation = generation
        pin.run = run
        pins = generation.pins
        pins[pin] = None
        try:
            await inner(scope, receive, send)
        finally:
            # Another application may have passed the request on by itself, and whoever calls this
            # one may send the same scope again: nothing of it stays behind.
            scope[SCOPE_KEY] = outer
            if generation is live.current:
                del pins[pin]
            else:
                live.release(pin)

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette refuses to start if there is a state and the server has no room for it. Our
        # own entry can do without: the run is found by the event loop then.
        if "state" not in scope:
            scope["state"] = _NoState()
        await super().lifespan(scope, receive, send)

    def open(self, run: Run) -> None:
        """Let requests find the run."""
        if run not in self.lifespan_runs:
            self._only_run = None if self.lifespan_runs else run
            self.lifespan_runs.append(run)
        self.is_pinning = self.is_pinning or not run.is_empty

    async def close(self, run: Run) -> None:
        """Let requests find the run no more, and stop what is left of it."""
        if run in self.lifespan_runs:
            self.lifespan_runs.remove(run)
        if run is self._only_run:
            self._only_run = None
        self.closing_runs.append(run)
        try:
            await run.live.close()
        finally:
            self.closing_runs.remove(run)

    @property
    def lifespan_container(self) -> LifespanContainer:
        """See `LifespanFastAPI.lifespan_container`."""
        runs = [*self.closing_runs, *self.lifespan_runs]
        here = [run for run in runs if run.is_here()]
        if here:
            return LifespanContainer(here[-1], here[-1].app)
        if runs:
            raise LifespanNotRunning(
                "the application runs in another event loop",
                "Ask in its event loop, and so in its thread: in a coroutine or a callback there.",
            )
        raise LifespanNotRunning(
            "the application is not running",
            "Ask after the start of its lifespan dependencies and before the end of their stop. "
            "In tests, write `with TestClient(app):`. Of a mounted application, it is that of the "
            "one that it is mounted in.",
        )

    def find_run(self, scope: Scope | None = None) -> Run | None:
        """The run in this event loop. Of several it is the one that the lifespan state in `scope`
        names; the latest if that names none, or one whose application has passed the request on.
        """
        named: Run | None = None
        if scope is not None and self._only_run is None:
            named = (scope.get("state") or {}).get(SCOPE_KEY)
        for run in reversed(self.lifespan_runs):
            if (named is None or named is run or named.app is not run.app) and run.is_here():
                return run
        return None


class Lifespan:
    """The merged lifespan of an application: what `router.lifespan_context` is."""

    def __init__(self, router: LifespanRouter, parts: list[Any]) -> None:
        self.router = router
        self.parts = parts  # the user's lifespan functions, and FastAPI's default ones

    @asynccontextmanager
    async def __call__(self, app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        """Run the application, from startup to shutdown."""
        router = self.router
        if router.lifespan_context is not self:
            # Somebody wrapped it and assigned the wrapper: a run is under way already, which
            # could not know what is inside.
            outer = _entering.get(None)
            if outer is not None:
                sources = router.lifespan_context._sources()
                await outer.start(sources, self._lifespan_sources(outer.app))
            async with self._user_lifespans(app, outer) as state:
                yield state
            return

        concurrent = router.lifespan_start == "concurrent"
        run = Run(router.dependency_overrides_provider, concurrent=concurrent)
        async with _leaving(run, lambda: [partial(router.close, run)]):
            await run.start(self._sources())
            router.open(run)
            async with self._hooks(run), self._user_lifespans(app, run) as state:
                if self._functions() or self._registered("on_startup"):
                    await run.start(self._sources())  # what the user's code has added
                    router.open(run)
                run.serve()
                try:
                    yield state if run.is_empty else {**(state or {}), SCOPE_KEY: run}
                finally:
                    run.live.phase = "stopping"

    @asynccontextmanager
    async def _hooks(self, run: Run) -> AsyncIterator[None]:
        """Run each hook once: the application's, and what only an included router knows of."""
        for hook in self._registered("on_startup"):
            await _call_hook(hook, run)
        async with _leaving(
            run,
            lambda: [partial(_call_hook, hook, run) for hook in self._registered("on_shutdown")],
        ):
            yield

    @asynccontextmanager
    async def _user_lifespans(
        self, app: Any, run: Run | None
    ) -> AsyncIterator[Mapping[str, Any] | None]:
        """Enter the application's lifespan function, then those of included routers."""
        state: Mapping[str, Any] | None = None
        async with AsyncExitStack() as stack:
            token = _entering.set(run)
            try:
                for part in self._functions():
                    found = await _enter_lifespan(part, app, run, stack)
                    if found is not None:
                        state = {**found, **(state or {})}
            finally:
                _entering.reset(token)
            yield state

    def _functions(self) -> list[Any]:
        return [part for part in self.parts if hooked_router(part) is None]

    def _registered(self, kind: str) -> list[Callable[..., Any]]:
        included = [hooked_router(part) for part in self.parts]
        hooks: list[Callable[..., Any]] = []
        for router in (self.router, *included):
            for hook in getattr(router, kind, ()):
                if hook not in hooks:
                    hooks.append(hook)
        return hooks

    def _sources(self) -> Iterator[Route | Function]:
        app = self.router.dependency_overrides_provider
        yield from collect_routes(app)
        for kind in ("on_startup", "on_shutdown"):
            for hook in self._registered(kind):
                yield Function(hook, app)
        yield from self._lifespan_sources(app)

    def _lifespan_sources(self, app: Any) -> Iterator[Function]:
        for function in self._functions():
            yield Function(function, app, passed=1)


# The run whose lifespan functions are being entered: one of them may be a wrapper around what
# was the application's lifespan before.
_entering: ContextVar[Run | None] = ContextVar("fastapi_lifespan_deps_entering")


def _closing(scope: Scope, send: Send) -> Send:
    """Close a WebSocket whose value is unavailable, where FastAPI would answer 503.

    Only a connection that has been accepted can be closed with a code that the client sees.
    """
    is_accepted = is_denied = False

    async def send_or_close(message: Message) -> None:
        nonlocal is_accepted, is_denied
        kind = message["type"]
        if (
            kind == "websocket.http.response.start"
            and message["status"] == 503
            and (pin := scope.get(SCOPE_KEY)) is not None
            and (pin.generation.withdrawn or pin.run.live.withdrawn)
        ):
            is_denied = True
            if not is_accepted:
                await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1013, "reason": "Try again later"})
        elif not is_denied:
            is_accepted = is_accepted or kind == "websocket.accept"
            await send(message)

    return send_or_close


class _NoState(dict[str, Any]):
    """The lifespan state where the server has none: takes our entry only, as if there were none."""

    def update(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]  # its one caller
        if state.keys() != {SCOPE_KEY}:
            raise RuntimeError('The server does not support "state" in the lifespan scope.')


@asynccontextmanager
async def _leaving(
    run: Run, steps: Callable[[], Iterable[Callable[[], Awaitable[None]]]]
) -> AsyncIterator[None]:
    """Take every step on the way out, whatever happened inside and in the other steps."""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
    errors = []
    for step in steps():
        try:
            await step()
        except BaseException as error:
            errors.append(error)
    failure = together(failure, errors, is_serving=run.live.phase != "starting")
    if failure is not None:
        try:
            raise failure
        finally:
            del failure, errors  # see `Supervisor.close`


async def _call_hook(hook: Callable[..., Any], run: Run) -> None:
    # As in FastAPI, a synchronous hook runs in the event loop.
    result = run.current[Function(hook, run.app).site]()
    if inspect.iscoroutine(result):
        await result


async def _enter_lifespan(
    function: Callable[..., Any], app: Any, run: Run | None, stack: AsyncExitStack
) -> Any:
    """Enter a lifespan function, given the application and the values that it declares."""
    source = Function(function, run and run.app, passed=1)
    if run is None or not source.site.parameters:
        return await stack.enter_async_context(function(app))
    values = stack.enter_context(run.live.holding(source.site))
    generator = inspect.unwrap(function)
    if inspect.isgeneratorfunction(generator):  # FastAPI's wrapper takes the application alone
        context = contextlib.contextmanager(generator)(app, **values)
        return stack.enter_context(context)
    return await stack.enter_async_context(function(app, **values))
