"""What the application is made of: values that are followed, and fail or lie as they are told."""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio

from proof.record import Recorder

LIE = os.environ.get("SOAK_LIE", "")

directory = Path(os.environ["SOAK_DIRECTORY"])
record = Recorder(directory / "record")
faults: set[str] = set()  # what fails at its next start
kept: list[object] = []  # by an application that lies
_numbers = itertools.count(1)


class Planned(Exception):
    """What goes wrong on purpose."""


class Thing:
    """What is counted as long as anything refers to it."""

    def __init__(self, name: str, *on: "Thing") -> None:
        if name in faults:
            faults.discard(name)
            raise Planned(f"{name} does not start")
        self.name = f"{name} {next(_numbers)}"
        self.on = on
        self.is_alive = True

    def check(self) -> None:
        """Whoever uses it, calls this."""
        for thing in (self, *self.on):
            if not thing.is_alive or (LIE == "dead values" and _lies()):
                record("dead", name=thing.name)


class Value(Thing):
    """It is left, too, which is recorded."""

    def __init__(self, name: str, *on: Thing) -> None:
        super().__init__(name, *on)
        below = [thing.name for thing in on if isinstance(thing, Value)]
        record("enter", name=self.name, on=below)

    def leave(self) -> None:
        self.is_alive = False
        record("leave", name=self.name)
        if LIE == "leaves twice" and _lies():
            record("leave", name=self.name)
        if LIE in KEEPING and _lies():
            kept.append(KEEPING[LIE](self))

    @contextlib.contextmanager
    def living(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.leave()


def _lies() -> bool:
    """One time in ten."""
    return next(_turns) % 10 == 0


_turns = itertools.count(1)


def _thread(_: object) -> threading.Thread:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return thread


# What may be kept of every tenth value that is left, and shouldn't.
KEEPING: dict[str, Callable[[Value], object]] = {
    "keeps values": lambda value: value,
    "keeps threads": _thread,
    "keeps descriptors": lambda _: os.open(os.devnull, os.O_RDONLY),
    "keeps objects": lambda _: [[] for _ in range(200)],
    "keeps memory": lambda _: bytearray(os.urandom(400_000)),
}
LIES = (*KEEPING, "leaves twice", "dead values", "loses answers")


class Feed(Value):
    """It has a task, which dies when it is told to."""

    def __init__(self) -> None:
        super().__init__("feed")
        self.dies = anyio.Event()
        self.died = anyio.Event()

    async def run(self) -> None:
        await self.dies.wait()
        raise Planned("the feed is broken")
