"""Options: what a declaration asks for beyond the value."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.exceptions import InvalidLifespanDependency, name_of

from .provider import how_to_call
from .signature import is_missing

Check = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Options:
    """What a declaration asks for beyond the value; durations in seconds."""

    refresh_every: float | None = None
    start_timeout: float | None = None
    stop_timeout: float | None = None
    health: Check | None = None

    def items(self) -> list[tuple[str, Any]]:
        """Those that are set."""
        found = ((name, getattr(self, name)) for name in Options.__slots__)
        return [(name, value) for name, value in found if value is not None]


NO_OPTIONS = Options()


def options_of(dependency: object, health: Any = None, **durations: object) -> Options:
    """Those that are given. Raise `InvalidLifespanDependency` for one that makes no sense."""
    __tracebackhide__ = True
    asked = {name: in_seconds(one) for name, one in durations.items() if one is not None}
    for name, seconds in asked.items():
        if not seconds > 0:
            raise InvalidLifespanDependency(
                dependency,
                f"cannot have {name}={durations[name]!r}",
                "Give seconds, more than 0, or a timedelta.",
            )
    if health is not None:
        _check_health(dependency, health)
    return NO_OPTIONS if not asked and health is None else Options(**asked, health=health)


def _check_health(dependency: object, health: Any) -> None:
    __tracebackhide__ = True
    try:
        hash(health)
        kind = how_to_call(health)
        if kind not in (Kind.FUNCTION, Kind.COROUTINE):
            raise TypeError("it has a `yield`")
        inspect.signature(health).bind(None)
    except ValueError:
        return  # written in C: nobody can tell
    except Exception as error:
        raise InvalidLifespanDependency(
            dependency,
            f"cannot have health={name_of(health)} ({error})",
            "Give a function that can be called with the value alone, async or not, and that "
            "raises or returns False if the value is not in order.",
        ) from None


def check_options(provider: Callable[..., Any], options: Options) -> None:
    """Raise if a provider cannot be given a time limit that is asked for."""
    __tracebackhide__ = True
    if options is NO_OPTIONS or is_missing(provider) or how_to_call(provider).is_async:
        return
    for name in ("start_timeout", "stop_timeout"):
        if getattr(options, name) is not None:
            raise InvalidLifespanDependency(
                provider,
                f"cannot have a {name}: it is synchronous, so it runs in a worker thread, which "
                "nothing can cancel",
                "Make it asynchronous, and run the part that blocks by `await "
                "anyio.to_thread.run_sync(function, abandon_on_cancel=True)`.",
            )


def in_seconds(duration: object) -> float:
    """A duration as a number; NaN if it is none, which is neither more nor less than any."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        return duration
    return math.nan


def seconds_given(name: str, duration: float | timedelta, *, may_be_0: bool = False) -> float:
    """A duration in seconds; raise `ValueError` if it makes no sense."""
    seconds = in_seconds(duration)
    if not (seconds > 0 or (may_be_0 and seconds == 0)):
        least = "0 or more" if may_be_0 else "more than 0"
        raise ValueError(f"{name}={duration!r}: give seconds, {least}, or a timedelta")
    return seconds
