"""Signals: told to who listens in the event loop; the handlers of before are put back."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.live.tasks import call_soon, current_loop

Listener = Callable[[signal.Signals], None]

# So many are told; the next one does what it would do without us.
TOLD = 2


class Receiver:
    """The handler of some signals, for all who listen in one event loop.

    It stands in the process's table of handlers, where a second one who listens finds it.
    """

    def __init__(self, loop: Any) -> None:
        self.listeners: list[Listener] = []
        self.received: list[signal.Signals] = []
        self.loop = loop
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if len(self.received) > TOLD:
            # here, and not in the event loop, which may be blocked
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, self)  # it did not end the process
        call_soon(self.loop, self._tell, signal.Signals(number))

    def _tell(self, received: signal.Signals) -> None:
        for listener in list(self.listeners):
            listener(received)

    def take(self, number: signal.Signals) -> None:
        """Become the handler of a signal."""
        self._previous[number] = signal.signal(number, self)

    def give_back(self) -> None:
        """Put the handlers back that were there before, unless somebody has put others."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self:
                # None: it was not set by Python, which cannot put it back
                signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextmanager
def listening(numbers: Iterable[signal.Signals], listener: Listener) -> Iterator[None]:
    """Tell a listener, in the event loop, which signals come; it is told what came before it, too.

    The first two are told. The next one takes the default action.
    """
    numbers = tuple(numbers)
    if numbers and threading.current_thread() is not threading.main_thread():
        logger.warning("Signals do not stop the worker: they come to the main thread alone")
        numbers = ()
    loop = current_loop()
    receivers: dict[Receiver, None] = {}
    new = Receiver(loop)
    for number in numbers:
        there = signal.getsignal(number)
        if isinstance(there, Receiver) and there.loop is loop:
            receivers[there] = None
        else:
            new.take(number)
            receivers[new] = None
    for receiver in receivers:
        receiver.listeners.append(listener)
        for received in receiver.received:
            listener(received)
    try:
        yield
    finally:
        for receiver in receivers:
            receiver.listeners.remove(listener)
            if not receiver.listeners:
                receiver.give_back()
