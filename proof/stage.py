"""A stage: a server that serves the application in a directory of its own, and is asked."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import Signals
from typing import Any

from . import claims
from .claims import Violation
from .load import Load, ask
from .record import Record
from .servers import Running, Server
from .waiting import PATIENCE, wait_until

STOPPED = r"^Stopped \d+ lifespan dependencies"


@dataclass
class Stage:
    server: Server
    directory: Path
    application: str = "proof.application"
    lie: str = ""
    patience: float = PATIENCE
    facts: dict[str, Any] = field(default_factory=dict)
    runs: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = Record(self.directory / "record")

    def start(self, model: str = "") -> Running:
        running = self.server.run(
            self.application, self.directory, {"PROOF_MODEL": model, "PROOF_LIE": self.lie}
        )
        self.runs.append(running)
        return running

    @property
    def running(self) -> Running:
        return self.runs[-1]

    def tell(self, name: str) -> None:
        """Make a file that the application looks at."""
        (self.directory / name).touch()

    def untell(self, name: str) -> None:
        (self.directory / name).unlink()

    # What is waited for

    def workers_that(self, what: str, number: int | None = None, **facts: object) -> list[int]:
        """Wait until so many processes have recorded it; by default, each worker."""
        number = self.server.workers if number is None else number

        def look() -> list[int] | None:
            found = list(dict.fromkeys(event.pid for event in self.record.of(what, **facts)))
            return found if len(found) >= number else None

        return wait_until(f"{number} workers that {what}", look, self.patience) or []

    def serving(self, number: int | None = None) -> list[int]:
        """Wait until so many workers have started, and the latest answer; their process ids."""
        number = self.server.workers if number is None else number

        def look() -> list[int] | None:
            lines = self.record.of("log", level="INFO")
            found = [line.pid for line in lines if line["text"].startswith("Started ")]
            return found if len(found) >= number else None

        workers = wait_until(f"{number} workers that serve", look, self.patience) or []
        silent = set(workers[-self.server.workers :])

        def all_answer() -> bool:
            with suppress(OSError, HTTPException):
                silent.discard(self.ask("GET", "/pid")[1]["pid"])
            return not silent

        wait_until("an answer of each worker", all_answer, self.patience)
        return workers

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        """One request, on a connection of its own."""
        connection = self.connection()
        try:
            return ask(connection, method, path)
        finally:
            connection.close()

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.running.port, timeout=PATIENCE)

    def ask_of(self, pid: int, method: str, path: str) -> tuple[int, Any]:
        """Ask until it is this worker that answers."""

        def look() -> tuple[int, Any] | None:
            status, answer = self.ask(method, path)
            return (status, answer) if answer["pid"] == pid else None

        found = wait_until(f"an answer of {pid}", look, self.patience)
        assert found is not None
        return found

    @contextmanager
    def load(self) -> Iterator[Load]:
        with Load(self.running.port) as load:
            yield load

    def signal(self, number: Signals) -> None:
        self.running.signal(number, [event.pid for event in self.record.of("enter")])

    def has_begun(self, ids: Collection[str]) -> None:
        """Wait until these requests have reached their endpoints."""
        wait_until(
            "requests to begin",
            lambda: set(ids) <= {event["id"] for event in self.record.of("begin")},
            self.patience,
        )

    def has_stopped(self, workers: Collection[int]) -> None:
        """Wait until these workers have stopped all of their values."""

        def look() -> bool:
            lines = [line for line in self.record.of("log") if re.search(STOPPED, line["text"])]
            return set(workers) <= {line.pid for line in lines}

        wait_until("workers to stop", look, self.patience)

    def has_drained(self, number: int) -> None:
        """Wait until no more than so many engines and models are alive: old ones have stopped."""

        def look() -> bool:
            names = ("engine", "model")
            entered, left = (
                [event for event in self.record.of(what) if event["name"].startswith(names)]
                for what in ("enter", "leave")
            )
            return len(entered) - len(left) <= number

        wait_until("old values to be left", look, self.patience)

    # How it ends, and what must hold then

    def end(self, ending: str) -> Iterator[Violation]:
        """Wait for the end: its exit code, and what the log says last."""
        code = self.running.end(self.patience)
        self.facts["exit code"] = code
        expected = self.server.codes[ending]
        if code not in expected:
            yield Violation("exit code", f"it is {code}, and not {expected}")
        lines = [line for line in self.running.output.splitlines() if line.strip()]
        self.facts["last line"] = last = lines[-1] if lines else ""
        if not re.search(self.server.last[ending], last):
            yield Violation(
                "last line", f"it is {last!r}, and not like {self.server.last[ending]!r}"
            )

    def log_of_workers_ends(
        self, pattern: str, killed: Collection[int] = ()
    ) -> Iterator[Violation]:
        """What the package says last in each worker that ended by itself."""
        lasts = {event.pid: event["text"] for event in self.record.of("log")}
        for pid, last in lasts.items():
            if pid not in killed and not re.search(pattern, last):
                yield Violation("last log", f"{pid} says last {last!r}, and not like {pattern!r}")

    def output_has(self, *texts: str) -> Iterator[Violation]:
        for text in texts:
            if text not in self.running.output:
                yield Violation("log", f"the log does not have {text!r}")

    def stop(self) -> Iterator[Violation]:
        """SIGTERM, and a clean end."""
        self.running.stop()
        yield from self.end("term")

    def values(self, killed: Collection[int] = ()) -> Iterator[Violation]:
        """All that holds for values in every cell."""
        self.facts["entered"] = len(self.record.of("enter"))
        self.facts["left"] = len(self.record.of("leave"))
        yield from claims.all_left_once_in_order(self.record, killed)
        yield from claims.never_dead(self.record)

    def requests(self, load: Load, killed: Collection[int] = ()) -> Iterator[Violation]:
        """All that holds for requests in every cell under load."""
        self.facts["requests"] = dict(sorted(load.counts().items()))
        self.facts["begun"] = len(self.record.of("begin"))
        yield from claims.nothing_lost(self.record, load.seen, killed)

    def kill(self) -> None:
        for running in self.runs:
            running.kill()
