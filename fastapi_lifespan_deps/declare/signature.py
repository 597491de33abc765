"""Read the signature of a callable as FastAPI reads it."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from fastapi import params
from pydantic.fields import FieldInfo

# How many layers of a callable, or of an annotation, are looked at: one may be made of itself.
MOST_LAYERS = 1000

VARIADIC = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its type, its default, and what FastAPI was asked to put there."""

    name: str
    annotation: Any
    default: Any
    marker: params.Depends | FieldInfo | None

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> "Parameter":
        annotation, metadata = _read(parameter.annotation)
        default = parameter.default
        markers = (params.Depends, params.Param, params.Body)
        marker: params.Depends | FieldInfo | None
        marker = next((item for item in reversed(metadata) if isinstance(item, markers)), None)
        if isinstance(default, params.Depends | FieldInfo):
            marker = default
        return cls(parameter.name, annotation, default, marker)

    @property
    def has_default(self) -> bool:
        return self.default is not inspect.Parameter.empty

    def is_a(self, *types: type) -> bool:
        return isinstance(self.annotation, type) and issubclass(self.annotation, types)

    @property
    def hides_declaration(self) -> bool:
        """Whether there is a `Depends` inside of its type, as in `ClientDep | None`."""
        return self.marker is None and _hides_declaration(self.annotation)

    def __str__(self) -> str:
        if self.annotation is inspect.Parameter.empty:
            return self.name
        return f"{self.name}: {inspect.formatannotation(self.annotation)}"


def _read(annotation: Any) -> tuple[Any, list[Any]]:
    """A type, and the metadata that it is annotated with, innermost first.

    By `Annotated[...]`, and by `type X = Annotated[...]`, from typing or from typing_extensions;
    also by one that is made of another.
    """
    metadata: list[Any] = []
    for _ in range(MOST_LAYERS):
        if get_origin(annotation) is Annotated:
            annotation, *outer = get_args(annotation)
            metadata = [*outer, *metadata]
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            break
    return annotation, metadata


def _hides_declaration(annotation: Any) -> bool:
    to_look_at, known = [*get_args(annotation)], dict[int, Any]()
    while to_look_at:
        one = to_look_at.pop()
        if id(one) not in known:  # a type may be made of itself
            known[id(one)] = one  # kept, so that no other gets its id
            inner, metadata = _read(one)
            if any(isinstance(item, params.Depends) for item in metadata):
                return True
            to_look_at += get_args(inner)
    return False


def parameters(call: Callable[..., Any]) -> list[Parameter]:
    """The parameters of `call` that somebody has to fill, or may."""
    return [
        Parameter.of(parameter)
        for parameter in typed_signature(call).parameters.values()
        if parameter.kind not in VARIADIC
    ]


def typed_signature(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of `call`, its annotations evaluated as far as the names exist at run time."""
    call = origin_of(call)
    try:
        return inspect.signature(call, eval_str=True)
    except ValueError:  # a callable written in C that tells nothing of its parameters
        return inspect.Signature()
    except Exception:  # most often a name that exists for type checkers only
        signature = plain_signature(call)
    names = _globals_of(call)
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_evaluate(parameter.annotation, names))
            for parameter in signature.parameters.values()
        ],
        return_annotation=_evaluate(signature.return_annotation, names),
    )


def plain_signature(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of `call`, whose annotations need not exist yet."""
    if sys.version_info >= (3, 14):  # pragma: no cover - Python 3.14
        from annotationlib import Format

        return inspect.signature(call, annotation_format=Format.FORWARDREF)
    return inspect.signature(call)


def is_variadic(signature: inspect.Signature) -> bool:
    """Whether it takes arguments that it doesn't name."""
    return any(parameter.kind in VARIADIC for parameter in signature.parameters.values())


def is_annotated(alias: Any) -> bool:
    """Whether it is an `Annotated[...]`, or a name of one that `type` has made."""
    return bool(_read(alias)[1])


def origin_of(call: Any) -> Any:
    """The class of a generic alias, `Repo` of `Repo[User]`; anything else as it is."""
    origin = get_origin(call)
    return origin if inspect.isclass(origin) else call


def layers(call: Any) -> Iterator[Any]:
    """A callable, and what it is made around: through partials, wrappers and `__call__`."""
    for _ in range(MOST_LAYERS):
        yield call
        if isinstance(call, functools.partial):
            call = call.func
        elif is_missing(call):  # pragma: no cover - Python 3.14
            return  # it has every attribute that one asks for
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif inspect.isroutine(call) or inspect.isclass(call) or not callable(call):
            return
        else:
            call = call.__call__


def innermost(call: Any) -> Any:
    """The function or class that is called in the end."""
    return [*layers(call)][-1]


def is_missing(call: object) -> bool:
    """Whether it stands for a name that does not exist, from Python 3.14 (or not yet)."""
    return type(call).__module__ == "annotationlib"


def _globals_of(call: Any) -> dict[str, Any]:
    """The names that the annotations of a callable are written with."""
    function = innermost(call)
    module = sys.modules.get(getattr(function, "__module__", ""))
    return getattr(function, "__globals__", None) or getattr(module, "__dict__", {})


def _evaluate(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except Exception:
        return annotation
