"""Signals: told to who listens in the event loop; the handlers of before are put back."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from fastapi_lifespan_deps.events import logger
from fastapi_lifespan_deps.live.tasks import call_soon, current_loop

Listener = Callable[[signal.Signals], None]
Listening = tuple[Listener, frozenset[signal.Signals]]  # to which signals

# So many are told; the next one does what it would do without us.
TOLD = 2


class Receiver:
    """The handler of some signals, for all who listen in one event loop.

    It stands in the process's table of handlers, where a second one who listens finds it.
    """

    def __init__(self, loop: Any, waking: "Waking") -> None:
        self.listeners: list[Listening] = []
        self.received: list[signal.Signals] = []
        self.loop = loop
        self.waking = waking
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # it was forked, and nobody listens here
            signal.signal(number, self.before(signal.Signals(number)))
            return signal.raise_signal(number)
        self.received.append(signal.Signals(number))
        if len(self.received) > TOLD:
            # here, and not in the event loop, which may be blocked
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, self)  # it did not end the process
        call_soon(self.loop, self._tell, signal.Signals(number))

    def _tell(self, received: signal.Signals) -> None:
        for listener, numbers in list(self.listeners):
            if received in numbers:
                listener(received)

    def take(self, number: signal.Signals) -> None:
        """Become the handler of a signal."""
        if not self._previous:
            self.waking.begin()
        self._previous[number] = signal.signal(number, self)

    def give_back(self) -> None:
        """Put the handlers back that were there before, unless somebody has put others."""
        self.waking.end()
        for number in self._previous:
            is_ours = signal.getsignal(number) is self
            if is_ours:
                signal.signal(number, self.before(number))

    def before(self, number: signal.Signals) -> Any:
        """The handler that was there before."""
        # None: it was not set by Python, which cannot put it back
        previous = self._previous[number]
        return signal.SIG_DFL if previous is None else previous


class Waking:
    """What wakes an event loop when a signal comes, as long as one of its receivers needs it."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._receivers = 0
        self._entered = ExitStack()

    def begin(self) -> None:
        if not self._receivers:
            self._entered.enter_context(_waking(self._loop))
        self._receivers += 1

    def end(self) -> None:
        self._receivers -= 1
        if not self._receivers:
            self._entered.close()


def _waking_of(loop: Any) -> Waking:
    """That of the receivers that the event loop has, or a new one."""
    there = map(signal.getsignal, signal.valid_signals())
    found = (one.waking for one in there if isinstance(one, Receiver) and one.loop is loop)
    return next(found, None) or Waking(loop)


@contextmanager
def listening(numbers: Iterable[signal.Signals], listener: Listener) -> Iterator[None]:
    """Tell a listener, in the event loop, which signals come; it is told what came before it, too.

    The first two are told. The next one takes the default action.
    """
    wanted = _checked(numbers)
    if wanted and threading.current_thread() is not threading.main_thread():
        logger.warning("Signals do not stop the worker: they come to the main thread alone")
        wanted = frozenset()
    loop = current_loop()
    receivers: dict[Receiver, None] = {}
    new = Receiver(loop, _waking_of(loop))
    listening = listener, wanted
    for number in wanted:
        there = signal.getsignal(number)
        if isinstance(there, Receiver) and there.loop is loop:
            receivers[there] = None
        else:
            receivers[new] = None
            new.take(number)
    for receiver in receivers:
        receiver.listeners.append(listening)
    try:
        for receiver in receivers:
            for received in wanted.intersection(receiver.received):
                listener(received)
        yield
    finally:
        for receiver in receivers:
            receiver.listeners.remove(listening)
            if not receiver.listeners:
                receiver.give_back()


@contextmanager
def _waking(loop: Any) -> Iterator[None]:
    """Let signals wake the event loop, unless it sees to that itself, as trio's and uvloop's do.

    A handler runs in Python: one that is due when the loop is about to wait would wait with it.
    """
    if _is_woken() or not hasattr(loop, "add_reader"):
        yield
        return
    reads, writes = socket.socketpair()
    with reads, writes:
        reads.setblocking(False)
        writes.setblocking(False)
        loop.add_reader(reads, reads.recv, 4096)
        signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            now = signal.set_wakeup_fd(-1)
            if now != writes.fileno():  # that of others, who came later
                signal.set_wakeup_fd(now)
            loop.remove_reader(reads)


def _is_woken() -> bool:
    """Whether others have set what signals write to: their loop, or ours, wakes by it."""
    there = signal.set_wakeup_fd(-1)
    if there != -1:
        with suppress(OSError, ValueError):  # they have closed it, and have not said so
            signal.set_wakeup_fd(there, warn_on_full_buffer=False)
            return True
    return False


def _checked(numbers: Iterable[signal.Signals]) -> frozenset[signal.Signals]:
    never = {getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None)}
    try:
        found = frozenset(signal.Signals(number) for number in numbers)
    except (TypeError, ValueError):
        found = None
    if found is None or found & never:
        raise ValueError(
            f"signals={numbers!r}: give several signals that can be handled, such as "
            "(signal.SIGTERM, signal.SIGINT), or () for none"
        )
    return found
