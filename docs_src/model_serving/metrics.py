"""What the service tells Prometheus."""

from collections.abc import Collection
from time import perf_counter
from typing import Annotated

import torch
from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
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

from .embedding import DeviceDep
from .files import get_model_files

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REQUEST_SECONDS = (*SECONDS, 30, 60)
SWAP_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (8, 32, 128, 512, 2_048, 8_192, 32_768, 131_072)

# A series more for each counter and histogram, which says when it began. Of the whole process:
# prometheus-client has no such setting for a registry.
disable_created_metrics()  # type: ignore[no-untyped-call, unused-ignore]


class Metrics:
    """The metrics of one run: they begin at nothing when the application starts."""

    def __init__(self) -> None:
        # Of its own: prometheus-client's default one lives as long as the process.
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "model_serving_requests_total",
            "Requests that were answered.",
            ("method", "path", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "model_serving_request_seconds",
            "From the arrival of a request to the end of its answer.",
            ("path", "status"),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.requests_in_progress = Gauge(
            "model_serving_requests_in_progress",
            "Requests that are not answered yet, this one included.",
            registry=registry,
        )
        self.request_tokens = Histogram(
            "model_serving_request_tokens",
            "Word pieces in the texts of a request.",
            buckets=TOKENS,
            registry=registry,
        )
        self.queue_size = Gauge(
            "model_serving_queue_size", "Texts that wait for a batch.", registry=registry
        )
        self.queue_seconds = Histogram(
            "model_serving_queue_seconds",
            "How long a text waited for its batch, its tokenizing included.",
            buckets=SECONDS,
            registry=registry,
        )
        self.tokenizing_seconds = Histogram(
            "model_serving_tokenizing_seconds",
            "How long it took to tokenize the texts that had come meanwhile.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "model_serving_batch_size",
            "Texts in a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "model_serving_batch_tokens",
            "Word pieces in a forward pass, padding included.",
            buckets=TOKENS,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "model_serving_inference_seconds",
            "How long a forward pass took.",
            buckets=SECONDS,
            registry=registry,
        )
        self.failed_batches = Counter(
            "model_serving_failed_batches_total",
            "Batches that raised an error, by what was done with them.",
            ("step",),
            registry=registry,
        )
        self.swap_seconds = Histogram(
            "model_serving_swap_seconds",
            "From the look at the files of a model until it serves (ok), is refused for what is in"
            " its files, or has failed to load.",
            ("result",),
            buckets=SWAP_SECONDS,
            registry=registry,
        )
        self.model = Gauge(
            "model_serving_model_info",
            "1 for the model that serves.",
            ("model", "version"),
            registry=registry,
        )
        self.gpu_memory = Gauge(
            "model_serving_gpu_memory_bytes",
            "allocated: by the tensors of this process; reserved: by its torch, for these and the"
            " next ones; used: by all processes on the device; total: what it has.",
            ("device", "kind"),
            registry=registry,
        )
        # So that they are there, and 0, before anything happens.
        for step in ("tokenizing", "inference"):
            self.failed_batches.labels(step)
        for result in ("ok", "refused", "failed"):
            self.swap_seconds.labels(result)

    def see_gpu(self, device: torch.device) -> None:
        """Look how full the memory of a GPU is. Of a CPU there is nothing to tell."""
        if device.type != "cuda":
            return
        free, total = torch.cuda.mem_get_info(device)
        seen = {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "used": total - free,
            "total": total,
        }
        for kind, size in seen.items():
            self.gpu_memory.labels(str(device), kind).set(size)


def get_metrics() -> Metrics:
    return Metrics()


MetricsDep = Annotated[Metrics, Depends(get_metrics, scope="lifespan")]


# --8<-- [start:middleware]
class MeasureRequests:
    """ASGI middleware that counts and times what is answered, by route and status.

    What is answered before there is a route is named if its path is one of `known`.
    """

    def __init__(self, app: ASGIApp, *, known: Collection[str] = ()) -> None:
        self.app = app
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = await find_metrics(scope) if scope["type"] == "http" else None
        if metrics is None:  # There is nobody to tell it to.
            await self.app(scope, receive, send)
            return
        status, started = 500, perf_counter()  # 500, if nothing is answered: somebody will.

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with metrics.requests_in_progress.track_inprogress():
                await self.app(scope, receive, send_and_see)
        finally:
            # Never what was asked for: anybody could ask for anything.
            path = scope["path"] if scope["path"] in self._known else "(none)"
            path = getattr(scope.get("route"), "path", path)
            method = scope["method"] if scope["method"] in METHODS else "(other)"
            metrics.requests.labels(method, path, status).inc()
            seconds = perf_counter() - started
            metrics.request_seconds.labels(path, f"{status // 100}xx").observe(seconds)


async def find_metrics(scope: Scope) -> Metrics | None:
    """The metrics of the application that a request comes to, if it runs."""
    try:
        return (await get_container(HTTPConnection(scope)))[get_metrics]
    except UninitializedLifespanDependency:
        return None


# --8<-- [end:middleware]


router = APIRouter(tags=["operation"])


@router.get("/metrics")
async def read_metrics(
    metrics: MetricsDep,
    device: DeviceDep,
    container: Annotated[LifespanContainer, Depends(get_container)],
) -> Response:
    """All metrics, in the format that Prometheus reads."""
    metrics.see_gpu(device)
    metrics.model.clear()
    try:
        files = container[get_model_files]
        metrics.model.labels(files.name, files.version).set(1)
    except UninitializedLifespanDependency:
        pass  # None is loaded.
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
