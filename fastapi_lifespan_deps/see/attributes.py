"""Attributes: what telemetry says of a provider, in OpenTelemetry's words."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi_lifespan_deps.exceptions import name_of, source_of


def function_name(provider: Callable[..., Any]) -> str:
    """`code.function.name`: with the module, as FastAPI's own telemetry has it."""
    while isinstance(provider, partial):
        provider = provider.func
    try:
        module = getattr(provider, "__module__", None)
    except Exception:  # it answers what it likes
        module = None
    name = name_of(provider).removesuffix("(...)")  # of an object: its class
    return f"{module}.{name}" if isinstance(module, str) else name


def code_attributes(provider: Callable[..., Any]) -> dict[str, str | int]:
    """Which function a provider is, and where."""
    file, line = source_of(provider)
    found = {
        "code.function.name": function_name(provider),
        "code.file.path": file,
        "code.line.number": line,
    }
    return {key: value for key, value in found.items() if value is not None}


def error_type(error: BaseException) -> str:
    """`error.type`: the class, with its module unless it is Python's own."""
    kind = type(error)
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"
