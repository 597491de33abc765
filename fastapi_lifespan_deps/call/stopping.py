"""Stopping: what has stopped a worker, and how much time that leaves."""

import signal
from typing import Literal

import anyio

from fastapi_lifespan_deps.events import logger


class Stop:
    """What stops a worker: signals, an error, or the end of the messages."""

    def __init__(self, grace_period: float) -> None:
        self.grace_period = grace_period
        # nothing more is taken; what runs has only so much time; it has none
        self.over, self.is_limited, self.hurry = anyio.Event(), anyio.Event(), anyio.Event()
        self.error: BaseException | None = None
        self.heard: list[signal.Signals | Literal["its container"]] = []

    def hear(self, received: signal.Signals) -> None:
        """Called by the event loop, where no task runs."""
        self.heard.append(received)
        if len(self.heard) == 1:
            logger.info("%s: the worker takes no more messages", received.name)
            self._limit()
        else:
            logger.warning("%s again: running calls are cancelled", received.name)
            self.hurry.set()

    def end(self) -> None:
        """Its container is being left."""
        self.heard.append("its container")
        logger.info("The container is being left: the worker takes no more messages")
        self._limit()

    def fail(self, error: BaseException) -> None:
        """Stop with an error; the first one is raised, the others are logged."""
        if self.error is None:
            self.error = error
        else:
            logger.error("Another error of the worker, while it stops", exc_info=error)
        self._limit()

    def _limit(self) -> None:
        self.is_limited.set()
        self.over.set()

    def check(self) -> None:
        """Raise the error that has stopped the worker, if one has."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # whose frames have us
