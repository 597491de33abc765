"""Read the signature of a callable as FastAPI reads it."""

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from fastapi import params
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its type, its default, and what FastAPI was asked to put there."""

    name: str
    annotation: Any
    default: Any
    marker: params.Depends | FieldInfo | None

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> "Parameter":
        annotation, default = parameter.annotation, parameter.default
        # `type X = Annotated[...]`, from typing or from typing_extensions
        annotation = getattr(annotation, "__value__", annotation)
        marker: params.Depends | FieldInfo | None = None
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            markers = (params.Depends, params.Param, params.Body)
            marker = next((item for item in reversed(metadata) if isinstance(item, markers)), None)
        if isinstance(default, params.Depends | FieldInfo):
            marker = default
        return cls(parameter.name, annotation, default, marker)

    @property
    def has_default(self) -> bool:
        return self.default is not inspect.Parameter.empty

    def is_a(self, *types: type) -> bool:
        return isinstance(self.annotation, type) and issubclass(self.annotation, types)

    def __str__(self) -> str:
        if self.annotation is inspect.Parameter.empty:
            return self.name
        return f"{self.name}: {inspect.formatannotation(self.annotation)}"


def parameters(call: Callable[..., Any]) -> list[Parameter]:
    """The parameters of `call` that somebody has to fill, or may."""
    return [
        Parameter.of(parameter)
        for parameter in typed_signature(call).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def typed_signature(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of `call`, its annotations evaluated as far as the names exist at run time."""
    try:
        return inspect.signature(call, eval_str=True)
    except ValueError:  # a callable written in C that tells nothing of its parameters
        return inspect.Signature()
    except Exception:  # most often a name that exists for type checkers only
        signature = _unevaluated_signature(call)
    function = underlying(call)
    names = getattr(function, "__globals__", None) or getattr(
        sys.modules.get(getattr(function, "__module__", "")), "__dict__", {}
    )
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_evaluate(parameter.annotation, names))
            for parameter in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )


# How many layers are taken for wrappers around a callable.
MOST_WRAPPERS = 1000


def underlying(call: Any) -> Any:
    """The function that says how `call` is called: awaited, iterated, or in a thread."""
    for _ in range(MOST_WRAPPERS):  # an object may say that it wraps itself
        if inspect.isclass(call):
            break
        if isinstance(call, functools.partial):
            call = call.func
        elif is_missing(call):  # pragma: no cover - Python 3.14
            break  # it has every attribute that one asks for
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif inspect.isroutine(call):
            break
        else:
            call = type(call).__call__
    return call


def runs_in_thread(call: Any) -> bool:
    """Whether FastAPI runs a callable in a worker thread."""
    kind = underlying(call)
    return not (inspect.iscoroutinefunction(kind) or inspect.isasyncgenfunction(kind))


def is_missing(call: object) -> bool:
    """Whether it stands for a name that does not exist, from Python 3.14 (or not yet)."""
    return type(call).__module__ == "annotationlib"


def _unevaluated_signature(call: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # pragma: no cover - Python 3.14
        from annotationlib import Format

        return inspect.signature(call, annotation_format=Format.FORWARDREF)
    return inspect.signature(call)


def _evaluate(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except Exception:
        return annotation
