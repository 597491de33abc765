"""Metrics: how long starts and stops take, and how often what happens."""

from collections.abc import Callable
from typing import Any

from opentelemetry.metrics import MeterProvider

from fastapi_lifespan_deps.events import EventKind

from .attributes import error_type, function_name

SCOPE = "fastapi_lifespan_deps"  # the name of all that is made here, and what names begin with

# Seconds. OpenTelemetry's advice for requests ends at 10; a model takes minutes.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_OUTCOMES = {"refreshed": "success", "refresh_failed": "failure"}


class Metrics:
    """The instruments of one run; those of another one, of the same provider, count on."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE)
        self._seconds = {
            step: meter.create_histogram(
                f"{SCOPE}.{step}.duration",
                unit="s",
                description=f"How long the {step} of a lifespan dependency takes.",
                explicit_bucket_boundaries_advisory=BUCKETS,
            )
            for step in ("start", "stop")
        }
        self._instances = meter.create_up_down_counter(
            f"{SCOPE}.instances", "{instance}", "Instances that have started and not ended."
        )
        self._refreshes = meter.create_counter(
            f"{SCOPE}.refreshes", "{refresh}", "Refreshes, by their outcome."
        )
        self._deaths = meter.create_counter(
            f"{SCOPE}.deaths", "{instance}", "Instances that ended by themselves while serving."
        )
        self._health = meter.create_gauge(
            f"{SCOPE}.health", "1", "1 if the health check of a dependency passes, else 0."
        )
        self._unhealthy: set[str] = set()

    def took(
        self,
        step: str,
        provider: Callable[..., Any],
        seconds: float,
        error: BaseException | None = None,
    ) -> None:
        """Note how long a start or a stop took, and that there is an instance more, or less."""
        which = {"code.function.name": function_name(provider)}
        failed = {} if error is None else {"error.type": error_type(error)}
        self._seconds[step].record(seconds, {**which, **failed})
        if step == "stop":
            self._instances.add(-1, which)
        elif error is None:
            self._instances.add(1, which)

    def hear(self, kind: EventKind, provider: Callable[..., Any]) -> None:
        """Count what happens."""
        name = function_name(provider)
        which = {"code.function.name": name}
        if kind in _OUTCOMES:
            self._refreshes.add(1, {**which, "outcome": _OUTCOMES[kind]})
        elif kind == "died":
            self._deaths.add(1, which)
        elif kind == "unhealthy":
            self._unhealthy.add(name)
            self._health.set(0, which)
        elif kind in ("healthy", "started") and name in self._unhealthy:
            self._unhealthy.discard(name)  # of a fresh instance, nobody says that it is healthy
            self._health.set(1, which)
