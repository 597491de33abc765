"""Finding: what an argument of the command line names."""

import sys
from importlib import import_module
from typing import Any

import typer


def found_at(place: str, parameter: str) -> Any:
    """What a place names: MODULE:NAME."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise typer.BadParameter(f"{place!r}: write MODULE:NAME", param_hint=parameter)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        problem = f"there is no module {error.name!r}"
        raise typer.BadParameter(f"{place!r}: {problem}", param_hint=parameter) from None
    for part in name.split("."):
        if not hasattr(found, part):
            problem = f"{place.removesuffix(name)[:-1]!r} has no {part!r}"
            raise typer.BadParameter(f"{place!r}: {problem}", param_hint=parameter)
        found = getattr(found, part)
    if parameter != "--messages" and not callable(found):
        raise typer.BadParameter(f"{place!r} is not a function", param_hint=parameter)
    return found
