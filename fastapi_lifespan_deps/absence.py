"""Absence: why there is no value, and the error that says so, whoever asks."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import isclass
from typing import Annotated, Any, Protocol, get_origin

from .exceptions import (
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    location_of,
    name_of,
)

Provider = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Absence:
    """Why something that is planned has no instance."""

    failure: BaseException | None = None
    """What the last start raised."""

    retry_after: int | None = None
    """For what a refresh has stopped before it starts it again: the seconds that may take."""

    @property
    def is_withdrawn(self) -> bool:
        return self.retry_after is not None

    def error(self, provider: Provider) -> UninitializedLifespanDependency:
        error: UninitializedLifespanDependency
        why = "The exception that caused this one says why."
        if self.retry_after is None:
            error = UninitializedLifespanDependency(provider, "it failed to start", why)
        elif self.failure is None:
            problem, advice = "it is being refreshed", "Try again when that is done."
            error = UnavailableLifespanDependency(provider, problem, advice, self.retry_after)
        else:
            problem = "a refresh has stopped it, and failed to start it again"
            advice = f"{why} Refresh it again."
            error = UnavailableLifespanDependency(provider, problem, advice, self.retry_after)
        error.__cause__ = self.failure
        return error


# For one value of a run


def ended_by_itself(
    provider: Provider, cause: BaseException | None
) -> UninitializedLifespanDependency:
    error = UninitializedLifespanDependency(
        provider,
        "it ended by itself while serving",
        "A refresh starts it again. The exception that caused this one, if any, says what "
        "happened.",
    )
    error.__cause__ = cause
    return error


def invalid_override(provider: Provider, cause: Exception) -> UninitializedLifespanDependency:
    error = UninitializedLifespanDependency(
        provider,
        "the override that is in force is not valid",
        "The exception that caused this one says why.",
    )
    error.__cause__ = cause
    return error


def many_places(provider: Provider) -> UninitializedLifespanDependency:
    return UninitializedLifespanDependency(
        provider,
        "it has use_cache=False wherever it is declared here, so there is no one value",
        "Declare it as a parameter, or once with the default use_cache=True.",
    )


def not_declared(provider: Provider) -> UninitializedLifespanDependency:
    advice = (
        "Declare it in a route, a dependency or a hook that exists at startup, or in the "
        "`dependencies=[...]` of the application; routes that the lifespan function adds count."
    )
    if isclass(provider) or get_origin(provider) is Annotated:
        by_provider = "A value is found by its provider, the very callable that `Depends` is given"
        advice = f"{by_provider}, not by its type. {advice}"
    return UninitializedLifespanDependency(
        provider, "nothing asked for it when the application started", advice
    )


def not_known(provider: Provider, function: Provider) -> UninitializedLifespanDependency:
    return UninitializedLifespanDependency(
        provider,
        f"`{name_of(function)}` ({location_of(function)}) declares it, and was not known to the "
        "container that calls it when that started",
        "Name it in its `handlers=[...]`, or put its `inject` above it, before the start. If it "
        "was started with `only=[...]`, name it there.",
    )


def stopped(provider: Provider) -> UninitializedLifespanDependency:
    return UninitializedLifespanDependency(
        provider,
        "it has been stopped",
        "The application is stopping, or a refresh or another override has replaced it and "
        "nobody knew, or waited any longer, for this request to use the old value.",
    )


def unknown_place(provider: Provider) -> UninitializedLifespanDependency:
    return UninitializedLifespanDependency(
        provider,
        "it has use_cache=False, and its place is not known here: the route, or another one "
        "of the same router, was added while the application served, or the declaration "
        "stands in a dependency override",
        "Add routes before the application starts, or use the default use_cache=True.",
    )


# For all values of an application


class Runs(Protocol):
    """The runs of an application, as far as matters here; see run.py."""

    @property
    def are_there(self) -> bool: ...
    @property
    def are_here(self) -> bool: ...
    @property
    def are_empty(self) -> bool: ...
    def find(self, scope: Any) -> Any: ...


def runs_of(scope: Any) -> Runs | None:
    """The runs of the application that is named in a scope; None if it doesn't know them."""
    # Starlette keeps the outermost router: a mounted application runs with that
    routers = scope.get("router"), getattr(scope.get("app"), "router", None)
    known = (getattr(router, "lifespan_runs", None) for router in routers)
    return next((one for one in known if one is not None), None)


def current_run(scope: Any) -> Any:
    """The run with values that a request would be pinned to, if it came to the application.

    None if there is none. For those who make a request of their own and name the application.
    """
    runs = runs_of(scope)
    run = None if runs is None else runs.find(scope)
    return None if run is None or run.is_empty else run


def without_request(provider: Provider) -> UninitializedLifespanDependency:
    return UninitializedLifespanDependency(
        provider,
        "somebody else than FastAPI has called what declares it, without a request",
        outside_of_requests(provider),
    )


def outside_of_requests(provider: Provider) -> str:
    """The advice for code that is not called by FastAPI."""
    is_container = hasattr(provider, "__lifespan_container__")
    item = "" if is_container else f"[{name_of(provider)}]"
    return f"Outside of requests, ask the running application: `app.lifespan_container{item}`."


def not_running(provider: Provider, scope: Any) -> UninitializedLifespanDependency:
    """Say why a request was pinned to no run."""
    app, runs = scope.get("app"), runs_of(scope)
    if app is None and runs is None:
        problem = "the request names no application: whoever made it left `app` out of its scope"
        advice = outside_of_requests(provider)
    elif runs is None:
        problem = (
            f'the application is a plain {type(app).__name__}, which does not know scope="lifespan"'
        )
        advice = "Make it a LifespanFastAPI, or call enable_lifespan_scope(app) before it starts."
    elif not runs.are_there and _is_of_test_client(scope):
        problem = "the application is not running"
        advice = (
            "A TestClient starts it when it is entered: write `with TestClient(app) as client:`."
        )
    elif not runs.are_there:
        problem = "the application is not running"
        advice = (
            "Its lifespan has not been entered, or has ended. In tests, write `with "
            "TestClient(app) as client:`; without a server, `async with "
            "app.router.lifespan_context(app):`. A server must not have its lifespan protocol "
            "turned off, and enable_lifespan_scope(app) must come before the start. A mounted "
            "application runs with the one that it is mounted in: make that one a LifespanFastAPI."
        )
    elif not runs.are_here:
        problem = "the application was started in another event loop, and its values belong there"
        advice = "Send requests in the event loop, and so in the thread, that runs the lifespan."
    elif runs.are_empty:
        problem = 'nothing had scope="lifespan" when the application started'
        advice = (
            "Declare it in a route, or in the `dependencies=[...]` of the application; or set the "
            "override that needs it before the start."
        )
    else:
        problem = "the request belongs to a run that has ended"
        advice = "Send requests with the state of a run that is alive."
    return UninitializedLifespanDependency(provider, problem, advice)


def _is_of_test_client(scope: Any) -> bool:
    """Whether a `TestClient` sends the request to the application itself, not to a parent."""
    return (scope.get("client") or ("",))[0] == "testclient" and not scope.get("root_path")
