"""Starts, stops and refreshes are traced and measured, where OpenTelemetry is configured."""

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

import anyio
import pytest
from anyio.from_thread import run as run_in_loop
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanEvent,
    LifespanFastAPI,
    LifespanTimeout,
    RefreshError,
    View,
    get_container,
)
from fastapi_lifespan_deps.events import Events
from fastapi_lifespan_deps.see.metrics import BUCKETS
from fastapi_lifespan_deps.see.providers import spans_of
from fastapi_lifespan_deps.see.spans import Spans
from tests.clients import PATIENCE, Gate, running, settle

pytestmark = pytest.mark.anyio

NEEDS_FASTAPI = pytest.mark.skipif(
    find_spec("fastapi.telemetry") is None, reason="FastAPI 0.142 and later"
)
PREFIX = "fastapi_lifespan_deps"


class Recorded:
    """Providers of the SDK, and what they were told."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans_from = TracerProvider(shutdown_on_exit=False)
        for processor in processors:
            self.spans_from.add_span_processor(processor)
        self.spans_from.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.metrics_from = MeterProvider([self.reader], shutdown_on_exit=False)
        self.log_exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.logs_from = LoggerProvider(shutdown_on_exit=False)
        self.logs_from.add_log_record_processor(SimpleLogRecordProcessor(self.log_exporter))
        self.tracer = self.spans_from.get_tracer("tests")

    @property
    def options(self) -> dict[str, Any]:
        """For `FastAPI(telemetry=...)`."""
        return {
            "tracer_provider": self.spans_from,
            "meter_provider": self.metrics_from,
            "logger_provider": self.logs_from,
        }

    def shut_down(self) -> None:
        self.spans_from.shutdown()
        self.metrics_from.shutdown()
        self.logs_from.shutdown()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """The last one of that name."""
        return [span for span in self.spans if _short(span.name) == name][-1]

    def tree(self) -> list[str]:
        """Each span that has ended, in that order: `name < its parent -> what it has a link to`.

        FastAPI's own are left out.
        """
        names = {span.context.span_id: _short(span.name) for span in self.spans if span.context}
        lines = []
        for span in self.spans:
            scope = span.instrumentation_scope
            if scope is None or scope.name == "fastapi":
                continue
            line = _short(span.name)
            if span.parent is not None:
                line += f" < {names.get(span.parent.span_id, 'one that goes on')}"
            for link in span.links:
                line += f" -> {names.get(link.context.span_id, 'one that goes on')}"
            lines.append(line)
        return lines

    async def until(self, line: str) -> None:
        """Wait for a line of the tree: threads take part in what happens."""
        with anyio.fail_after(PATIENCE):
            while line not in self.tree():
                await anyio.lowlevel.checkpoint()

    def metrics(self) -> dict[str, list[Any]]:
        """The data points of each metric of ours."""
        data = self.reader.get_metrics_data()
        return {
            metric.name.removeprefix(f"{PREFIX}."): list(metric.data.data_points)
            for resource in (data or MetricsData([])).resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == PREFIX
            for metric in scope.metrics
        }

    def values(self, metric: str, *attributes: str) -> dict[tuple[str, ...], Any]:
        """What each provider counts, or how many times it was measured, by further attributes."""
        return {
            (
                _short(point.attributes["code.function.name"]),
                *(point.attributes[name] for name in attributes if name in point.attributes),
            ): getattr(point, "value", getattr(point, "count", None))
            for point in self.metrics().get(metric, [])
        }

    def logs(self) -> list[Any]:
        """The log events of ours."""
        return [
            one.log_record
            for one in self.log_exporter.get_finished_logs()
            if one.instrumentation_scope and one.instrumentation_scope.name == PREFIX
        ]


def _short(name: str) -> str:
    """Without what a local function has in front of its name."""
    *step, function = name.split(" ")
    return " ".join([*step, function.split(".")[-1]])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """Global providers, for the time of a test; opentelemetry lets them be set but once."""
    found = Recorded()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", found.spans_from)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", found.metrics_from)
    monkeypatch.setattr("opentelemetry._logs._internal._LOGGER_PROVIDER", found.logs_from)
    yield found
    found.shut_down()


async def get_pool() -> AsyncIterator[str]:
    yield "pool"


PoolDep = Annotated[str, Depends(get_pool, scope="lifespan")]


def get_engine(pool: PoolDep) -> Iterator[str]:
    yield f"engine of {pool}"


EngineDep = Annotated[str, Depends(get_engine, scope="lifespan")]


def service(**options: Any) -> LifespanFastAPI:
    """Its routes take the engine, refresh the pool, and tell what current span a request has."""
    app = LifespanFastAPI(**options)

    @app.get("/")
    async def read(engine: EngineDep) -> Any:
        return engine

    @app.post("/refresh")
    async def refresh(container: Annotated[View, Depends(get_container)]) -> str:
        await container.refresh(get_pool)
        return f"{trace.get_current_span().get_span_context().trace_id:x}"

    return app


LIFE = [
    "start get_pool < lifespan startup",
    "start get_engine < lifespan startup",
    "lifespan startup",
    "stop get_engine < lifespan shutdown -> start get_engine",
    "stop get_pool < lifespan shutdown -> start get_pool",
    "lifespan shutdown",
]


async def test_a_life(recorded: Recorded) -> None:
    async with running(service()):
        assert recorded.tree() == LIFE[:3]
    assert recorded.tree() == LIFE
    start = recorded.span("start get_engine")
    assert start.attributes == {
        "code.function.name": f"{__name__}.get_engine",
        "code.file.path": __file__,
        "code.line.number": get_engine.__code__.co_firstlineno,
    }
    assert start.status.status_code is StatusCode.UNSET
    assert recorded.logs() == []


async def test_a_concurrent_start(recorded: Recorded) -> None:
    gate = Gate()

    async def get_one() -> AsyncIterator[int]:
        with recorded.tracer.start_as_current_span("one"):
            await gate.wait()
        yield 1

    async def get_other() -> AsyncIterator[int]:
        await gate.hold()
        with recorded.tracer.start_as_current_span("other"):
            gate.open()
        yield 2

    app = LifespanFastAPI(lifespan_start="concurrent")

    @app.get("/")
    def read(
        one: Annotated[int, Depends(get_one, scope="lifespan")],
        other: Annotated[int, Depends(get_other, scope="lifespan")],
    ) -> None: ...

    async with running(app):
        pass
    assert sorted(recorded.tree()) == [
        "lifespan shutdown",
        "lifespan startup",
        "one < start get_one",
        "other < start get_other",
        "start get_one < lifespan startup",
        "start get_other < lifespan startup",
        "stop get_one < lifespan shutdown -> start get_one",
        "stop get_other < lifespan shutdown -> start get_other",
    ]


KINDS = ["coroutine", "async generator", "function", "generator", "async manager", "manager"]


def traced(kind: str, tracer: trace.Tracer) -> Callable[..., Any]:
    """A provider of a kind, with spans of its own."""
    note = tracer.start_as_current_span

    async def coroutine() -> int:
        with note("inside start"):
            return 1

    async def async_generator() -> AsyncIterator[int]:
        with note("inside start"):
            await anyio.lowlevel.checkpoint()
        yield 1
        with note("inside stop"):
            await anyio.lowlevel.checkpoint()

    def function() -> int:
        with note("inside start"):
            return 1

    def generator() -> Iterator[int]:
        with note("inside start"):
            pass
        yield 1
        with note("inside stop"):
            pass

    made: dict[str, Callable[..., Any]] = {
        "coroutine": coroutine,
        "async generator": async_generator,
        "function": function,
        "generator": generator,
        "async manager": asynccontextmanager(async_generator),
        "manager": contextmanager(generator),
    }
    provider = made[kind]
    provider.__name__ = provider.__qualname__ = "get"
    return provider


@pytest.mark.parametrize("kind", KINDS)
async def test_spans_of_a_provider_are_inside(kind: str, recorded: Recorded) -> None:
    """What it calls is traced as a part of its start, and of its stop."""
    async with LifespanContainer(traced(kind, recorded.tracer)):
        pass
    stop = ["inside stop < stop get"] if kind not in ("coroutine", "function") else []
    assert recorded.tree() == [
        "inside start < start get",
        "start get < lifespan startup",
        "lifespan startup",
        *stop,
        "stop get < lifespan shutdown -> start get",
        "lifespan shutdown",
    ]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_provider_may_keep_a_span_open(is_async: bool, recorded: Recorded) -> None:
    """It is a part of the start, however long it lasts; what stops is traced as the stop."""
    note = recorded.tracer.start_as_current_span

    async def get_async() -> AsyncIterator[int]:
        with note("life"):
            yield 1
            with note("inside"):
                pass

    def get_sync() -> Iterator[int]:
        with note("life"):
            yield 1
            with note("inside"):
                pass

    get = get_async if is_async else get_sync
    get.__qualname__ = "get"
    async with LifespanContainer(get):
        pass
    assert recorded.tree()[2:] == [
        "inside < stop get",
        "life < start get",
        "stop get < lifespan shutdown -> start get",
        "lifespan shutdown",
    ]


async def test_a_task_of_a_provider_keeps_the_span_of_the_start(recorded: Recorded) -> None:
    gate = Gate()

    async def work() -> None:
        await gate.wait()
        with recorded.tracer.start_as_current_span("work"):
            pass
        with recorded.tracer.start_as_current_span("poll", context=Context()):
            pass

    async def get() -> AsyncIterator[int]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield 1

    async with LifespanContainer(get):
        gate.open()
    assert recorded.tree()[2:4] == ["work < start get", "poll"]


# What goes wrong


def failures(span: ReadableSpan) -> tuple[StatusCode, Any, list[Any]]:
    recorded = [dict(event.attributes or {})["exception.type"] for event in span.events]
    return span.status.status_code, (span.attributes or {}).get("error.type"), recorded


async def test_a_failing_start(recorded: Recorded) -> None:
    """The startup fails of it; what it needs belongs to the startup, also when it stops."""

    async def get_model(pool: PoolDep) -> None:
        raise ConnectionError("no model")

    def get_user(model: Annotated[None, Depends(get_model, scope="lifespan")]) -> None: ...

    with pytest.raises(ConnectionError):
        async with LifespanContainer(get_user, lifespan_start="concurrent"):
            pass
    assert recorded.tree() == [
        "start get_pool < lifespan startup",
        "start get_model < lifespan startup",
        "stop get_pool < lifespan startup -> start get_pool",
        "lifespan startup",
    ]
    failure = StatusCode.ERROR, "ConnectionError", ["ConnectionError"]
    assert failures(recorded.span("start get_model")) == failure
    assert failures(recorded.span("lifespan startup")) == failure
    assert recorded.values("start.duration", "error.type") == {
        ("get_pool",): 1,
        ("get_model", "ConnectionError"): 1,
    }
    assert recorded.values("stop.duration") == {("get_pool",): 1}
    assert recorded.values("instances") == {("get_pool",): 0}
    [record] = recorded.logs()
    assert record.event_name == "fastapi_lifespan_deps.start_failed"
    assert record.severity_text == "ERROR"
    assert record.body.startswith("`")
    assert record.body.endswith("get_model` failed to start")
    assert record.attributes["exception.type"] == "ConnectionError"
    assert record.attributes["code.function.name"].endswith(".get_model")
    span = recorded.span("start get_model").context
    assert span is not None
    assert record.span_id == span.span_id


async def test_a_start_that_is_cut_off(recorded: Recorded) -> None:
    async def get() -> None:
        await anyio.sleep_forever()

    with pytest.raises(LifespanTimeout):
        async with LifespanContainer(Depends(get, scope="lifespan", start_timeout=0.001)):
            pass
    name = "fastapi_lifespan_deps.LifespanTimeout"
    assert failures(recorded.span("start get")) == (StatusCode.ERROR, name, [name])
    assert recorded.values("start.duration", "error.type") == {("get", name): 1}
    assert recorded.values("instances") == {}


async def test_a_failing_stop(recorded: Recorded) -> None:
    async def get() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    with pytest.raises(ConnectionError):
        async with LifespanContainer(get):
            pass
    failure = StatusCode.ERROR, "ConnectionError", ["ConnectionError"]
    assert failures(recorded.span("start get"))[0] is StatusCode.UNSET
    assert failures(recorded.span("stop get")) == failure
    assert failures(recorded.span("lifespan shutdown")) == failure
    assert recorded.values("stop.duration", "error.type") == {("get", "ConnectionError"): 1}
    assert recorded.values("instances") == {("get",): 0}
    assert [one.event_name for one in recorded.logs()] == ["fastapi_lifespan_deps.stop_failed"]


@pytest.mark.parametrize("what", ["container", "application"])
async def test_what_ends_the_serving_is_no_failure_of_the_shutdown(
    what: str, recorded: Recorded
) -> None:
    async def get() -> AsyncIterator[int]:
        yield 1
        if is_failing:
            raise ConnectionError

    app = LifespanFastAPI()
    app.get("/")(_taking(get))
    is_failing = False
    for expected in (ValueError, ExceptionGroup):
        run = LifespanContainer(get) if what == "container" else app.router.lifespan_context(app)
        with pytest.raises(expected):
            async with run:
                raise ValueError
        shutdown = recorded.span("lifespan shutdown")
        assert (shutdown.status.status_code is StatusCode.ERROR) is is_failing
        is_failing = True


async def test_a_death(recorded: Recorded) -> None:
    """It belongs to nothing but the start; and the log event to no span."""
    gate = Gate()

    async def work() -> None:
        await gate.wait()
        raise ConnectionError("lost")

    async def get() -> AsyncIterator[int]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield 1

    died = anyio.Event()

    def listen(event: LifespanEvent) -> None:
        if event.kind == "died":
            died.set()

    with recorded.tracer.start_as_current_span("test"), pytest.raises(BaseExceptionGroup):
        async with LifespanContainer(get, on_lifespan_event=listen):
            gate.open()
            with anyio.fail_after(PATIENCE):
                await died.wait()
            assert recorded.values("deaths") == {("get",): 1}
            assert recorded.values("instances") == {("get",): 0}
    assert recorded.tree() == [
        "start get < lifespan startup",
        "lifespan startup < test",
        "stop get -> start get",
        "lifespan shutdown < test",
        "test",
    ]
    assert failures(recorded.span("stop get"))[:2] == (StatusCode.ERROR, "ExceptionGroup")
    [record] = recorded.logs()
    assert record.event_name == "fastapi_lifespan_deps.died"
    assert not record.span_id


# Refreshes


async def test_a_refresh(recorded: Recorded) -> None:
    """It is a root, with a link to who asked, and has the starts and the stops that it makes."""
    app = service()
    with recorded.tracer.start_as_current_span("startup of the test"):
        context = running(app)
        await context.__aenter__()
    with recorded.tracer.start_as_current_span("job"):
        draining = await app.lifespan_container.refresh(get_pool)
    await draining.wait()
    await context.__aexit__(None, None, None)
    old = recorded.tree()[3:-3]
    assert sorted(recorded.tree()) == sorted(
        [
            "start get_pool < lifespan startup",
            "start get_engine < lifespan startup",
            "lifespan startup < startup of the test",
            "startup of the test",
            "start get_pool < refresh get_pool",
            "start get_engine < refresh get_pool",
            "refresh get_pool -> job",
            "job",
            "stop get_engine < refresh get_pool -> start get_engine",
            "stop get_pool < refresh get_pool -> start get_pool",
            "stop get_engine < lifespan shutdown -> start get_engine",
            "stop get_pool < lifespan shutdown -> start get_pool",
            "lifespan shutdown",
        ]
    )
    assert old.index("stop get_engine < refresh get_pool -> start get_engine") < old.index(
        "stop get_pool < refresh get_pool -> start get_pool"
    )
    assert recorded.values("refreshes", "outcome") == {("get_pool", "success"): 1}
    attributes = recorded.span("refresh get_pool").attributes
    assert attributes is not None
    assert attributes["code.function.name"] == f"{__name__}.get_pool"


@NEEDS_FASTAPI
async def test_a_refresh_that_a_request_asks_for(recorded: Recorded) -> None:
    async with running(service()) as client:
        trace_id = (await client.post("/refresh")).json()
    [link] = recorded.span("refresh get_pool").links
    assert f"{link.context.trace_id:x}" == trace_id
    refresh = recorded.span("refresh get_pool").context
    request = recorded.span("POST /refresh").context
    assert request is not None
    assert refresh is not None
    assert f"{request.trace_id:x}" == trace_id
    assert refresh.trace_id != request.trace_id


async def test_an_old_instance_that_is_held(recorded: Recorded) -> None:
    """Its stop is a part of the refresh, though that is over by then."""
    gate, app = Gate(), service()

    @app.get("/hold")
    async def hold(engine: EngineDep) -> None:
        await gate.wait()

    async with running(app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get, "/hold")
        await gate.hold()
        await app.lifespan_container.refresh(get_pool)
        await app.lifespan_container.refresh(get_engine)
        await recorded.until("stop get_engine < refresh get_engine -> start get_engine")
        pool, engine = recorded.span("refresh get_pool"), recorded.span("refresh get_engine")
        assert "stop get_pool" not in [_short(span.name) for span in recorded.spans]
        gate.open()
        await recorded.until("stop get_pool < refresh get_pool -> start get_pool")
        stops = [span for span in recorded.spans if _short(span.name).startswith("stop ")]
        causes = {(_short(span.name), span.parent and span.parent.span_id) for span in stops}
        assert pool.context is not None
        assert engine.context is not None
        assert causes == {
            ("stop get_engine", pool.context.span_id),
            ("stop get_engine", engine.context.span_id),
            ("stop get_pool", pool.context.span_id),
        }


async def test_a_resource_preserving_refresh(recorded: Recorded) -> None:
    app = service()
    async with running(app):
        await app.lifespan_container.refresh(get_engine, policy="resource_preserving")
        assert recorded.tree()[3:] == [
            "stop get_engine < refresh get_engine -> start get_engine",
            "start get_engine < refresh get_engine",
            "refresh get_engine",
        ]


async def test_a_refresh_that_fails(recorded: Recorded) -> None:
    """What it has started stops as a part of it; what was to go serves on."""
    trouble: list[Exception] = []

    def get_session(engine: EngineDep) -> str:
        for error in trouble:
            raise error
        return f"session of {engine}"

    container = LifespanContainer(get_session)
    async with container:
        trouble.append(ConnectionError())
        with pytest.raises(ConnectionError):
            await container.refresh(get_engine)
        await recorded.until("stop get_engine < refresh get_engine -> start get_engine")
        assert recorded.tree()[4:] == [
            "start get_engine < refresh get_engine",
            "start get_session < refresh get_engine",
            "refresh get_engine",
            "stop get_engine < refresh get_engine -> start get_engine",
        ]
        failure = StatusCode.ERROR, "ConnectionError", ["ConnectionError"]
        assert failures(recorded.span("refresh get_engine")) == failure
        assert recorded.values("refreshes", "outcome") == {("get_engine", "failure"): 1}
        start, refresh = recorded.logs()
        assert start.event_name == "fastapi_lifespan_deps.start_failed"
        assert refresh.event_name == "fastapi_lifespan_deps.refresh_failed"
        span = recorded.span("refresh get_engine").context
        assert span is not None
        assert refresh.span_id == span.span_id
        trouble.clear()
        await container.refresh(get_session)
        await recorded.until("stop get_session < refresh get_session -> start get_session")
        assert recorded.tree()[8:] == [
            "start get_session < refresh get_session",
            "refresh get_session",
            "stop get_session < refresh get_session -> start get_session",
        ]
    assert recorded.tree()[11:] == [
        "stop get_session < lifespan shutdown -> start get_session",
        "stop get_engine < lifespan shutdown -> start get_engine",
        "stop get_pool < lifespan shutdown -> start get_pool",
        "lifespan shutdown",
    ]


async def test_a_refresh_that_cannot_begin(recorded: Recorded) -> None:
    """It waits for another one, and then there is nothing to refresh, nor to trace."""
    gate = Gate()
    calls = iter(range(3))

    async def get_slow() -> int:
        number = next(calls)
        if number:
            await gate.wait()
        return number

    container = LifespanContainer(get_slow, get_engine)

    async def refresh_slow() -> None:
        await container.refresh(get_slow)

    async def refresh_engine() -> None:
        with pytest.raises(RefreshError, match="its override is not valid"):
            await container.refresh(get_engine)

    def get_invalid(request: Request) -> None: ...

    async with container, anyio.create_task_group() as tasks:
        tasks.start_soon(refresh_slow)
        await gate.hold()
        tasks.start_soon(refresh_engine)
        await settle()
        container.dependency_overrides[get_engine] = get_invalid
        gate.open()
        await settle()
        container.dependency_overrides.clear()
    assert recorded.values("refreshes") == {("get_slow",): 1}
    assert "refresh get_engine" not in recorded.tree()


async def test_refresh_every(recorded: Recorded) -> None:
    """Nobody asks, and least of all who has started the application."""
    again = anyio.Event()
    calls = iter(range(1000))

    async def get() -> int:
        if next(calls) == 2:
            again.set()
        return 1

    with recorded.tracer.start_as_current_span("test"):
        async with LifespanContainer(Depends(get, scope="lifespan", refresh_every=0.001)):
            with anyio.fail_after(PATIENCE):
                await again.wait()
    assert recorded.tree()[2:4] == ["start get < refresh get", "refresh get"]


async def test_overrides(recorded: Recorded) -> None:
    """What starts for an override, and stops for the lack of it, is a root."""
    app = service()
    async with running(app) as client:
        app.dependency_overrides[get_engine] = traced("function", recorded.tracer)
        await client.get("/")
        app.dependency_overrides.clear()
        await client.get("/")
        await recorded.until("stop get -> start get")
        assert recorded.tree()[3:] == [
            "inside start < start get",
            "start get",
            "stop get -> start get",
        ]


# Metrics


async def test_metrics(recorded: Recorded) -> None:
    async with LifespanContainer(get_engine):
        assert recorded.values("instances") == {("get_pool",): 1, ("get_engine",): 1}
        async with LifespanContainer(get_pool):
            assert recorded.values("instances") == {("get_pool",): 2, ("get_engine",): 1}
    assert recorded.values("instances") == {("get_pool",): 0, ("get_engine",): 0}
    assert recorded.values("start.duration") == {("get_pool",): 2, ("get_engine",): 1}
    assert recorded.values("stop.duration") == {("get_pool",): 2, ("get_engine",): 1}
    points = recorded.metrics()["start.duration"]
    assert all(point.explicit_bounds == BUCKETS for point in points)
    assert all(0 < point.sum < PATIENCE for point in points)
    assert BUCKETS[-1] == 300


async def test_health(recorded: Recorded) -> None:
    """It is what was told last; a fresh instance is healthy until its check fails."""
    spans = spans_of(None)
    events = Events(spans.hear)
    events.tell("started", get_pool)
    assert recorded.values("health") == {}
    events.tell(cast(Any, "unhealthy"), get_pool, error=ConnectionError())
    events.tell(cast(Any, "unhealthy"), get_engine, error=ConnectionError())
    assert recorded.values("health") == {("get_pool",): 0, ("get_engine",): 0}
    events.tell(cast(Any, "healthy"), get_pool)
    assert recorded.values("health") == {("get_pool",): 1, ("get_engine",): 0}
    events.tell("started", get_engine)
    assert recorded.values("health") == {("get_pool",): 1, ("get_engine",): 1}


# Which runs


def test_a_command(recorded: Recorded) -> None:
    """Startup and shutdown are parts of it, though they are done in another thread."""
    container = LifespanContainer()

    @container.inject
    def work(engine: EngineDep) -> str:
        return engine

    with recorded.tracer.start_as_current_span("command"):
        container.run(work)
    assert recorded.tree() == [
        *LIFE[:2],
        "lifespan startup < command",
        *LIFE[3:5],
        "lifespan shutdown < command",
        "command",
    ]


def test_a_refresh_asked_in_a_thread(recorded: Recorded) -> None:
    app = service()

    @app.get("/thread")
    def refresh(container: Annotated[View, Depends(get_container)]) -> None:
        with recorded.tracer.start_as_current_span("thread"):
            run_in_loop(container.refresh, get_engine)

    with TestClient(app) as client:
        client.get("/thread")
    assert "refresh get_engine -> thread" in recorded.tree()


def test_a_span_around_the_start_that_has_ended(recorded: Recorded) -> None:
    """The task of the lifespan was started within it, and is no part of it any more."""
    client = TestClient(service())
    with recorded.tracer.start_as_current_span("setup"):
        client.__enter__()
    client.__exit__()
    assert recorded.tree() == [
        *LIFE[:2],
        "lifespan startup < setup",
        "setup",
        *LIFE[3:],
    ]


async def test_nothing_to_start(recorded: Recorded) -> None:
    """An application without lifespan dependencies has no spans; but if it fails, it has."""

    async def fail() -> None:
        raise ConnectionError

    async with running(LifespanFastAPI()):
        pass
    assert recorded.tree() == []
    app = LifespanFastAPI()
    app.router.on_startup.append(fail)
    with pytest.raises(ConnectionError):
        async with running(app):
            pass
    assert recorded.tree() == ["lifespan startup"]
    assert failures(recorded.span("lifespan startup"))[1] == "ConnectionError"


async def test_an_application_inside_a_provider(recorded: Recorded) -> None:
    """Its startup is a part of that start, and its shutdown of that stop."""
    inner = service()

    async def get() -> AsyncIterator[Any]:
        async with running(inner) as client:
            yield client

    async with LifespanContainer(get):
        pass
    assert recorded.tree() == [
        *LIFE[:2],
        "lifespan startup < start get",
        "start get < lifespan startup",
        "lifespan startup",
        *LIFE[3:5],
        "lifespan shutdown < stop get",
        "stop get < lifespan shutdown -> start get",
        "lifespan shutdown",
    ]


@NEEDS_FASTAPI
async def test_two_applications_with_providers_of_their_own(recorded: Recorded) -> None:
    one, other = Recorded(), Recorded()
    async with (
        running(service(telemetry=one.options)) as client,
        running(service(telemetry=other.options)),
    ):
        await client.post("/refresh")
        await one.until("stop get_pool < refresh get_pool -> start get_pool")
    assert recorded.tree() == []
    assert other.tree() == LIFE
    assert len(one.tree()) == 6 + 5
    assert other.values("start.duration") == {("get_pool",): 1, ("get_engine",): 1}
    assert other.values("refreshes") == {}
    assert one.values("start.duration") == {("get_pool",): 2, ("get_engine",): 2}
    assert one.values("refreshes") == {("get_pool",): 1}
    for each in (one, other):
        each.shut_down()


@NEEDS_FASTAPI
async def test_the_container_of_an_application_has_its_providers(recorded: Recorded) -> None:
    own = Recorded()
    async with LifespanContainer.for_app(service(telemetry=own.options)):
        pass
    assert own.tree() == LIFE
    assert recorded.tree() == []
    own.shut_down()


@NEEDS_FASTAPI
@pytest.mark.parametrize("option", ["tracing", "metrics", "logs"])
async def test_what_is_turned_off(option: str, recorded: Recorded) -> None:
    async def get() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    app = LifespanFastAPI(telemetry=cast(Any, {option: False}))
    app.get("/")(_taking(get))
    with pytest.raises(ConnectionError):
        async with running(app):
            pass
    assert bool(recorded.tree()) is (option != "tracing")
    assert bool(recorded.metrics()) is (option != "metrics")
    assert bool(recorded.logs()) is (option != "logs")


def _taking(provider: Callable[..., Any]) -> Callable[..., Any]:
    def endpoint(value: Annotated[Any, Depends(provider, scope="lifespan")]) -> None: ...

    return endpoint


@NEEDS_FASTAPI
@pytest.mark.parametrize("given", ["nothing", "one that does nothing"])
def test_without_a_provider(given: str) -> None:
    """What the API has of its own does nothing, so nothing is traced."""
    options = {} if given == "nothing" else {"tracer_provider": trace.NoOpTracerProvider()}
    assert type(spans_of(LifespanFastAPI(telemetry=cast(Any, options)))) is Spans
    assert type(spans_of(None)) is Spans


PROGRAM = """
import asyncio, sys
import fastapi
before = {name for name in sys.modules if name.startswith("opentelemetry")}
from typing import Annotated
from fastapi_lifespan_deps import Depends, LifespanFastAPI

async def get_pool():
    yield "pool"

app = LifespanFastAPI()

@app.get("/")
def read(pool: Annotated[str, Depends(get_pool, scope="lifespan")]): ...

async def main():
    async with app.router.lifespan_context(app):
        await app.lifespan_container.refresh(get_pool)

asyncio.run(main())
after = {name for name in sys.modules if name.startswith("opentelemetry")}
ours = {name for name in sys.modules if name.startswith("fastapi_lifespan_deps.see")}
print(sorted(after - before), "opentelemetry.sdk" in after)
print("fastapi_lifespan_deps.see.telemetry" in ours, "fastapi_lifespan_deps.see.metrics" in ours)
"""


def test_nothing_is_imported_where_nothing_is_configured() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stdout == "[] False\nFalse False\n"


# What it says of odd providers


class Connect:
    def __call__(self) -> int:
        return 1


class Liar:
    """It answers what it likes."""

    def __call__(self) -> int:
        return 1

    def __getattribute__(self, name: str) -> Any:
        if name == "__module__":
            raise RuntimeError("nobody knows")
        return super().__getattribute__(name)


class Settings:
    pass


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        (partial(get_pool), f"{__name__}.get_pool"),
        (Connect(), f"{__name__}.Connect"),
        (Settings, f"{__name__}.Settings"),
        (Liar(), "Liar"),
        (object, "builtins.object"),
    ],
)
async def test_names_of_providers(
    provider: Callable[..., Any], name: str, recorded: Recorded
) -> None:
    async with LifespanContainer(provider):
        pass
    attributes = recorded.spans[0].attributes
    assert attributes is not None
    assert attributes["code.function.name"] == name
    assert ("code.line.number" in attributes) is (provider is not object)


# What fails in telemetry


class Broken:
    """A provider whose every method raises, and so does what it gives."""

    def __init__(self, *works: str) -> None:
        self._works = works

    def __getattr__(self, name: str) -> Any:
        if name in self._works:
            return lambda *_, **__: self
        raise ConnectionError(f"telemetry has no {name}")


BROKEN = {
    "spans": ("opentelemetry.trace._TRACER_PROVIDER", Broken("get_tracer")),
    "ends": (
        "opentelemetry.trace._TRACER_PROVIDER",
        Broken("get_tracer", "start_span", "get_span_context"),
    ),
    "tracers": ("opentelemetry.trace._TRACER_PROVIDER", Broken()),
    "metrics": (
        "opentelemetry.metrics._internal._METER_PROVIDER",
        Broken(
            "get_meter",
            *(f"create_{kind}" for kind in ("histogram", "counter", "up_down_counter", "gauge")),
        ),
    ),
    "meters": ("opentelemetry.metrics._internal._METER_PROVIDER", Broken()),
    "logs": ("opentelemetry._logs._internal._LOGGER_PROVIDER", Broken("get_logger")),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_broken_harms_nothing(
    what: str,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has it once for each run, and the other signals work."""
    place, broken = BROKEN[what]

    async def get_sick(engine: EngineDep) -> AsyncIterator[str]:
        yield engine
        raise ConnectionError("at the stop")

    container = LifespanContainer(get_sick)
    with caplog.at_level(logging.WARNING, "fastapi_lifespan_deps"), monkeypatch.context() as patch:
        patch.setattr(place, broken)
        with pytest.raises(ExceptionGroup, match="several errors while stopping"):
            async with container:
                assert container.get(get_sick) == "engine of pool"
                await container.refresh(get_pool)
    [record] = [one for one in caplog.records if one.message.startswith("OpenTelemetry failed")]
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert bool(recorded.metrics()) is (what not in ("metrics", "meters"))
    assert bool(recorded.tree()) is (what not in ("spans", "ends", "tracers"))
    assert bool(recorded.logs()) is (what != "logs")


async def test_where_no_provider_can_be_asked_for_there_is_nothing(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ConnectionError

    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", broken)
    async with LifespanContainer(get_pool):
        pass
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert record.message == "OpenTelemetry failed, so it has nothing of this run"
    assert recorded.metrics() == {}


async def test_an_application_without_lifespan_dependencies_asks_for_nothing(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FastAPI, which asks for its own tracer when the first request comes."""
    asked: list[str] = []
    for signal, name in (("trace", "tracer"), ("metrics", "meter"), ("_logs", "logger")):
        provider = getattr(import_module(f"opentelemetry.{signal}"), f"get_{name}_provider")()
        monkeypatch.setattr(provider, f"get_{name}", lambda name, *_, **__: asked.append(name))
    async with LifespanContainer():
        pass
    app = LifespanFastAPI()
    async with app.router.lifespan_context(app):
        pass
    assert asked == []


class BrokenSpan(trace.NonRecordingSpan):
    @property
    def end_time(self) -> int:
        raise ConnectionError


async def test_a_current_span_that_is_broken(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no shutdown then, and stops are roots."""
    container = LifespanContainer(get_engine)
    async with container:
        entered = trace.use_span(BrokenSpan(trace.INVALID_SPAN_CONTEXT))
        entered.__enter__()
    entered.__exit__(None, None, None)
    assert recorded.tree()[3:] == [
        "stop get_engine -> start get_engine",
        "stop get_pool -> start get_pool",
    ]
    assert [one.message for one in caplog.records] == [
        "OpenTelemetry failed, so what it has of this run may not be whole",
    ]


class BrokenExporter(SpanExporter):
    def export(self, spans: Any) -> Any:
        raise ConnectionError("nobody is there")


async def test_a_broken_exporter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded(SimpleSpanProcessor(BrokenExporter()))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", recorded.spans_from)
    async with LifespanContainer(get_engine):
        pass
    assert recorded.tree() == LIFE
    recorded.shut_down()


async def test_telemetry_that_ends_first(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    """It was shut down before the application stops."""
    app = service()
    async with running(app) as client:
        recorded.shut_down()
        assert (await client.get("/")).json() == "engine of pool"
        await app.lifespan_container.refresh(get_pool)
    assert recorded.tree() == LIFE[:3]


async def test_telemetry_that_is_configured_at_the_startup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As FastAPI configures it, before the application sees that it starts; and it has all spans
    before the server hears of the end.
    """
    recorded = Recorded()
    traced: list[str] = []

    async def receive() -> dict[str, Any]:
        if traced:
            return {"type": "lifespan.shutdown"}
        monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", recorded.spans_from)
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        traced.append(message["type"])
        traced.extend(recorded.tree())

    await service()({"type": "lifespan", "app": None, "state": {}}, receive, send)
    assert traced == [
        "lifespan.startup.complete",
        *LIFE[:3],
        "lifespan.shutdown.complete",
        *LIFE,
    ]
    recorded.shut_down()


async def test_an_application_that_starts_twice(recorded: Recorded) -> None:
    app = service()
    for _ in range(2):
        async with running(app):
            pass
    assert recorded.tree() == LIFE * 2
    assert recorded.values("start.duration") == {("get_pool",): 2, ("get_engine",): 2}


async def test_a_mounted_application_joins_the_run(recorded: Recorded) -> None:
    inner = service()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    outer = LifespanFastAPI(lifespan=lifespan)
    outer.mount("/inner", inner)
    async with running(outer) as client:
        assert (await client.get("/inner/")).json() == "engine of pool"
    assert recorded.tree() == LIFE
