"""Spans: what a run tells of its starts, stops and refreshes, for them to be traced.

What is here traces nothing, and imports nothing; `telemetry.py` has what does.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from fastapi_lifespan_deps.events import LifespanEvent

Step = Literal["start", "stop", "refresh"]

# Takes something from the context that it is called in; what it returns sets it in another one.
Carry = Callable[[], Callable[[], object]]


class Span:
    """Of one refresh; or of the start of one instance, and then of its stop.

    Told in the task of what it is about, which has a context of its own.
    """

    def begin(self, step: Step, replaced: Iterable[object] = ()) -> None:
        """Note that it begins; of a refresh, with the instances that are to go."""

    def end(self, error: BaseException | None = None) -> None:
        """Note that what began is over, if anything did; `error` says why it failed."""


_UNTRACED = Span()


class Spans:
    """Those of one run, from its startup to its shutdown."""

    carry: Carry | None = None
    """For what goes on in another context than that in which its span is current."""

    def of(self, provider: Callable[..., Any], instance: object = None) -> Span:
        """That of an instance; or of a refresh, which is asked for by whoever calls this."""
        return _UNTRACED

    def forget(self) -> None:
        """Let nothing that starts in this context belong to the span that is current in it."""

    def shut_down(self) -> None:
        """Note that the shutdown begins."""

    def hear(self, event: LifespanEvent) -> None:
        """Listen to what happens in the run."""
