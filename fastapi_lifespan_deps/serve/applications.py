"""`LifespanFastAPI`, and the same for an application that exists already."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Concatenate, TypeVar, Unpack

from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.call.view import View
from fastapi_lifespan_deps.declare.planning import Planning
from fastapi_lifespan_deps.events import LifespanEvent
from fastapi_lifespan_deps.exceptions import LifespanDependencyError
from fastapi_lifespan_deps.live.run import UNCHANGED, LifespanStart, Observer
from fastapi_lifespan_deps.see.graph import LifespanGraph, graph_of

from .options import FastAPIOptions
from .routing import LifespanRouter

App = TypeVar("App", bound=FastAPI)


class LifespanFastAPI(FastAPI):
    """A `FastAPI` application that knows `Depends(..., scope="lifespan")`.

    It takes the arguments of `FastAPI` and behaves as `FastAPI` does, until something declares
    a lifespan dependency: a route, a dependency, a startup or shutdown hook, or the `lifespan`
    function after its application parameter. These are started before the application serves,
    once for each time that it is started, and stopped when it stops.

    Args:
        lifespan: FastAPI's `lifespan`.
        lifespan_start: `"sequential"`, the default, starts one lifespan dependency after the
            other, and stops them in reverse. `"concurrent"` starts each as soon as what it
            depends on has started, and stops each as soon as what depends on it has stopped.
        on_lifespan_event: a listener, which is given a `LifespanEvent` whenever something happens
            to a lifespan dependency: a plain function, called in the event loop of the
            application, once for each event, in order. It must not block. What it raises is
            logged, and harms nothing.
        handlers: functions that the application itself calls outside of requests, such as a
            consumer that its `lifespan` starts. What they declare is started; they are called by
            `await app.lifespan_container.call(function, ...)`.
        slow_after: seconds, or a `timedelta`, after which the log warns that a lifespan dependency
            is still starting, or stopping, and at which line; again after twice the time, four
            times, and so on. `None` turns it off.
        **options: FastAPI's other arguments.

    Example:
        ```python
        app = LifespanFastAPI()

        @app.get("/")
        async def read_root(
            pool: Annotated[Pool, Depends(get_pool, scope="lifespan")],
        ) -> str:
            return await pool.fetch_value("select version()")
        ```
    """

    def __init__(
        self,
        *,
        lifespan: Callable[Concatenate[Any, ...], AbstractAsyncContextManager[Any]] | None = None,
        lifespan_start: LifespanStart | None = None,
        on_lifespan_event: Callable[[LifespanEvent], object] | None = None,
        handlers: Sequence[Callable[..., Any]] | None = None,
        slow_after: float | timedelta | None = 10.0,
        **options: Unpack[FastAPIOptions],
    ) -> None:
        super().__init__(lifespan=lifespan, **options)
        enable_lifespan_scope(
            self,
            lifespan_start=lifespan_start,
            on_lifespan_event=on_lifespan_event,
            handlers=handlers,
            slow_after=slow_after,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "router":  # a subclass may assign one of its own, which is to know the scope
            if issubclass(type(value), APIRouter):
                LifespanRouter.adopt(value, self, former=self.__dict__.get(name))
            else:
                warnings.warn(
                    f"The application's router is now a {type(value).__name__}, and no APIRouter: "
                    "it does not start lifespan dependencies.",
                    stacklevel=2,
                )
        super().__setattr__(name, value)

    @property
    def lifespan_container(self) -> View:
        """The running container: for schedulers, signal handlers, whatever is not a request.

        It belongs to the run of the application in this event loop, the latest if there are
        several, and gives the values that are current when it is asked.

        Raises:
            LifespanNotRunning: the application does not run in this event loop.

        Example:
            ```python
            async def reload() -> None:
                await app.lifespan_container.refresh(get_model)
            ```
        """
        return lifespan_container(self)


def enable_lifespan_scope(
    app: App,
    *,
    lifespan_start: LifespanStart | None = None,
    on_lifespan_event: Callable[[LifespanEvent], object] | None = None,
    handlers: Sequence[Callable[..., Any]] | None = None,
    slow_after: float | timedelta | None = UNCHANGED,
) -> App:
    """Give an application whose class is fixed what a `LifespanFastAPI` has.

    Call it before the application starts; where it stands among the routes makes no difference.
    A second call changes nothing but `lifespan_start`, `on_lifespan_event`, `handlers` and
    `slow_after`, if they are given (see `LifespanFastAPI`): the new ones take the place of the old
    ones.
    Returns the application itself. Its running container is `app.router.lifespan_container`.

    Example:
        ```python
        app = enable_lifespan_scope(create_app())
        ```
    """
    options = LifespanRouter.options_of(app.router).changed(
        lifespan_start, on_lifespan_event, slow_after
    )
    LifespanRouter.adopt(app.router, app, options, handlers)
    return app


def lifespan_container(app: FastAPI) -> View:
    """The running container of an application, whatever its class: see `LifespanFastAPI`.

    Raises:
        LifespanDependencyError: the application does not know the lifespan scope.
        LifespanNotRunning: the application does not run in this event loop.

    Example:
        ```python
        async def reload() -> None:
            await lifespan_container(app).refresh(get_model)
        ```
    """
    return lifespan_router(app).lifespan_container


def lifespan_graph(app: FastAPI | LifespanContainer) -> LifespanGraph:
    """What an application, or a container by itself, would start, and what depends on what.

    It is planned, from the routes that there are now, and under the overrides that are set now;
    nothing is started. Routes that a `lifespan` function or a hook adds are not among them.
    `View.graph` tells what runs.

    Raises:
        LifespanDependencyError: the application does not know the lifespan scope; or what the
            start would raise: what is declared makes no sense.

    Example:
        ```python
        print(lifespan_graph(app).mermaid())
        ```
    """
    planning = planning_of(app)
    plan = planning.checked()
    return graph_of(plan, planning.declarations(plan))


def planning_of(app: FastAPI | LifespanContainer) -> Planning:
    """What plans that which an application or a container declares, and starts nothing."""
    if isinstance(app, LifespanContainer):
        return app._planning()
    return lifespan_router(app).planning()


def has_startup_code(app: FastAPI | LifespanContainer) -> bool:
    """Whether there is code of the application's own that may alter it when it starts."""
    return isinstance(app, FastAPI) and lifespan_router(app).has_startup_code


def observe(app: FastAPI | LifespanContainer, observer: Observer) -> None:
    """Tell an observer of the runs to come."""
    if isinstance(app, LifespanContainer):
        app._options = app._options.observed_by(observer)
    else:
        router = lifespan_router(app)
        LifespanRouter.adopt(router, app, LifespanRouter.options_of(router).observed_by(observer))


def lifespan_router(app: FastAPI) -> LifespanRouter:
    """The router of an application that knows the lifespan scope; raise for another one."""
    router = getattr(app, "router", None)
    if isinstance(router, LifespanRouter):
        return router
    raise LifespanDependencyError(
        f'The application is a plain {type(app).__name__}, which does not know scope="lifespan". '
        "Make it a LifespanFastAPI, or call enable_lifespan_scope(app) before it starts."
    )
