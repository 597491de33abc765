"""The record: what happens to the application, a line for each event, from all its processes."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Recorder:
    """It writes. What is written stays, even if the process is killed at the next moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # the process that has opened it, and the file

    def __call__(self, what: str, **facts: object) -> None:
        pid = os.getpid()
        if self._file is None or self._file[0] != pid:
            self._file = pid, os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        line = json.dumps({"pid": pid, "what": what, **facts}) + "\n"
        os.write(self._file[1], line.encode())  # one write, so lines never mix


@dataclass(frozen=True)
class Event:
    pid: int
    what: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, fact: str) -> Any:
        return self.facts[fact]


@dataclass
class Record:
    """It reads, in the order of the events."""

    path: Path
    events: list[Event] = field(default_factory=list)
    _rest: bytes = b""
    _read: int = 0

    def read(self) -> list[Event]:
        """All events so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                facts = json.loads(line)
                self.events.append(Event(facts.pop("pid"), facts.pop("what"), facts))
        return self.events

    def of(self, what: str, **facts: object) -> list[Event]:
        """The events of a kind, with these facts."""
        return [
            event
            for event in self.read()
            if event.what == what and facts.items() <= event.facts.items()
        ]


def by_process(events: Iterable[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.pid, []).append(event)
    return found
