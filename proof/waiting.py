"""Waiting for something that shall happen: never for a time to pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 180.0  # seconds; only what never comes takes so long
BETWEEN = 0.02


class NeverCame(Exception):
    """What was waited for has not come. The cell fails."""


def wait_until(what: str, look: Callable[[], T], patience: float = PATIENCE) -> T:
    """Look until what is seen is true, and return it."""
    deadline = time.monotonic() + patience
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise NeverCame(f"waited for {what}, in vain")
        time.sleep(BETWEEN)
    return seen
