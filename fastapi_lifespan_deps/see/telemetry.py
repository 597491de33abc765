"""Telemetry: the OpenTelemetry spans, metrics and log events of one run.

Only `providers.py` imports this, where there is somebody to tell: opentelemetry comes with it.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import Token
from functools import cached_property, partial
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, NoOpLoggerProvider, SeverityNumber
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.trace import Link, NoOpTracerProvider, StatusCode, TracerProvider

from fastapi_lifespan_deps.events import LifespanEvent, logger
from fastapi_lifespan_deps.exceptions import name_of

from .attributes import code_attributes, error_type
from .metrics import SCOPE, Metrics
from .spans import Span, Spans, Step

# The events that the logs tell, and how.
_EVENTS = {
    "start_failed": "`%s` failed to start",
    "stop_failed": "`%s` failed to stop",
    "died": "`%s` ended by itself while serving",
    "refresh_failed": "`%s` was not refreshed",
}


class Telemetry(Spans):
    """What one run tells OpenTelemetry. A signal without a provider is dropped.

    Parents are given explicitly, for what is current says little: tasks of a run start in one
    context, whoever has caused them. A start belongs to the `lifespan startup` or to the refresh
    that it is made for, a stop to the `lifespan shutdown`.

    The stop of an old instance belongs to the refresh that replaces it, though it comes after the
    end of that span, when the last request lets it go. As a root with a link it would be sampled
    by itself, and of a refresh half would be seen. What stops for another reason, for an override
    or because it died, is a root. Each stop has a link to its start.

    A refresh is a root with a link to the span in which it was asked for: it is done by a task of
    its own, for everybody, and may outlive a request.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        logger_provider: LoggerProvider | None,
    ) -> None:
        self._providers = tracer_provider, meter_provider, logger_provider
        self.harmless = Harmless()
        # Of what has begun; not of what has ended, unless somebody still knows it.
        self.living: WeakKeyDictionary[object, InstanceSpan] = WeakKeyDictionary()
        self.refreshing: Context | None = None  # that of the refresh under way
        self._startup: Phase | None = Phase(self, "lifespan startup")
        self._shutdown: Phase | None = None

    # Asked for when there is something to tell: an application may have nothing.

    @cached_property
    def tracer(self) -> trace.Tracer:
        return (self._providers[0] or NoOpTracerProvider()).get_tracer(SCOPE)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self._providers[1] or NoOpMeterProvider())

    @cached_property
    def _logger(self) -> Logger:
        return (self._providers[2] or NoOpLoggerProvider()).get_logger(SCOPE)

    @staticmethod
    def carry() -> Callable[[], object]:
        return partial(attach, get_current())

    def forget(self) -> None:
        attach(Context())

    def of(self, provider: Callable[..., Any], instance: object = None) -> Span:
        if instance is None:
            return RefreshSpan(self, provider)
        span = self.living[instance] = InstanceSpan(self, provider)
        return span

    def shut_down(self) -> None:
        with self.harmless:
            self._shutdown = Phase(self, "lifespan shutdown")

    def context_for(self, step: Step, replaced_by: Context | None) -> Context:
        """The parent of a start or a stop."""
        if step == "stop" and self._shutdown is not None:
            return self._shutdown.context
        found = self.refreshing if step == "start" else replaced_by
        if found is None and self._startup is not None:
            return self._startup.context
        return found or Context()

    def hear(self, event: LifespanEvent) -> None:
        if event.provider is not None:
            with self.harmless:
                self.metrics.hear(event.kind, event.provider)
        with self.harmless:
            if event.kind in ("up", "down"):
                self._end_phase(event.error)
            elif event.kind in _EVENTS and event.provider is not None:
                self._logger.emit(
                    event_name=f"{SCOPE}.{event.kind}",
                    timestamp=event.time_ns,
                    severity_number=SeverityNumber.ERROR,
                    severity_text="ERROR",
                    body=_EVENTS[event.kind] % event.name,
                    attributes=code_attributes(event.provider),
                    exception=event.error,
                )

    def _end_phase(self, error: BaseException | None) -> None:
        phase = self._shutdown or self._startup
        self._startup = self._shutdown = None
        if phase is not None:
            phase.end(error)


class Harmless(AbstractContextManager[None]):
    """Lets nothing out that goes wrong in telemetry. The first time, the log has it."""

    def __init__(self) -> None:
        self._is_known = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._is_known:
            self._is_known = True
            logger.warning(
                "OpenTelemetry failed, so what it has of this run may not be whole", exc_info=error
            )
        return True


class Phase:
    """The startup or the shutdown. It has a span if something starts or stops in it, or it fails.

    That is a child of what is current where the phase begins: of a command, say. But not of what
    has ended: a task may have been started within it long ago.
    """

    def __init__(self, run: Telemetry, name: str) -> None:
        self._run = run
        self._name = name
        self._began = time_ns()
        # What has ended the serving, or the code that was to run, is no failure of the shutdown.
        self._raised = sys.exc_info()[1]
        self._around = get_current()
        if getattr(trace.get_current_span(), "end_time", None) is not None:
            self._around = Context()
        self._span: trace.Span | None = None

    @property
    def context(self) -> Context:
        return trace.set_span_in_context(self._its_span(), self._around)

    def _its_span(self) -> trace.Span:
        if self._span is None:
            self._span = self._run.tracer.start_span(
                self._name, context=self._around, start_time=self._began
            )
        return self._span

    def end(self, error: BaseException | None) -> None:
        if error is self._raised:
            error = None
        if error is not None or self._span is not None:
            _end(self._its_span(), error)


class CurrentSpan(Span):
    """One that is current in its task, from its beginning to its end."""

    def __init__(self, run: Telemetry, provider: Callable[..., Any]) -> None:
        self._run = run
        self._provider = provider
        self._span: trace.Span | None = None
        self._token: Token[Context] | None = None

    def _open(self, step: Step, parent: Context, links: Iterable[trace.SpanContext]) -> Context:
        self._span = self._run.tracer.start_span(
            f"{step} {name_of(self._provider)}",
            context=parent,
            links=[Link(one) for one in links if one.is_valid],
            attributes=code_attributes(self._provider),
        )
        context = trace.set_span_in_context(self._span, parent)
        self._token = attach(context)
        return context

    def _close(self, error: BaseException | None) -> None:
        span, token, self._span, self._token = self._span, self._token, None, None
        try:
            if span is not None:
                _end(span, error)
        finally:
            if token is not None:
                detach(token)


class InstanceSpan(CurrentSpan):
    """That of a start, which becomes that of the stop."""

    def __init__(self, run: Telemetry, provider: Callable[..., Any]) -> None:
        super().__init__(run, provider)
        self.step: Step | None = None
        self.started_for: Context | None = None  # the refresh that it is a part of
        self.replaced_by: Context | None = None  # another refresh
        self._began = 0.0
        self._start: tuple[trace.SpanContext, ...] = ()

    def begin(self, step: Step, replaced: Iterable[object] = ()) -> None:
        run = self._run
        self.step, self._began = step, perf_counter()
        if step == "start":
            self.started_for = run.refreshing
        with run.harmless:
            context = self._open(step, run.context_for(step, self.replaced_by), self._start)
            self._start = (trace.get_current_span(context).get_span_context(),)

    def end(self, error: BaseException | None = None) -> None:
        run = self._run
        if self.step is None:  # what it needs has not started
            return
        with run.harmless:
            run.metrics.took(self.step, self._provider, perf_counter() - self._began, error)
        with run.harmless:
            self._close(error)


class RefreshSpan(CurrentSpan):
    """That of a refresh: a root, with a link to what was current where it was asked for."""

    def __init__(self, run: Telemetry, provider: Callable[..., Any]) -> None:
        super().__init__(run, provider)
        self._asked_in = trace.INVALID_SPAN_CONTEXT
        self._context: Context | None = None
        with run.harmless:
            self._asked_in = trace.get_current_span().get_span_context()

    def begin(self, step: Step, replaced: Iterable[object] = ()) -> None:
        run = self._run
        with run.harmless:
            self._context = run.refreshing = self._open(step, Context(), [self._asked_in])
            for one in replaced:
                span = run.living[one]
                span.replaced_by = span.replaced_by or self._context

    def end(self, error: BaseException | None = None) -> None:
        run, context = self._run, self._context
        if context is None:
            return
        run.refreshing = None
        if error is not None:
            for span in list(run.living.values()):
                if span.replaced_by is context and span.step == "start":
                    span.replaced_by = None  # it serves on
                if span.started_for is context:
                    span.replaced_by = context  # it was of no use
        with run.harmless:
            self._close(error)


def _end(span: trace.Span, error: BaseException | None) -> None:
    if error is not None:
        span.set_attribute("error.type", error_type(error))
        span.record_exception(error)
        span.set_status(StatusCode.ERROR)
    span.end()
