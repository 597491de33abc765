"""Providers: whether OpenTelemetry is configured, and by which providers a run tells it."""

import sys
from typing import Any

from fastapi_lifespan_deps._compat import telemetry_of
from fastapi_lifespan_deps.events import logger

from .spans import Spans

# For each signal: the option of FastAPI's that turns it off, the one that has its provider; and the
# module that knows the global one. The API's own, of the same module, do nothing.
_SIGNALS = (
    ("tracing", "tracer_provider", "opentelemetry.trace"),
    ("metrics", "meter_provider", "opentelemetry.metrics"),
    ("logs", "logger_provider", "opentelemetry._logs"),
)


def spans_of(application: Any) -> Spans:
    """The spans of a run that begins now, of an application or of a container by itself.

    They are traced if there is a provider: that of `FastAPI(telemetry=...)`, or the global one.
    Otherwise nothing is imported. What goes wrong is logged, and there are none.
    """
    try:
        options = telemetry_of(application)
        found = [
            _provider(options.get(name), name, module) if options.get(signal, True) else None
            for signal, name, module in _SIGNALS
        ]
        if any(one is not None for one in found):
            from .telemetry import Telemetry

            return Telemetry(*found)
    except Exception:
        logger.warning("OpenTelemetry failed, so it has nothing of this run", exc_info=True)
    return Spans()


def _provider(given: Any, name: str, module: str) -> Any:
    """The one that is given, or else the global one; None where nobody has set one."""
    if given is None and module in sys.modules:
        given = getattr(sys.modules[module], f"get_{name}")()
    return None if type(given).__module__.startswith(module) else given
