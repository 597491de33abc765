"""What takes part: a module for each library, in the fastest way that its documentation shows."""

import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .calling import Caller
from .case import Contestant
from .connecting import Connector

OWN = ["plain", "lifespan_deps", "depends"]
# Named as their distributions, but for the hyphens.
LIBRARIES = ["wireup", "dishka", "svcs", "that_depends", "fastapi_injector", "dependency_injector"]
LIBRARIES += ["fastapi_singleton", "litestar"]
# Those that call functions outside of requests.
CALLING = ["dishka", "taskiq_dependencies", "that_depends", "fast_depends", "fastapi_injectable"]

# Those that open at the start, or by the first request, what is opened by an async function.
CONNECTING = ["dependency_injector", "that_depends", "dishka", "wireup"]

# scripts/bench notes here what it could not install: a distribution, a tab, and why.
NOT_INSTALLED = Path(sys.prefix, "not-installed")


def contestants() -> Iterator[Contestant | tuple[str, str]]:
    """All that take part; a name and a reason for a library that is not there."""
    for found in _modules([*OWN, *LIBRARIES]):
        yield from [found] if isinstance(found, tuple) else found.CONTESTANTS


def callers() -> Iterator[Caller | tuple[str, str]]:
    """The same for calls outside of requests."""
    for found in _modules(["lifespan_deps", "plain", *CALLING]):
        yield from [found] if isinstance(found, tuple) else found.CALLERS


def connectors() -> Iterator[Connector | tuple[str, str]]:
    """The same for connections that are opened at the start."""
    for found in _modules(["lifespan_deps", "plain", *CONNECTING]):
        yield from [found] if isinstance(found, tuple) else found.CONNECTORS


Part = TypeVar("Part", Contestant, Caller, Connector)


def present(found: Iterable[Part | tuple[str, str]]) -> tuple[list[Part], dict[str, Any]]:
    """Those that are there, and a row for each of all: with the problem of one that is not."""
    there: list[Part] = []
    rows: dict[str, Any] = {}
    for one in found:
        if isinstance(one, tuple):
            name, reason = one
            rows[name] = {"problem": reason}
        else:
            there.append(one)
            rows[one.name] = {}
    return there, rows


def _modules(names: list[str]) -> Iterator[Any]:
    notes = NOT_INSTALLED.read_text().splitlines() if NOT_INSTALLED.exists() else []
    reasons = dict(note.split("\t", 1) for note in notes)
    for module in names:
        distribution = module.replace("_", "-")
        try:
            with warnings.catch_warnings(action="ignore"):  # of what else a library imports
                found = importlib.import_module(f"{__name__}.{module}")
        except ImportError as error:
            if module in OWN:
                raise
            yield distribution, f"not installed: {reasons.get(distribution, error)}"
        else:
            yield found
