"""The command `start`: start everything once, as a server does, and stop it."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, Any

import anyio
import typer

from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.events import LifespanEvent, logger
from fastapi_lifespan_deps.exceptions import relative
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.see.frames import called_by
from fastapi_lifespan_deps.serve.applications import observe

from .check import App, Factory
from .finding import Found
from .interrupts import Interrupts
from .showing import Show, in_a_line, show_for
from .telling import WRONG, found_or_exit, quietly, say, traceback_of
from .timeline import Timeline

# The phases, by what they are called when they take too long.
_NOUNS = {
    "importing": "The import",
    "starting": "The start",
    "stopping": "The stop",
    "leaving": "The end of the process",
}

# The modules whose threads do what they are asked to.
_EXECUTORS = {"concurrent.futures.thread", "concurrent.futures.process"}


def start(
    app: App = None,
    factory: Factory = False,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds that the import may take, and the start, and the stop"),
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a JSON object per event, and one at the end")
    ] = False,
) -> None:
    """Start everything once, as a server does, and stop it: a smoke test.

    What still hangs when its time is up is told. Ctrl-C stops what was started; a second one
    leaves it.

    Exit codes: 0, 1 if something fails or hangs, 2 if there is no application that knows the
    lifespan scope, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if not timeout > 0:
        raise typer.BadParameter("give more than 0 seconds", param_hint="--timeout")
    timeline = Timeline()
    with quietly() if as_json else nullcontext(sys.stdout) as file:
        show = show_for(timeline, app or "the application", file, as_json=as_json)
        attempt = Attempt(timeline, show, timeout)
        with Interrupts(attempt.interrupt) as interrupts:
            try:
                interrupts.raises = True
                attempt.begin("importing")
                found = found_or_exit(app, factory)
                interrupts.raises = False
                attempt.run(found)
            except typer.Exit as error:
                attempt.code = error.exit_code
            except KeyboardInterrupt as error:  # while it was imported
                attempt.code = 128 + next(iter(error.args), signal.SIGINT)
            finally:
                interrupts.raises = False
                attempt.end()
    raise typer.Exit(attempt.code)


class Attempt:
    """One start and one stop, each with a time limit.

    The limit is kept by a thread of its own, and in the end by leaving the process: what hangs
    may be the event loop, or a thread that nothing can cancel.
    """

    def __init__(self, timeline: Timeline, show: Show, seconds: float) -> None:
        self.code = 0
        self._timeline = timeline
        self._show = show
        self._limit = seconds
        self._phase = ""
        self._since = 0.0  # when the phase began
        self._took: dict[str, float] = {}  # seconds, by phase
        self._outcome = "The start failed"
        self._interrupts = 0
        self._error: BaseException | None = None
        self._hanging: list[dict[str, Any]] = []  # as it was told
        self._cancel: Callable[[], object] = lambda: None
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._threads = threading.enumerate()  # those that are none of the application's

    def begin(self, phase: str) -> None:
        """Begin a phase, which has a time limit of its own."""
        with self._lock:
            self._end_phase()
            self._phase, self._since = phase, time.monotonic()
            self._show.begin(phase)
            seconds = min(self._limit, threading.TIMEOUT_MAX)
            self._timer = threading.Timer(seconds, self.late, [phase])
            self._timer.daemon = True
            self._timer.start()

    def _end_phase(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._took[self._phase] = time.monotonic() - self._since

    def run(self, found: Found) -> None:
        """Start it and stop it."""
        observe(found.app, self._attend)
        logger.addFilter(self._is_news)
        try:
            anyio.run(self._start_and_stop, _entered(found))
        except (Exception, SystemExit, BaseExceptionGroup) as error:
            self._error = error
            self.code = self.code or WRONG
        finally:
            logger.removeFilter(self._is_news)
        if self._lingering:
            self.begin("leaving")
            while threads := self._lingering:
                threads[0].join(0.1)  # or it becomes idle

    def _attend(self, run: Run) -> None:
        self._timeline.attend(run)
        run.events.listen(self._hear)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Whether a line of the log says what is not seen here anyway."""
        is_slow = str(getattr(record, "lifespan_event", "")).endswith("_slow")
        return not (is_slow and (self._show.is_live or self.code))

    def _hear(self, event: LifespanEvent) -> None:
        self._show.hear(event)
        if event.kind == "start_failed" and event.is_raised and self._phase == "starting":
            self.begin("stopping")  # the rest

    async def _start_and_stop(self, entered: AbstractAsyncContextManager[Any]) -> None:
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:
            self._cancel = lambda: loop.call_soon_threadsafe(scope.cancel)
            self.begin("starting")
            async with entered:
                self._outcome = "Started"
                self.begin("stopping")

    def late(self, phase: str) -> None:
        """The time of a phase is up; called in the timer's thread."""
        with self._lock:
            if self._phase != phase:
                return  # it has ended meanwhile
            say(f"{_NOUNS[phase]} has taken {self._limit:g} s, which is its time limit.")
            self._tell_who_hangs()
            self.code = WRONG
            if phase == "starting":
                self._give_up()
            else:
                self._leave()

    def interrupt(self, number: int) -> None:
        """Give up what is being done; leave it, if that was asked for already."""
        with self._lock:
            if self._phase == "":
                return  # it is over
            self._interrupts += 1
            if self._interrupts > 1 or self.code:
                self._tell_who_hangs()
                self._leave()
            elif self._phase != "importing":
                self.code = 128 + number
                say(f"{signal.Signals(number).name}: stopping. Once more leaves what hangs.")
                self._tell_under_way()
                if self._phase == "starting":
                    self._give_up()

    def _give_up(self) -> None:
        """Give up the start, and stop what has started."""
        self._outcome = "Gave up the start"
        self.begin("stopping")
        self._cancel()

    def _leave(self) -> None:
        """End the process, whatever hangs in it."""
        self._took[self._phase] = time.monotonic() - self._since
        self._phase, self.code = "", WRONG
        try:
            self._tell_end()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(self.code)

    def _tell_under_way(self) -> bool:
        found = []
        for row, position in self._timeline.under_way():
            fields = {"name": row.name, "where": row.where, "position": position}
            found.append({**fields, "seconds": row.lasting})
            text = f"`{row.name}` ({row.where}) has been {row.state} for {row.lasting:.1f} s"
            say(f"{text}; it {position}" if position else text)
        self._hanging = found or self._hanging
        return bool(found)

    def _tell_who_hangs(self) -> None:
        is_known = self._tell_under_way()
        names = ", ".join(f"`{thread.name}`" for thread in self._lingering)
        if self._phase == "importing":
            say(f"It is at {_place_of_import()}")
        elif names and not is_known:
            say(f"These threads were started meanwhile, and have not ended: {names}")

    @property
    def _lingering(self) -> list[threading.Thread]:
        """The threads of the application that keep the process from ending."""
        left = [one for one in threading.enumerate() if one not in self._threads]
        return [thread for thread in left if not (thread.daemon or _is_idle(thread))]

    def end(self) -> None:
        """Tell how it went."""
        with self._lock:
            self._end_phase()
            self._phase = ""
            self._tell_end()

    def _tell_end(self) -> None:
        timeline, took = self._timeline, self._took
        started, stopped = timeline.started, timeline.number("stopped")
        texts = []
        if "starting" in took:
            seconds = f"{took['starting']:.2f} s"
            texts.append(
                f"{self._outcome} {started} in {seconds}."
                if self._outcome == "Started"
                else f"{self._outcome} after {seconds}, with {started} started."
            )
            seconds = f" in {took['stopping']:.2f} s" if "stopping" in took else ""
            texts.append(f"Stopped {_of(stopped, started)}{seconds}.")
        self._show.close()
        if self._error is not None:
            say(traceback_of(self._error))
        self._show.sum_up(
            " ".join(texts),
            {
                "exit_code": self.code,
                "started": started,
                "start_seconds": took.get("starting"),
                "stopped": stopped,
                "stop_seconds": took.get("stopping"),
                "error": None if self._error is None else in_a_line(self._error),
                "hanging": self._hanging,
            },
        )


def _is_idle(thread: threading.Thread) -> bool:
    """Whether it is an executor's, and waits for something to do: Python ends it at its own end."""
    frame = sys._current_frames().get(thread.ident or 0)
    module = None if frame is None else frame.f_globals.get("__name__")
    # that of a pool of processes waits in other modules
    return not _EXECUTORS.isdisjoint((module, type(thread).__module__))


def _place_of_import() -> str:
    """Where the main thread is in what it imports: in the user's code, if it is in that."""
    main = threading.main_thread().ident or 0
    frames = called_by(main, found_or_exit.__code__)
    places = [f"{relative(one.f_code.co_filename)}:{one.f_lineno}" for one in frames]
    own = [place for place in places if not place.startswith((os.sep, "<"))]
    return [*places, *own][-1]


def _of(number: int, total: int) -> str:
    return str(number) if number == total else f"{number} of {total}"


def _entered(found: Found) -> AbstractAsyncContextManager[Any]:
    if isinstance(found.app, LifespanContainer):
        return found.app
    context: AbstractAsyncContextManager[Any] = found.app.router.lifespan_context(found.app)
    return context
