"""Interrupts: SIGINT and SIGTERM, told in a thread, whatever the main thread does."""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

SIGNALS = signal.SIGINT, signal.SIGTERM


class Interrupts:
    """Listens to signals, for as long as it is entered. The former handlers are put back.

    Python calls a handler in the main thread only, and not while that waits in C code, or for
    a lock that C code holds. What it writes to the wakeup file is written at once.
    """

    def __init__(self, listener: Callable[[int], None]) -> None:
        self.raises = False  # raise `KeyboardInterrupt` in the main thread as well
        self._listener = listener
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._former_file = self._wake_by(self._writing.fileno())
        for number in SIGNALS:
            self._former[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            # None is one that was set in C
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._former_file)
        self._writing.close()  # which ends the thread

    def _wake_by(self, file: int) -> int:
        return signal.set_wakeup_fd(file, warn_on_full_buffer=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        file = self._wake_by(self._writing.fileno())
        if file != self._writing.fileno():  # the application has taken it for itself
            signal.set_wakeup_fd(file)
            self._writing.send(bytes([number]))
        if self.raises:
            raise KeyboardInterrupt(number)

    def _tell(self) -> None:
        with self._reading:
            while number := self._reading.recv(1):
                if number[0] in SIGNALS:
                    self._listener(number[0])
