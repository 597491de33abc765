"""Events: what happens to lifespan dependencies, told in one place."""

import inspect
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from .exceptions import location_of, name_of

logger = logging.getLogger("fastapi_lifespan_deps")

EventKind = Literal[
    "starting",
    "started",
    "start_failed",
    "stopping",
    "stopped",
    "stop_failed",
    "died",
    "refreshing",
    "refreshed",
    "refresh_failed",
    "overrides_applied",
    "drain_slow",
    "drain_timed_out",
    "unhealthy",
    "healthy",
    "up",
    "down",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LifespanEvent:
    """Something that has happened to a lifespan dependency, or to the application.

    Given to the listener of an application: `LifespanFastAPI(on_lifespan_event=listener)`. It
    holds no value of a dependency. Later versions may add kinds: leave alone what you don't know.

    Attributes:
        kind: what has happened. A dependency is `"starting"`, then `"started"` or
            `"start_failed"`; later `"stopping"`, then `"stopped"` or `"stop_failed"`; or it has
            `"died"`, ended by itself. One is `"refreshing"`, then `"refreshed"` or
            `"refresh_failed"`. Old instances are still used after 30 seconds for which somebody
            waits (`"drain_slow"`), or after their `drain_timeout` (`"drain_timed_out"`). A health
            check has begun to fail (`"unhealthy"`), or passes again (`"healthy"`). Changed
            `dependency_overrides` have come into force (`"overrides_applied"`). The application
            is `"up"`, and in the end `"down"`.
        provider: the callable; of a refresh, the one that was asked for; of overrides, the one
            that is overridden, or None if several are. None for `"up"` and `"down"`.
        name: the qualified name of the provider; None where there is no provider.
        where: its `file:line`, as far as it can be known; None where there is no provider.
        time_ns: when it happened, as `time.time_ns()` tells it.
        seconds: how long it took, for what ends something, and for a health check; for
            `"drain_timed_out"` and `"drain_slow"`, how long was waited. None for what begins.
        error: what went wrong, for the kinds that say so; also for `"overrides_applied"` and
            `"down"`, if something did.
        is_raised: whether somebody is told of `error` otherwise: the server or whoever asked, by an
            exception, or you, by a `"refresh_failed"` that follows. The log leaves it out.
    """

    kind: EventKind
    provider: Callable[..., Any] | None = None
    name: str | None = None
    where: str | None = None
    time_ns: int
    seconds: float | None = None
    error: BaseException | None = None
    is_raised: bool = False


Listener = Callable[[LifespanEvent], object]


class Events:
    """Tells each listener of each event, in the event loop of the run, once and in order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = [log, *listeners]

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def tell(
        self,
        kind: EventKind,
        provider: Callable[..., Any] | None = None,
        *,
        seconds: float | None = None,
        error: BaseException | None = None,
        is_raised: bool = False,
    ) -> None:
        """Tell what has happened now. What a listener raises is logged, and harms nothing."""
        event = LifespanEvent(
            kind=kind,
            provider=provider,
            name=None if provider is None else name_of(provider),
            where=None if provider is None else location_of(provider),
            time_ns=time.time_ns(),
            seconds=seconds,
            error=error,
            is_raised=is_raised and error is not None,
        )
        for listener in self._listeners:
            try:
                listener(event)
            except BaseException:
                with suppress(BaseException):  # the log may be what raises
                    logger.exception("%s failed to hear of %r", name_of(listener), kind)


def check_listener(listener: object) -> None:
    """Raise unless it can be a listener."""
    kinds = listener, getattr(listener, "__call__", None)  # noqa: B004  # itself, or of an object
    if not callable(listener) or any(map(inspect.iscoroutinefunction, kinds)):
        raise TypeError(
            f"on_lifespan_event={name_of(listener)}: give a plain function of one event. It is "
            "called in the event loop, and must not wait."
        )


def fields(kind: str, provider: Callable[..., Any] | None, **others: object) -> dict[str, object]:
    """The `extra` of a log record: what a structured log has beside the message."""
    found = {"lifespan_event": kind, **others}
    if provider is not None:
        found |= {"dependency": name_of(provider), "where": location_of(provider)}
    return found


# How the log says it: a level, and a message of the event's attributes.
_MESSAGES = {
    "starting": (logging.DEBUG, "Starting `%(name)s`"),
    "started": (logging.DEBUG, "Started `%(name)s`"),
    "start_failed": (logging.ERROR, "`%(name)s` failed to start"),
    "stopping": (logging.DEBUG, "Stopping `%(name)s`"),
    "stopped": (logging.DEBUG, "Stopped `%(name)s`"),
    "stop_failed": (logging.ERROR, "`%(name)s` failed to stop"),
    "died": (logging.ERROR, "`%(name)s` ended by itself while serving"),
    "refreshing": (logging.INFO, "Refreshing `%(name)s`"),
    "refreshed": (logging.INFO, "Refreshed `%(name)s`"),
    "refresh_failed": (logging.ERROR, "`%(name)s` was not refreshed"),
    "drain_slow": (logging.WARNING, "The old `%(name)s` is still waited for; %(error)s"),
    "drain_timed_out": (
        logging.WARNING,
        "The old `%(name)s` is stopped after %(seconds)g seconds, though %(error)s",
    ),
    "unhealthy": (logging.WARNING, "`%(name)s` is unhealthy: its check fails"),
    "healthy": (logging.INFO, "`%(name)s` is healthy again"),
}
_EXPLAINED = ("drain_slow", "drain_timed_out")  # whose error is a part of the message


def log(event: LifespanEvent) -> None:
    """Write an event to the log. An error that somebody is told of by himself is left out."""
    if event.kind == "overrides_applied" and event.error is not None:
        extra = fields(event.kind, event.provider, seconds=event.seconds)
        logger.error("A dependency override is not valid", exc_info=event.error, extra=extra)
    if event.kind not in _MESSAGES or event.is_raised:
        return
    level, message = _MESSAGES[event.kind]
    error = None if event.kind in _EXPLAINED else event.error
    texts = {"name": event.name, "seconds": event.seconds, "error": event.error}
    extra = fields(event.kind, event.provider, seconds=event.seconds)
    logger.log(level, message, texts, exc_info=error, extra=extra)
