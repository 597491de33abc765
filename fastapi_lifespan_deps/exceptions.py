"""What can go wrong: one base class, and messages that show the way to the culprit."""

import copyreg
import functools
import inspect
import os
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from traceback import format_exception
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from fastapi import exceptions as fastapi_exceptions
from fastapi.exceptions import HTTPException


class Step(NamedTuple):
    """One line of the path that an error shows: a route, a parameter, a provider."""

    label: str
    call: Callable[..., Any] | None = None
    note: str = ""


class LifespanDependencyError(fastapi_exceptions.FastAPIError):
    """Base of every error that this library raises itself."""

    def __reduce__(self) -> Any:  # what pickle does by itself calls the class with the message
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidDependencyScope(LifespanDependencyError):
    """`Depends()` was given a scope that does not exist.

    Raised by the `Depends(...)` call itself. `scope` is what it was given.
    """

    scope: object

    def __init__(self, scope: object) -> None:
        self.scope = scope
        meant = get_close_matches(str(scope).lower(), ("function", "request", "lifespan"), 1)
        hint = f' Did you mean "{meant[0]}"?' if meant else ""
        super().__init__(
            f"{scope!r} is not a scope of a dependency.{hint} "
            'Use "function", "request", "lifespan", or leave the scope out.'
        )


class InvalidLifespanDependency(LifespanDependencyError):
    """A lifespan dependency was declared or overridden by something that makes no sense.

    Raised by the `Depends(...)` call itself; where the class is to be inferred from an
    annotation, when the signature is read; for an override, when it comes into force.
    `dependency` is what was given.
    """

    dependency: object

    def __init__(
        self, dependency: object, problem: str, advice: str, *, asked: str | None = None
    ) -> None:
        self.dependency = dependency
        asked = asked or f'Depends({name_of(dependency)}, scope="lifespan")'
        super().__init__(f"`{asked}` {problem}. {advice}")


class DependencyScopeError(LifespanDependencyError, fastapi_exceptions.DependencyScopeError):
    """A lifespan dependency asks for something that exists only during a request.

    Raised when FastAPI reads the signature that declares the dependency: at the route's own
    line; at startup for a hook, a lifespan function, or a list given to `include_router`.
    `provider` is the lifespan dependency, `parameter` the name of its parameter, `path` the steps
    from the route to it.
    """

    provider: Callable[..., Any]
    parameter: str
    path: tuple[Step, ...]

    def __init__(
        self,
        provider: Callable[..., Any],
        parameter: str,
        found: str,
        path: Sequence[Step],
        advice: str,
        *,
        reason: str = "is started once, with the application, before any request",
        otherwise: str = 'make `{name}` request-scoped (drop scope="lifespan")',
    ) -> None:
        self.provider = provider
        self.parameter = parameter
        self.path = tuple(path)
        name = name_of(provider)
        super().__init__(
            f"`{name}` {reason},\n"
            f"so it cannot take `{parameter}`, {found}.\n\n{draw_path(path)}\n\n"
            f"{advice}, or {otherwise.format(name=name)}."
        )


class DependencyCycleError(LifespanDependencyError):
    """Lifespan dependencies depend on each other in a circle.

    Raised when FastAPI reads the signature, or, where an override closes the circle, at startup
    or on the requests that need it. `path` holds the steps, from the first dependency round to
    the same one again.
    """

    path: tuple[Step, ...]

    def __init__(self, path: Sequence[Step]) -> None:
        self.path = tuple(path)
        super().__init__(
            f"`{name_of(path[-1].call)}` depends on itself, so it can never start.\n\n"
            f"{draw_path(path)}\n\n"
            "Take one of these dependencies out of the circle. A dependency override counts as "
            "what it replaces: it cannot depend on it."
        )


class UninitializedLifespanDependency(LifespanDependencyError):
    """The value of a lifespan dependency is not there, or not for this request.

    Raised to the request (the client sees a plain 500), or by the container. `provider` is the
    dependency.
    """

    provider: Callable[..., Any]

    def __init__(self, provider: Callable[..., Any], problem: str, advice: str) -> None:
        self.provider = provider
        # not `super()`: from Python 3.14, that is HTTPException in the class below
        asked = f"There is no value of `{name_of(provider)}` ({location_of(provider)})"
        RuntimeError.__init__(self, f"{asked}: {problem}. {advice}")


class UnavailableLifespanDependency(UninitializedLifespanDependency, HTTPException):
    """The value of a lifespan dependency is not there for now: it is being replaced.

    Raised to requests while a resource-preserving refresh is under way, and after it has failed,
    until another one succeeds. FastAPI answers 503 with `Retry-After`; a WebSocket is closed with
    code 1013. `provider` is the dependency, `retry_after` the seconds that the client is told.
    """

    retry_after: int

    def __init__(
        self, provider: Callable[..., Any], problem: str, advice: str, retry_after: int
    ) -> None:
        self.retry_after = retry_after
        UninitializedLifespanDependency.__init__(self, provider, problem, advice)
        HTTPException.__init__(self, 503, headers={"Retry-After": str(retry_after)})

    def __str__(self) -> str:  # the answer's detail is another thing
        return str(self.args[0])


class LifespanTimeout(LifespanDependencyError, TimeoutError):
    """A lifespan dependency took longer to start or stop than its declaration allows.

    A start that was cut off fails the startup, or the refresh; the error of a stop is logged and
    raised at shutdown. `provider` is the dependency, `seconds` its limit, `path` the steps to it.

    Or a worker's handler took longer than `call_timeout`: then `provider` is the handler.
    """

    provider: Callable[..., Any]
    seconds: float
    path: tuple[Step, ...]

    def __init__(
        self,
        provider: Callable[..., Any],
        step: str,
        seconds: float,
        path: Sequence[Step],
        *,
        option: str | None = None,
    ) -> None:
        self.provider = provider
        self.seconds = seconds
        self.path = tuple(path)
        option = option or f"{step}_timeout"
        super().__init__(
            f"`{name_of(provider)}` did not {step} within {seconds:g} seconds "
            f"({option}={seconds}), and was cancelled.\n\n{draw_path(path)}\n\n"
            f"Give it more time, or find out what it waits for."
        )


class RefreshError(LifespanDependencyError):
    """A refresh cannot be made now, or cannot be waited for here.

    Raised by `LifespanContainer.refresh` before anything is touched, or when the application
    stops meanwhile; and by `Draining.wait`. `provider` is the dependency.
    """

    provider: Callable[..., Any]

    def __init__(
        self,
        provider: Callable[..., Any],
        problem: str,
        advice: str,
        *,
        asked: str = "cannot be refreshed",
    ) -> None:
        self.provider = provider
        super().__init__(f"`{name_of(provider)}` {asked}: {problem}. {advice}")


class LifespanNotRunning(LifespanDependencyError):
    """The running container was asked for where there is none. Raised by `lifespan_container`."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"There is no lifespan container: {problem}. {advice}")


# A traceback, and pytest's summary, name an error as it is imported.
for _error in list(globals().values()):
    if isinstance(_error, type) and issubclass(_error, LifespanDependencyError):
        _error.__module__ = __package__ or __name__


STOPPING = "several errors while stopping"


def combined(
    failure: BaseException | None,
    others: Iterable[BaseException],
    *,
    is_serving: bool = True,
    heading: str = "Then, while stopping:",
) -> BaseException | None:
    """The one exception to raise for what went wrong, and went wrong again while stopping.

    What ended a startup, or a cancellation, stays what it is and carries the others as notes.
    """
    others = list(others)
    if failure is None:  # a cancellation stays what it is
        failure = next((one for one in others if isinstance(one, CancelledError)), None)
    others = [other for other in others if other is not failure]
    if failure is not None and not (is_serving and isinstance(failure, Exception)):
        for other in others:
            # its context is `failure`, most often
            lines = format_exception(other, chain=other.__cause__ is not None)
            add_note(failure, f"{heading}\n{''.join(lines)}")
        return failure
    failures = [*([] if failure is None else [failure]), *others]
    return grouped(STOPPING, failures)


def grouped(message: str, errors: Sequence[BaseException]) -> BaseException | None:
    """One error as it is, several as a group; those of a group with the same message join it."""
    found: list[BaseException] = []
    for error in errors:
        if isinstance(error, BaseExceptionGroup) and error.message == message:
            found += error.exceptions
        else:
            found.append(error)
    return BaseExceptionGroup(message, found) if len(found) > 1 else found[0] if found else None


def related(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it is made of, or was raised because of; each once."""
    left, known = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        left += [inner for inner in (one.__cause__, one.__context__) if inner is not None]


def drop_frames(error: BaseException) -> None:
    """Let an error say in a note where it was raised, and refer to nothing that is there."""
    text = "".join(format_exception(error)).rstrip()
    for one in related(error):
        BaseException.with_traceback(one, None)  # its own may be frozen
    add_note(error, f"It was raised while the application served:\n{text}")


def add_note(error: BaseException, note: str) -> None:
    """Add a note, if that can be done: the error is what matters."""
    notes = getattr(error, "__notes__", [])
    if isinstance(notes, list):
        with suppress(Exception):
            # not by `add_note`: it may be frozen
            object.__setattr__(error, "__notes__", [*notes, note])


def name_of(call: object) -> str:
    """The qualified name of a callable, as a person would write it; it may be any object."""
    try:
        if isinstance(call, functools.partial) and not hasattr(call, "__qualname__"):
            return f"partial({name_of(call.func)})"
        if isinstance(call, str | int | None):
            return repr(call)
        if inspect.isclass(get_origin(call)) or get_origin(call) is Union:
            return _name_of_alias(call)
        name = getattr(call, "__qualname__", None)
    except Exception:  # it answers what it likes
        name = None
    # no `repr`: it may hold a password, or fill a screen
    return name if isinstance(name, str) and name else f"{type(call).__qualname__}(...)"


def _name_of_alias(alias: object) -> str:
    """`Repo[User]`, `User | None`."""
    origin = get_origin(alias)
    names = ["None" if one is NoneType else name_of(one) for one in get_args(alias)]
    is_union = origin in (Union, UnionType)
    return " | ".join(names) if is_union else f"{name_of(origin)}[{', '.join(names)}]"


def location_of(call: object) -> str:
    """`file:line` of a callable, as far as it can be known; it may be any object."""
    file, line = source_of(call)
    return f"{relative(file)}{f':{line}' if line else ''}" if file else "built in"


def source_of(call: object) -> tuple[str | None, int | None]:
    """The file of a callable and the line in it, as far as they can be known."""
    try:
        while isinstance(call, functools.partial):
            call = call.func
        call = get_origin(call) or call
        found = inspect.unwrap(call) if callable(call) else call
        if not (inspect.isroutine(found) or inspect.isclass(found)):
            found = type(found)
        code = getattr(found, "__code__", None)
        if code is not None:
            return code.co_filename, code.co_firstlineno
        return inspect.getfile(found), _line_of(found)
    except Exception:  # written in C, at a prompt, or it answers what it likes
        return None, None


def _line_of(kind: Any) -> int | None:
    """The line of a class; None where its source is not there."""
    line: int | None = vars(kind).get("__firstlineno__")  # from Python 3.13 on
    with suppress(Exception):
        line = line or inspect.getsourcelines(kind)[1]
    return line


def draw_path(path: Sequence[Step]) -> str:
    """Draw the path as a tree of one branch: a line for each step, in columns."""
    rows = [
        (
            f"{'   ' * (depth - 1)}└─ {step.label}" if depth else step.label,
            location_of(step.call) if step.call else "",
            f"{name_of(step.call)}  {step.note}".rstrip() if step.call else step.note,
        )
        for depth, step in enumerate(path)
    ]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(
        f"  {label:{first}}  {place:{second}}  {text}".rstrip() for label, place, text in rows
    )


def relative(file: str) -> str:
    """A short name for a file below the current directory."""
    try:
        return file.removeprefix(os.getcwd() + os.sep)
    except OSError:  # it is gone
        return file
