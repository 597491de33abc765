"""The log, for whoever is slow until it says so."""

import logging
import re
import threading

import anyio

SLOW = 0.01  # seconds after which something is slow
PATIENCE = 20


class Heard(logging.Handler):
    """What the log has said, for which a provider waits that is slow until then."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()

    def texts(self, level: int = logging.WARNING) -> list[str]:
        return [one.getMessage() for one in self.records if one.levelno == level]

    def wait(self, pattern: str, count: int = 1) -> None:
        """Wait in a thread, or in the event loop, which is blocked then."""

        def is_there() -> bool:
            return sum(bool(re.search(pattern, one)) for one in self.texts()) >= count

        with self._changed:
            assert self._changed.wait_for(is_there, PATIENCE), self.texts()

    async def until(self, pattern: str, count: int = 1) -> None:
        """Wait as a coroutine does."""
        await anyio.to_thread.run_sync(self.wait, pattern, count)
