"""Showing: a start and a stop as they happen, on a terminal, line by line, or as JSON."""

import json
import os
import sys
import time
from typing import Any, Protocol, TextIO

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastapi_lifespan_deps.events import LifespanEvent

from .timeline import Row, Timeline

BAR_WIDTH = 20
SECONDS_WIDTH = 8
LINES_BESIDES = 3  # of a terminal's height: the line below the rows, and room to breathe

_WORDS = {"start_failed": "Failed to start", "stop_failed": "Failed to stop"}


class Show(Protocol):
    """Shows what happens, to a person or to a program."""

    is_live: bool
    """Whether it shows what starts while it does."""

    def begin(self, phase: str) -> None:
        """The application is being imported, started, or stopped."""

    def hear(self, event: LifespanEvent) -> None: ...

    def close(self) -> None:
        """Nothing happens any more."""

    def sum_up(self, summary: str, data: dict[str, Any]) -> None:
        """Show how it went, in words or as data."""


def show_for(timeline: Timeline, place: str, file: TextIO, *, as_json: bool) -> Show:
    """What suits what the command prints to."""
    if as_json:
        return JSONLines(timeline, file)
    if file.isatty() and os.environ.get("TERM") != "dumb":
        return LiveTable(timeline, Console(highlight=False), place)
    return Lines(timeline, file)


class Lines:
    """A line for each event."""

    is_live = False

    def __init__(self, timeline: Timeline, file: TextIO) -> None:
        self._timeline = timeline
        self._file = file

    def begin(self, phase: str) -> None: ...

    def hear(self, event: LifespanEvent) -> None:
        row = self._timeline.hear(event)
        if row is None:
            return
        texts = [f"{_WORDS.get(event.kind, event.kind.capitalize())} {row.name}"]
        if event.kind == "starting":
            texts.append(row.where)
        if event.seconds is not None:
            texts.append(f"{event.seconds:.2f} s")
        if event.error is not None:
            texts.append(in_a_line(event.error))
        self._write("  ".join(texts))

    def close(self) -> None: ...

    def sum_up(self, summary: str, data: dict[str, Any]) -> None:
        if summary:
            self._write(summary)

    def _write(self, text: str) -> None:
        try:
            print(text, file=self._file, flush=True)
        except BrokenPipeError:  # who reads it has enough: the start goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())


class JSONLines(Lines):
    """An object for each event, in a line of its own; the last one tells how it went."""

    def hear(self, event: LifespanEvent) -> None:
        if self._timeline.hear(event) is not None:
            error = None if event.error is None else in_a_line(event.error)
            fields = {"event": event.kind, "name": event.name, "where": event.where}
            self._write(json.dumps({**fields, "seconds": event.seconds, "error": error}))

    def sum_up(self, summary: str, data: dict[str, Any]) -> None:
        self._write(json.dumps({"event": "summary", "version": 1, **data}))


class LiveTable:
    """A row for each dependency on a terminal, drawn anew while something happens.

    By a thread of its own: a provider may block the event loop.
    """

    is_live = True

    def __init__(self, timeline: Timeline, console: Console, place: str) -> None:
        self._timeline = timeline
        self._console = console
        self._place = place
        self._phase = "importing"
        self._since = time.monotonic()
        self._is_over = False
        has_blocks = not console.options.ascii_only
        self._marks = "✓✗…" if has_blocks else "+x."
        self._has_bars = has_blocks
        self._live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=8,
            redirect_stderr=sys.stderr.isatty(),
            vertical_overflow="crop",
        )
        self._live.start()

    def begin(self, phase: str) -> None:
        self._phase, self._since = phase, time.monotonic()

    def hear(self, event: LifespanEvent) -> None:
        self._timeline.hear(event)

    def close(self) -> None:
        self._is_over = True
        self._live.stop()

    def sum_up(self, summary: str, data: dict[str, Any]) -> None:
        if summary:
            self._console.print(summary)

    def render(self) -> RenderableType:
        rows = list(self._timeline.rows)
        places: dict[int, str] = {}  # by the id of the provider: a hook may have no hash
        for row, place in self._timeline.under_way():
            places[id(row.provider)] = place
            if not any(known.provider is row.provider for known in rows):
                rows.append(row)  # a hook, or a lifespan function
        longest = max((row.seconds for row in rows), default=0.0)
        if not self._is_over:
            rows = self._those_that_fit(rows)
        names = max((cell_len(row.name) for row in rows), default=0)
        names = min(names, self._console.width // 2)
        left = max(self._console.width - names - SECONDS_WIDTH - 4, 1)  # a mark, and three spaces
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=names, no_wrap=True, overflow="ellipsis")
        table.add_column(width=SECONDS_WIDTH, no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=left)
        for row in rows:
            if row.is_moving:
                seconds, beside = self._moving(row, places.get(id(row.provider), ""))
            else:
                seconds, beside = self._ended(row, longest, min(BAR_WIDTH, left))
            table.add_row(self._mark(row), Text(row.name), Text(seconds), beside)
        if self._is_over:
            return table
        return Group(table, Text(self._status(), "dim", no_wrap=True, overflow="ellipsis"))

    def _those_that_fit(self, rows: list[Row]) -> list[Row]:
        """Those that are moving, and of the others the last, in the order that they have."""
        room = max(self._console.height - LINES_BESIDES, 1)
        others = [row for row in rows if not row.is_moving]
        left = max(room - (len(rows) - len(others)), 0)
        kept = set(others[len(others) - left :]) if left else set()
        return [row for row in rows if row.is_moving or row in kept][-room:]

    def _mark(self, row: Row) -> Text:
        if row.state in ("start_failed", "stop_failed", "died"):
            return Text(self._marks[1], "bold red")
        return Text(self._marks[2], "yellow") if row.is_moving else Text(self._marks[0], "green")

    def _moving(self, row: Row, place: str) -> tuple[str, RenderableType]:
        """How long it has lasted, and what there is to say beside."""
        stops = "stops  " if row.state == "stopping" else ""
        return f"{row.lasting:.1f} s", Text(stops + place)

    def _ended(self, row: Row, longest: float, width: int) -> tuple[str, RenderableType]:
        seconds = f"{row.seconds:.2f} s"
        if row.error is not None:
            return seconds, Text(in_a_line(row.error), "red")
        if not self._has_bars:
            return seconds, Text()
        return seconds, Bar(longest or 1.0, 0, row.seconds, width=width, color="cyan")

    def _status(self) -> str:
        timeline = self._timeline
        what = {
            "importing": f"{self._place}, ",
            "starting": f"{timeline.started} started, ",
            "stopping": f"{timeline.number('stopped')} of {timeline.started} stopped, ",
        }.get(self._phase, "")
        return f"{self._phase}: {what}{time.monotonic() - self._since:.1f} s"


def in_a_line(error: BaseException) -> str:
    """An error with the first line of its message."""
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"  # as Python has it in a traceback
    first, *_ = text.splitlines() or [""]
    return f"{type(error).__name__}: {first}".rstrip(": ")
