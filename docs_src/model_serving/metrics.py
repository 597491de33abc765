"""What the service tells Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    UninitializedLifespanDependency,
    get_container,
)

from .files import get_model_files

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one run: they begin at nothing when the application starts."""

    def __init__(self) -> None:
        # Of its own: prometheus-client's default one lives as long as the process.
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.queue_size = Gauge(
            "model_serving_queue_size", "Texts that wait for a batch.", registry=registry
        )
        self.batch_size = Histogram(
            "model_serving_batch_size",
            "Texts in a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "model_serving_queue_seconds",
            "How long a text waited for its batch, its tokenizing included.",
            buckets=SECONDS,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "model_serving_inference_seconds",
            "How long a forward pass took.",
            buckets=SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "model_serving_requests_total",
            "Requests that were answered.",
            ("method", "path", "status"),
            registry=registry,
        )
        self.swaps = Counter(
            "model_serving_swaps_total",
            "Models that were asked for: ok, refused after a look at the files, failed to load.",
            ("result",),
            registry=registry,
        )
        for result in ("ok", "refused", "failed"):
            self.swaps.labels(result)
        self.model = Gauge(
            "model_serving_model_info",
            "1 for the model that serves.",
            ("model", "version"),
            registry=registry,
        )


def get_metrics() -> Metrics:
    return Metrics()


MetricsDep = Annotated[Metrics, Depends(get_metrics, scope="lifespan")]


# --8<-- [start:middleware]
class CountRequests:
    """ASGI middleware that counts what was answered, by route and status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500  # if nothing is answered: the server answers that

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        finally:
            # What matched is named, never what was asked for: anybody could ask for anything.
            path = getattr(scope.get("route"), "path", "(none)")
            method = scope["method"] if scope["method"] in METHODS else "(other)"
            try:
                container = await get_container(HTTPConnection(scope))
                container[get_metrics].requests.labels(method, path, status).inc()
            except UninitializedLifespanDependency:
                pass  # There is nobody to ask for the count of an application that doesn't run.


# --8<-- [end:middleware]


router = APIRouter(tags=["operation"])


@router.get("/metrics")
async def read_metrics(
    metrics: MetricsDep, container: Annotated[LifespanContainer, Depends(get_container)]
) -> Response:
    """All metrics, in the format that Prometheus reads."""
    metrics.model.clear()
    try:
        files = container[get_model_files]
        metrics.model.labels(files.name, files.version).set(1)
    except UninitializedLifespanDependency:
        pass  # None is loaded.
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
