"""Kept: which pins there still are, and what keeps each of them.

Told when a calm point has more than the one before: that something is kept says little.
"""

import asyncio
import gc
import threading
from collections import deque
from types import FrameType, ModuleType
from typing import Any

from fastapi_lifespan_deps.live.generation import Pin

# What is there by itself: no need to look further.
ROOTS = (FrameType, ModuleType, asyncio.TimerHandle, asyncio.Task, threading.Thread)
FAR = 2000  # objects, after which the search is given up


def kept() -> list[str]:
    """A line for each pin, but for those of lifespan functions."""
    gc.collect()
    pins = [one for one in gc.get_objects() if type(one) is Pin and not one.is_lasting]
    ignored = {id(pins)}
    return [
        f"{pin}, {'pinned' if pin in pin.generation.pins else 'released'}: "
        + " < ".join(_shown(one) for one in _way_to_root(pin, ignored))
        for pin in pins
    ]


def _way_to_root(start: Any, ignored: set[int]) -> list[Any]:
    """What refers to it, what refers to that, and so on: the shortest way; or all that was met."""
    met = {id(start): start}
    by: dict[int, int] = {}  # who refers, to whom
    left = deque([start])
    own = {id(met), id(left), *ignored}
    while left and len(met) < FAR:
        one = left.popleft()
        for each in gc.get_referrers(one):
            if id(each) in met or id(each) in own or _is_own(each):
                continue
            met[id(each)] = each
            by[id(each)] = id(one)
            if isinstance(each, ROOTS):
                return _way(each, met, by)
            left.append(each)
    return list(met.values())[1:20]


def _is_own(one: Any) -> bool:
    return isinstance(one, FrameType) and one.f_code.co_filename == __file__


def _way(last: Any, met: dict[int, Any], by: dict[int, int]) -> list[Any]:
    way = [last]
    while (before := by[id(way[-1])]) in by:
        way.append(met[before])
    return way[::-1]


def _shown(one: Any) -> str:
    kind = type(one)
    name = f"{kind.__module__}.{kind.__qualname__}"
    match one:
        case FrameType():
            return f"{one.f_code.co_qualname} at {one.f_code.co_filename}:{one.f_lineno}"
        case asyncio.TimerHandle():
            seconds = one.when() - asyncio.get_running_loop().time()
            state = "cancelled" if one.cancelled() else "waiting"
            return f"{name}, {state}, due in {seconds:.1f} s"
        case asyncio.Task():
            return repr(one)[:200]
        case dict():
            return f"dict of {', '.join(map(str, list(one)[:8]))}"[:120]
    return name
