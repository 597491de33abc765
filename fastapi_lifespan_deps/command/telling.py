"""Telling: what a person at a prompt is told of an error, and with which exit code."""

import asyncio
import concurrent
import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from traceback import TracebackException
from typing import Any, TextIO

import anyio
import fastapi
import starlette
import typer

from fastapi_lifespan_deps.exceptions import LifespanDependencyError, related

from .finding import Found, NotFound, application_at

# The graph or the start is wrong; there is nothing to look at.
WRONG, NOT_THERE = 1, 2

# On the way from us to the code of a provider: their frames say nothing of it.
_PACKAGES = anyio, asyncio, concurrent, fastapi, importlib, starlette
_PLUMBING = (
    *(f"{path}{os.sep}" for package in _PACKAGES for path in package.__path__),
    f"{Path(__file__).parents[1]}{os.sep}",
    *(str(module.__file__) for module in (contextlib, threading)),
    "<frozen ",
)


def found_or_exit(place: str | None, is_factory: bool) -> Found:
    """Find an application, or tell why there is none, and end the command."""
    try:
        return application_at(place, is_factory=is_factory)
    except NotFound as error:
        say(str(error))
    except (Exception, SystemExit) as error:
        ours = own_error(error)
        if ours is not None:
            say(shown(ours))
            raise typer.Exit(WRONG) from None
        say(f"{place or 'The application'} cannot be imported.\n\n{traceback_of(error)}")
    raise typer.Exit(NOT_THERE)


@contextmanager
def quietly() -> Iterator[TextIO]:
    """Let what an application prints go to stderr: what the command prints is read by others.

    Also what its child processes print. Gives the standard output as it was.
    """
    out = sys.stdout
    try:
        file, errors = out.fileno(), sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # it is no file, or closed
        with redirect_stdout(sys.stderr):
            yield out
        return
    out.flush()
    with os.fdopen(os.dup(file), "w", encoding=out.encoding) as kept, redirect_stdout(sys.stderr):
        os.dup2(errors, file)
        try:
            yield kept
        finally:
            os.dup2(kept.fileno(), file)


def say(text: str) -> None:
    """Tell a person, who may have sent what the command prints somewhere else."""
    with suppress(BrokenPipeError):  # who reads it has enough
        typer.echo(text, err=True)


def shown(error: BaseException) -> str:
    """An error whose message is enough."""
    return f"{type(error).__name__}: {error}"


def own_error(error: BaseException) -> LifespanDependencyError | None:
    """The error of this library that an error is, or that something has wrapped."""
    return next((one for one in related(error) if isinstance(one, LifespanDependencyError)), None)


def traceback_of(error: BaseException) -> str:
    """The traceback, from the first frame of the user's code on."""
    told = TracebackException.from_exception(error)
    left: list[Any] = [told]
    seen = set[int]()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        first = 0
        while first < len(one.stack) and one.stack[first].filename.startswith(_PLUMBING):
            first += 1
        del one.stack[:first]
        if not one.stack:
            one.stack = None  # not even a heading
        left += [one.__cause__, one.__context__, *(one.exceptions or ())]
    return "".join(told.format()).rstrip("\n")
