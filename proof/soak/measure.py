"""What a process holds at a calm point: exact counts, and how much there is of the rest."""

import ctypes
import gc
import os
import sys
import threading
from collections import Counter
from functools import cache
from types import FrameType
from typing import Any

import anyio
import psutil

from fastapi_lifespan_deps.live.generation import Generation, Pin
from fastapi_lifespan_deps.live.instance import Instance
from fastapi_lifespan_deps.live.run import Run

from .values import Thing

KINDS: dict[type, str] = {Generation: "generations", Pin: "pins", Run: "runs"}
# Where a thread of a pool stands that has nothing to do, innermost first.
IDLE = ("threading.py", "queue.py", "anyio/_backends/_asyncio.py", "trio/_core/_thread_cache.py")


def measured() -> dict[str, int]:
    """All there is now. There is no `await` in it: nothing moves meanwhile."""
    gc.collect()
    objects = gc.get_objects()
    found = Counter(_kind(one) for one in objects)
    process = psutil.Process()
    _trim()
    return {
        "tasks": len(anyio.get_running_tasks()),
        "threads": busy_threads(),
        "descriptors": process.num_fds(),
        "values": found["values"],
        **{name: found[name] for name in ("instances", *KINDS.values())},
        "objects": len(objects),
        "blocks": sys.getallocatedblocks(),
        "memory": process.memory_full_info().uss,
    }


def _kind(one: Any) -> str:
    kind = type(one)
    if kind is Instance:
        # one that has ended is kept by the generation that the lifespan function is pinned to
        return "" if one.ended.is_set() else "instances"
    return "values" if issubclass(kind, Thing) else KINDS.get(kind, "")


def types_of_objects() -> Counter[str]:
    """How many there are of each type: what to look at when objects grow."""
    kinds = (type(one) for one in gc.get_objects())
    return Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


def busy_threads() -> int:
    """How many threads there are, but for those of pools that have nothing to do."""
    alive = {thread.ident for thread in threading.enumerate()}
    frames = [frame for ident, frame in sys._current_frames().items() if ident in alive]
    return sum(not _is_idle(frame) for frame in frames)


def _is_idle(frame: FrameType) -> bool:
    """Whether it is a worker of a pool, and waits for something to do.

    Pools keep these for some seconds, as many as were needed at once.
    """
    stack: list[str] = []
    at: FrameType | None = frame
    while at is not None:
        stack.append(at.f_code.co_filename.replace(os.sep, "/"))
        at = at.f_back
    return all(file.endswith(IDLE) for file in stack) and any(
        file.endswith(IDLE[2:]) for file in stack
    )


@cache
def _libc() -> Any:
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:  # not glibc
        return None


def _trim() -> None:
    """Let glibc give back what it keeps of freed memory: else it is noise of megabytes."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)
