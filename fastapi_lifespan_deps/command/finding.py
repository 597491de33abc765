"""Finding: what an argument of the command line names."""

import inspect
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from fastapi import FastAPI

from fastapi_lifespan_deps._compat import application
from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.declare.collect import collect_routes
from fastapi_lifespan_deps.exceptions import LifespanDependencyError
from fastapi_lifespan_deps.serve.applications import lifespan_router

# Where fastapi-cli looks for an application that nobody has named.
DEFAULT_PATHS = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
FIRST_NAMES = ("app", "api")

MOST_NAMED = 5


class NotFound(Exception):
    """Nothing is there that can be looked at, for the reason that is given."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is looked at: an application that knows the lifespan scope, or a container."""

    place: str  # as MODULE:NAME
    app: FastAPI | LifespanContainer


def application_at(place: str | None, *, is_factory: bool = False) -> Found:
    """The application that a place names, or that which fastapi-cli would run.

    Raise `NotFound`, with one line, where there is none of ours; and whatever the import raises.
    """
    if place is None:
        place = _entrypoint()
    if place is None:
        place, found = _by_default(is_factory)
    else:
        found = _named(place)
    if is_factory:
        found = _made(place, found)
    found = found if isinstance(found, LifespanContainer) else application(found) or found
    _check(place, found, is_factory)
    return Found(place, found)


def found_at(place: str, parameter: str) -> Any:
    """What a place names, for a parameter: MODULE:NAME."""
    try:
        found = _named(place)
    except NotFound as error:
        raise typer.BadParameter(str(error), param_hint=parameter) from None
    if parameter != "--messages" and not callable(found):
        raise typer.BadParameter(f"{place!r} is not a function", param_hint=parameter)
    return found


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    if not (module and name) or module.startswith("."):
        raise NotFound(f"{place!r}: write MODULE:NAME, such as 'main:app'")
    found, there = _imported(module, place), module
    for part in name.split("."):
        if not hasattr(found, part):
            raise NotFound(f"{place!r}: {there!r} has no {part!r}")
        found = getattr(found, part)
        there += f"{'.' if ':' in there else ':'}{part}"
    return found


def _imported(module: str, place: str, directory: str = "") -> Any:
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        raise NotFound(f"{place!r}: there is no module {error.name!r}") from None


def _entrypoint() -> str | None:
    """What pyproject.toml names, in the working directory."""
    path = Path("pyproject.toml")
    if not path.is_file():
        return None
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or not even UTF-8
        raise NotFound(f"pyproject.toml cannot be read: {error}") from None
    found: object = tables
    for name in ("tool", "fastapi", "entrypoint"):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return None
    module, _, name = str(found).partition(":")
    if not (isinstance(found, str) and module and name):
        raise NotFound(
            f"pyproject.toml has [tool.fastapi] entrypoint = {found!r}: write 'MODULE:NAME'"
        )
    return found


def _by_default(is_factory: bool) -> tuple[str, Any]:
    if is_factory:
        raise NotFound("--factory: name the function, such as 'main:create_app'")
    path = next((path for path in map(Path, DEFAULT_PATHS) if path.is_file()), None)
    if path is None:
        raise NotFound(
            "There is no application here: name it, such as 'main:app'. Looked for "
            f"{', '.join(DEFAULT_PATHS)}, and for [tool.fastapi] entrypoint in pyproject.toml"
        )
    directory = path.resolve().parent
    names = [path.stem]
    while (directory / "__init__.py").is_file():
        names.insert(0, directory.name)
        directory = directory.parent
    module = ".".join(names)
    is_here = directory == Path.cwd()
    imported = _imported(module, str(path), "" if is_here else str(directory))
    for name in (*FIRST_NAMES, *dir(imported)):
        found = getattr(imported, name, None)
        if isinstance(found, FastAPI):
            return f"{module}:{name}", found
    raise NotFound(f"{str(path)!r} has no application: name it, such as '{module}:create_app'")


def _made(place: str, factory: Any) -> Any:
    """What a factory returns."""
    if not callable(factory):
        raise NotFound(f"{place!r} is a {type(factory).__name__}, and no function: drop --factory")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise NotFound(
            f"{place!r} cannot be called without arguments ({error}): name a function that can"
        ) from None
    except ValueError:
        pass  # written in C: nobody can tell
    if inspect.iscoroutinefunction(factory):
        raise NotFound(f"{place!r} is asynchronous: name a plain function")
    return factory()


def _check(place: str, found: Any, is_factory: bool) -> None:
    """Raise unless it knows the lifespan scope."""
    if isinstance(found, LifespanContainer):
        return
    if not isinstance(found, FastAPI):
        kind = type(found).__name__
        text = f"{place!r} is a {kind}, and no application"
        if is_factory:
            text = f"{place!r} returned a {kind}, and no application"
        elif callable(found):
            text += ". If it returns one, add --factory"
        raise NotFound(text)
    try:
        lifespan_router(found)
    except LifespanDependencyError as error:
        raise NotFound(f"{place!r}: {error}{_declared_in_vain(found)}") from None


def _declared_in_vain(app: FastAPI) -> str:
    """The routes of an application that is not ours which declare what only ours know."""
    labels: list[str] = []
    with suppress(Exception):  # what is declared may be wrong, too
        for source in collect_routes(app):
            paths = [path for _, key, path in source.declarations({}) if key is not None]
            labels += [path[0].label for path in paths[:1]]
    if not labels:
        return ""
    others = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return f' These declare scope="lifespan": {", ".join(labels[:MOST_NAMED])}{others}.'
