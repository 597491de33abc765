"""Writes the signatures and types that docs/reference.md shows.

    .venv/bin/python scripts/reference.py

Run it when a public name has changed: tests/test_reference_page.py says so.
"""

import dataclasses
import enum
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi_lifespan_deps

ROOT = Path(__file__).parents[1]
SHOWN = ROOT / "docs_src/reference.txt"
WIDTH = 88

# Of the others, users are given the instances.
CONSTRUCTED = ("LifespanContainer", "LifespanFastAPI")
OPERATORS = ("__getitem__", "__contains__")


def text() -> str:
    """A section for each public name, as a snippet."""
    return "\n".join(
        f"# --8<-- [start:{name}]\n{declaration(name)}\n# --8<-- [end:{name}]\n"
        for name in fastapi_lifespan_deps.__all__
    )


def declaration(name: str) -> str:
    """A public name as a stub would declare it."""
    thing = getattr(fastapi_lifespan_deps, name)
    if isinstance(thing, type):
        return "\n".join(class_lines(thing))
    if inspect.isfunction(thing):
        return "\n".join(function_lines(name, thing))
    return f"{name} = {shown(thing)}"


def class_lines(cls: type) -> Iterator[str]:
    """Its bases, its attributes, and what can be called."""
    if dataclasses.is_dataclass(cls):
        yield f"@dataclass(frozen={cls.__dataclass_params__.frozen})"  # type: ignore[attr-defined]
    bases = ", ".join(base_name(base, cls) for base in cls.__bases__ if base is not object)
    yield f"class {cls.__name__}{f'({bases})' if bases else ''}:"
    lines = [line for one in attributes(cls).items() for line in attribute_lines(cls, *one)]
    for name, function in functions(cls).items():
        lines += [] if not lines else [""]
        lines += method_lines(name, function)
    yield from (f"    {line}" if line else "" for line in lines or ["..."])


def base_name(base: type, cls: type) -> str:
    if base is tuple:
        return "NamedTuple"
    return f"{base.__module__}.{base.__name__}" if base.__name__ == cls.__name__ else base.__name__


def attributes(cls: type) -> dict[str, Any]:
    """The public attributes of its own, with their types."""
    found = {**inspect.get_annotations(cls)}
    for name, member in vars(cls).items():
        if isinstance(member, property):
            assert member.fget is not None
            found[name] = inspect.signature(member.fget).return_annotation
    return {name: of for name, of in found.items() if not name.startswith("_")}


def attribute_lines(cls: type, name: str, of: Any) -> Iterator[str]:
    """In one line, or a long list of literals in several."""
    line = f"{name}: {shown(of)}"
    if len(line) <= WIDTH or typing.get_origin(of) is not typing.Literal:
        yield line + default_of(cls, name)
        return
    yield f"{name}: Literal["
    listed = ", ".join(map(value, typing.get_args(of)))
    yield from (f"    {part}" for part in textwrap.wrap(f"{listed},", WIDTH - 8))
    yield f"]{default_of(cls, name)}"


def default_of(cls: type, name: str) -> str:
    """That of a field of a dataclass, if there is one."""
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.name == name and field.default is not dataclasses.MISSING:
                return f" = {value(field.default)}"
            if field.name == name and field.default_factory is not dataclasses.MISSING:
                return f" = {value(field.default_factory())}"
    return ""


def functions(cls: type) -> dict[str, Any]:
    """What can be called of its own: methods, and how it is constructed where that is for users."""
    known = (*OPERATORS, "__init__") if cls.__name__ in CONSTRUCTED else OPERATORS
    return {
        name: member
        for name, member in vars(cls).items()
        if (inspect.isfunction(member) or isinstance(member, classmethod))
        and (name in known or not name.startswith("_"))
    }


def method_lines(name: str, method: Any) -> Iterator[str]:
    if isinstance(method, classmethod):
        yield "@classmethod"
        yield from function_lines(name, method.__func__)
        return
    for overload in typing.get_overloads(method):
        yield "@overload"
        yield from function_lines(name, overload)
    if not typing.get_overloads(method):
        yield from function_lines(name, method)


def function_lines(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """In one line, or with a line for each parameter."""
    signature = inspect.signature(function)
    head = f"{'async ' if inspect.iscoroutinefunction(function) else ''}def {name}("
    end = f") -> {shown(signature.return_annotation)}: ..."
    listed = [*parameters(signature)]
    line = f"{head}{', '.join(listed)}{end}"
    if len(line) <= WIDTH:
        yield line
    else:
        yield head
        yield from (f"    {one}," for one in listed)
        yield end


def parameters(signature: inspect.Signature) -> Iterator[str]:
    """Each parameter, and the marks between them."""
    kinds = [one.kind for one in signature.parameters.values()]
    for position, one in enumerate(signature.parameters.values()):
        is_first = one.kind not in kinds[:position]
        if one.kind is one.KEYWORD_ONLY and is_first and one.VAR_POSITIONAL not in kinds:
            yield "*"
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        annotation = "" if one.annotation is one.empty else f": {shown(one.annotation)}"
        default = ""
        if one.default is not one.empty:
            default = f" = {value(one.default)}" if annotation else f"={value(one.default)}"
        yield f"{stars}{one.name}{annotation}{default}"
        if one.kind is one.POSITIONAL_ONLY and one.POSITIONAL_ONLY not in kinds[position + 1 :]:
            yield "/"


def value(default: object) -> str:
    """A default."""
    if isinstance(default, enum.Enum):
        return default.name
    if isinstance(default, tuple):
        return f"({', '.join(map(value, default))})"
    if default is Ellipsis:
        return "..."
    return json.dumps(default) if isinstance(default, str) else repr(default)


def shown(of: Any) -> str:
    """A type, alike on all releases of Python."""
    if of is None or of is types.NoneType:
        return "None"
    if of is Ellipsis:
        return "..."
    if isinstance(of, str):
        return of
    if isinstance(of, list):
        return f"[{', '.join(map(shown, of))}]"
    origin, arguments = typing.get_origin(of), typing.get_args(of)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(shown, arguments))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(value, arguments))}]"
    if origin is not None:
        return f"{shown(origin)}[{', '.join(map(shown, arguments))}]"
    name = getattr(of, "__name__", None) or getattr(of, "_name", None)
    return name if isinstance(name, str) else str(of)


if __name__ == "__main__":
    SHOWN.write_text(text())
