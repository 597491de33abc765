"""Frames: at which line a coroutine, a generator or a thread stands, seen from another thread."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

from fastapi_lifespan_deps.exceptions import location_of, relative

# How many frames are looked at: what is awaited may go on for ever.
MOST = 1000

# What has a frame and may wait for something else: coroutines, generators of both kinds.
_KINDS = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))


def awaiting(one: object) -> Iterator[FrameType]:
    """The frames of something and of what it awaits, outermost first."""
    for _ in range(MOST):
        for frame_name, next_name in _KINDS:
            frame = asked(one, frame_name)
            if isinstance(frame, FrameType):
                yield frame
                one = asked(one, next_name)
                break
        else:
            return


def generator_of(context: object) -> object:
    """What a context manager runs; None if nobody knows."""
    return asked(context, "gen")  # contextlib's own managers have it there


def asked(one: object, name: str) -> Any:
    """An attribute of any object; None if it has none, or raises."""
    with suppress(Exception):  # it answers what it likes
        return getattr(one, name, None)
    return None


def above(thread: int, is_bottom: Callable[[FrameType], bool]) -> list[FrameType]:
    """The frames that a thread runs, from one on, outermost first; none if that doesn't run."""
    found: list[FrameType] = []
    frame = sys._current_frames().get(thread)
    while frame is not None and len(found) < MOST:
        found.append(frame)
        if is_bottom(frame):
            return found[::-1]
        frame = frame.f_back
    return []


def called_by(thread: int, code: CodeType) -> list[FrameType]:
    """What a thread runs that some code has called."""
    return above(thread, lambda frame: frame.f_code is code)[1:]


def line_of(frames: list[FrameType], provider: Callable[..., Any]) -> str:
    """`file:line` of the innermost frame in the file of a provider, or else of the outermost."""
    file, _, _ = location_of(provider).rpartition(":")
    own = [frame for frame in frames if relative(frame.f_code.co_filename) == file]
    frame = own[-1] if own else frames[0]
    return f"{relative(frame.f_code.co_filename)}:{frame.f_lineno}"
