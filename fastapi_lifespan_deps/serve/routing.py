"""The wrapper router: where a request meets its run."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

from fastapi import APIRouter, FastAPI, params
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_lifespan_deps._compat import called_by, lifespan_parts
from fastapi_lifespan_deps.call.inject import handlers_of
from fastapi_lifespan_deps.call.order import Handler
from fastapi_lifespan_deps.call.view import View
from fastapi_lifespan_deps.declare.params import SCOPE_KEY
from fastapi_lifespan_deps.declare.plan import Plan
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.exceptions import LifespanNotRunning, UnavailableLifespanDependency
from fastapi_lifespan_deps.live.asking import Standing, serves_requests
from fastapi_lifespan_deps.live.generation import Pin
from fastapi_lifespan_deps.live.run import Run, RunOptions, Runs
from fastapi_lifespan_deps.live.values import LiveValues

from .lifespan import Host, Lifecycle, Lifespan

# From Python 3.12 on, asking for the running event loop is no system call.
RUNNING_LOOP_IS_CHEAP = sys.version_info >= (3, 12)
running_loop = asyncio._get_running_loop


class LifespanRouter(APIRouter):
    """An application's router whose lifespan starts and stops lifespan dependencies.

    `adopt` turns the router of an existing application into one; its routes stay what they are.
    """

    lifespan_runs: Runs
    """The runs that are alive, several when one application is started several times at once."""

    included_dependencies: list[params.Depends]
    """What was listed where others were included."""

    requirements: list[Callable[[Plan, Plan], None]]
    """What raises unless a run has what routes need; asked before the application serves."""

    _host: Host

    _inner: ASGIApp
    """The router without what is added here."""

    @classmethod
    def adopt(
        cls,
        router: APIRouter,
        application: FastAPI,
        options: RunOptions | None = None,
        handlers: Sequence[Callable[..., Any]] | None = None,
        *,
        former: APIRouter | None = None,
    ) -> None:
        """Turn an application's router into one of these, whose runs have these options.

        What isn't given it keeps, or takes over from the `former` one.
        """
        if router.dependency_overrides_provider is None:
            router.dependency_overrides_provider = application
        if not isinstance(router, cls):
            context = router.__dict__.pop("lifespan_context")
            kind = type(router)
            router.__class__ = cls if kind is APIRouter else type(kind.__name__, (cls, kind), {})
            assert isinstance(router, cls)
            router.lifespan_runs = Runs()
            router.included_dependencies = []
            router.requirements = []
            router._host = Host(router, router.lifespan_runs)
            router._inner = called_by(kind.__call__, router)
            router.lifespan_context = context
        host = router._host
        if isinstance(former, cls):
            host.options, host.handlers = former._host.options, former._host.handlers
        if options is not None:
            host.options = options
        if handlers is not None:
            functions = handlers_of(handlers, application, application.dependency_overrides)
            host.handlers = tuple(Handler(one, application) for one in functions)

    @classmethod
    def options_of(cls, router: APIRouter) -> RunOptions:
        """Those of an application's runs so far."""
        return router._host.options if isinstance(router, cls) else RunOptions()

    # `include_router` reads the lifespan, merges another one into it, and assigns the result;
    # user code does the same by hand. Whatever is assigned becomes a part of one `Lifespan`.
    @property
    def lifespan_context(self) -> Any:  # a `Lifespan`
        return self._lifespan

    @lifespan_context.setter
    def lifespan_context(self, context: Any) -> None:
        parts: list[Any] = []
        for part in lifespan_parts(context):
            parts += part.parts if isinstance(part, Lifespan) else [part]
        self._host.merge(parts)
        self._lifespan = Lifespan(self._host, parts)

    @serves_requests
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, pinned to a generation: to the end of its response, its background
        tasks or its WebSocket. What is around it, middleware above all, holds no values.

        The hot path of every request: each line of it can be measured.
        """
        inner, runs = self._inner, self.lifespan_runs
        outer: Pin | None = scope.get(SCOPE_KEY)
        if outer is not None and self._is_pinned_by(outer):
            return await self._pass_on(outer, scope, receive, send)
        if not runs.have_values:
            return await inner(scope, receive, send)
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                return await inner(scope, receive, send)
            send = _closing(send)
        run = runs.only
        # most often there is one, and we are in its event loop
        if run is None or not (
            run.loop is running_loop()
            if RUNNING_LOOP_IS_CHEAP
            else run.thread == get_ident() and run.is_running()
        ):
            run = runs.find(scope)
            if run is None:  # what needs a value says why there is none
                return await inner(scope, receive, send)
        overrides, live = run.overrides, run.live
        if (
            run.overrides_provider.dependency_overrides or overrides.must_compare
        ) and overrides.have_changed():
            await overrides.apply()
        generation = live.current
        scope[SCOPE_KEY] = pin = Pin()
        pin.holder = scope
        pin.generation = generation
        pin.run = run
        pin.more = None
        pins = generation.pins
        pins[pin] = None
        try:
            await inner(scope, receive, send)
        finally:
            # Another application may have passed the request on by itself, and whoever calls this
            # one may send the same scope again: nothing of it stays behind.
            scope[SCOPE_KEY] = outer
            if generation is not live.current:
                live.release(pin)
            else:
                del pins[pin]
                if pin.more is not None:
                    live.release(pin)

    def _is_pinned_by(self, pin: Pin) -> bool:
        """Whether that is of a run that these routes belong to."""
        if pin.run.covers(self):
            return True
        pin.keep_to_its_route()  # for this application writes its own into the scope
        return False

    @serves_requests
    async def _pass_on(self, outer: Pin, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that is pinned: it has come to a mounted application, or comes again."""
        if outer.holder is scope and outer.generation.reachable_by(outer) is None:
            return await self._inner(scope, receive, send)
        # It has been on a route already, or is a copy, and gets to another one: it holds both.
        outer.keep_to_its_route()
        for key in ("route", "endpoint"):
            scope.pop(key, None)
        live: LiveValues = outer.run.live
        scope[SCOPE_KEY] = pin = live.pin_beside(outer, scope)
        try:
            await self._inner(scope, receive, send)
        finally:
            scope[SCOPE_KEY] = outer
            live.release(pin)

    def include_router(
        self,
        router: APIRouter,
        *,
        dependencies: Sequence[params.Depends] | None = None,
        **options: Any,
    ) -> None:
        """FastAPI's; up to 0.136.3, what is included without routes would be forgotten."""
        super().include_router(router, dependencies=dependencies, **options)
        self.included_dependencies += [*(dependencies or ()), *router.dependencies]

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette refuses to start if there is a state and the server has no room for it. Our
        # own entry can do without: the run is found by the event loop then.
        if "state" not in scope:
            scope["state"] = _NoState()
        await super().lifespan(scope, receive, send)

    def planning(self) -> Planning:
        """What plans that which the application declares, and starts nothing."""
        return self._host.planning()

    @property
    def has_startup_code(self) -> bool:
        """Whether there is code of the application's own that may alter it when it starts."""
        return Lifecycle(self._host, None).has_code

    @property
    def lifespan_container(self) -> View:
        """See `LifespanFastAPI.lifespan_container`."""
        run: Run | None = self.lifespan_runs.latest_here
        if run is not None:
            return View(Standing(run, self.dependency_overrides_provider))
        if self.lifespan_runs.are_elsewhere:
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


def _closing(send: Send) -> Send:
    """Close a WebSocket whose value is unavailable, where FastAPI would answer 503.

    Only a connection that has been accepted can be closed with a code that the client sees.
    """
    is_accepted = is_denied = False

    async def send_or_close(message: Message) -> None:
        nonlocal is_accepted, is_denied
        kind = message["type"]
        if kind == "websocket.http.response.start" and _is_answering_unavailable():
            is_denied = True
            if not is_accepted:
                await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1013, "reason": "Try again later"})
        elif not is_denied:
            is_accepted = is_accepted or kind == "websocket.accept"
            await send(message)

    return send_or_close


def _is_answering_unavailable() -> bool:
    """Whether what is sent is the answer to our own error: it is sent while that is handled."""
    return isinstance(sys.exc_info()[1], UnavailableLifespanDependency)


class _NoState(dict[str, Any]):
    """The lifespan state where the server has none: takes our entry only, as if there were none."""

    def update(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]  # its one caller
        if state.keys() != {SCOPE_KEY}:
            raise RuntimeError('The server does not support "state" in the lifespan scope.')
