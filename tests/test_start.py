"""The command `start`: what it shows, what it does about what fails or hangs, how it ends."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fastapi_lifespan_deps import LifespanEvent
from fastapi_lifespan_deps.command.cli import cli, main
from fastapi_lifespan_deps.command.interrupts import Interrupts
from fastapi_lifespan_deps.command.showing import Lines, LiveTable
from fastapi_lifespan_deps.command.start import Attempt
from fastapi_lifespan_deps.command.timeline import Timeline
from fastapi_lifespan_deps.see.watch import Watch
from tests.at_prompt import (
    MODULE,
    SECONDS,
    Terminal,
    environment,
    invoke,
    normalized,
    run,
)

APP = """
import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI

print("imported")
mode = os.environ.get("MODE")
released = threading.Event()  # sets free what hangs, in tests that go on afterwards
if mode == "signal: import":
    signal.raise_signal(signal.SIGINT)
if mode == "signal: interrupt":
    raise KeyboardInterrupt


async def get_pool() -> AsyncIterator[str]:
    if mode == "child":
        subprocess.run(["echo", "a child"])
    print("the pool is open")
    yield "pool"
    if mode == "bad stop":
        raise OSError("not closed\\nreally")
    if mode == "signal: stop":
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(0.01)
    if mode == "hung stop":
        await anyio.to_thread.run_sync(released.wait)
    print("the pool is closed")


def get_model(pool: Annotated[str, Depends(get_pool, scope="lifespan")]) -> Iterator[str]:
    if mode == "fail":
        open("model.bin")
    if mode == "exit":
        sys.exit("no licence")
    if mode == "thread":
        released.wait()
    yield "model"


async def get_index(model: Annotated[str, Depends(get_model, scope="lifespan")]) -> str:
    if mode == "task":
        print("the index hangs", flush=True)
        await anyio.sleep_forever()
    if mode == "loop":
        print("the index hangs", flush=True)
        released.wait()
    if mode == "sleep":
        print("the index hangs", flush=True)
        time.sleep(1000)
    if mode == "thread left":
        threading.Thread(target=released.wait, name="left behind").start()
    if mode == "signal: taken":
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    if mode in ("signal: start", "signal: taken"):
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()
    if mode == "signal: start again":
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        released.wait()
    if mode == "quick thread":
        threading.Thread(target=released.wait, args=[0.01]).start()
    return "index"


@asynccontextmanager
async def lifespan(app: LifespanFastAPI) -> AsyncIterator[None]:
    if mode == "lifespan":
        await asyncio.to_thread(released.wait, 1000)
    if mode == "bad lifespan":
        raise ValueError("the lifespan function failed")
    yield


heard: list[str] = []
app = LifespanFastAPI(lifespan=lifespan, on_lifespan_event=lambda event: heard.append(event.kind))
container = LifespanContainer(get_model)


@app.get("/")
async def read_root(index: Annotated[str, Depends(get_index, scope="lifespan")]) -> None: ...
"""

LINES = """\
imported
Starting get_pool  main.py:27
the pool is open
Started get_pool  0.00 s
Starting get_model  main.py:42
Started get_model  0.00 s
Starting get_index  main.py:52
Started get_index  0.00 s
Stopping get_index
Stopped get_index  0.00 s
Stopping get_model
Stopped get_model  0.00 s
Stopping get_pool
the pool is closed
Stopped get_pool  0.00 s
Started 3 in 0.00 s. Stopped 3 in 0.00 s.
"""


@pytest.fixture(autouse=True)
def here(workplace: Path) -> Path:
    (workplace / "main.py").write_text(APP)
    return workplace


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda mode: monkeypatch.setenv("MODE", mode)


Mode = Callable[[str], None]


def last_line(text: str) -> str:
    return normalized(text).splitlines()[-1]


# Without a terminal


def test_a_line_per_event() -> None:
    ended = invoke("start main:app")
    assert (ended.code, normalized(ended.out), ended.err) == (0, LINES, "")


def test_as_a_process(here: Path) -> None:
    ended = run("start", here)
    assert (ended.code, normalized(ended.out), ended.err) == (0, LINES, "")


def test_the_listener_of_the_application_hears_as_ever() -> None:
    invoke("start main:app")
    heard = sys.modules["main"].heard
    assert heard[0] == "starting"
    assert heard[-1] == "down"


def test_a_container() -> None:
    ended = invoke("start main:container")
    assert ended.code == 0
    assert last_line(ended.out) == "Started 2 in 0.00 s. Stopped 2 in 0.00 s."


def test_json(here: Path) -> None:
    ended = run("start --json", here)
    assert ended.code == 0
    # what the application prints is not between it
    assert ended.err == "imported\nthe pool is open\nthe pool is closed\n"
    *events, summary = map(json.loads, ended.out.splitlines())
    names = ["get_pool", "get_model", "get_index"]
    assert [(one["event"], one["name"]) for one in events] == [
        *((kind, name) for name in names for kind in ("starting", "started")),
        *((kind, name) for name in names[::-1] for kind in ("stopping", "stopped")),
    ]
    assert events[0] == {
        "event": "starting",
        "name": "get_pool",
        "where": "main.py:27",
        "seconds": None,
        "error": None,
    }
    assert 0 < summary.pop("start_seconds") < SECONDS
    assert 0 < summary.pop("stop_seconds") < SECONDS
    assert summary == {
        "event": "summary",
        "version": 1,
        "exit_code": 0,
        "started": 3,
        "stopped": 3,
        "error": None,
        "hanging": [],
    }


def test_a_child_does_not_write_between_the_json(here: Path) -> None:
    ended = run("start --json", here, MODE="child")
    assert ended.code == 0
    assert "a child\n" in ended.err
    assert len([*map(json.loads, ended.out.splitlines())]) == 13


def test_json_to_a_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (here / "events.jsonl").open("w") as file, redirect_stdout(file):
        assert cli(["start", "--json"], standalone_mode=False) == 0
        print("afterwards")
    *lines, last = (here / "events.jsonl").read_text().splitlines()
    assert len([*map(json.loads, lines)]) == 13
    assert last == "afterwards"
    assert "the pool is open\n" in capfd.readouterr().err


def test_json_of_what_is_not_there() -> None:
    ended = invoke("start main:nothing --json")
    assert ended.code == 2
    assert json.loads(ended.out)["exit_code"] == 2
    assert "'main' has no 'nothing'" in ended.err


# What fails


def test_a_start_that_fails(mode: Mode) -> None:
    mode("fail")
    ended = invoke("start")
    assert ended.code == 1
    assert last_line(ended.out) == (
        "The start failed after 0.00 s, with 1 started. Stopped 1 in 0.00 s."
    )
    lines = ended.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('main.py", line 44, in get_model')
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'model.bin'" in lines
    assert lines[-1] == "`get_model` (main.py:42) failed to start"
    assert "fastapi_lifespan_deps" not in ended.err


def test_a_start_that_fails_in_json(mode: Mode) -> None:
    mode("fail")
    *events, summary = map(json.loads, invoke("start --json").out.splitlines())
    assert [one["error"] for one in events if one["error"]] == [summary["error"]]
    assert summary["error"].startswith("FileNotFoundError: ")
    assert (summary["exit_code"], summary["started"], summary["stopped"]) == (1, 1, 1)


SPEECHLESS = """
from fastapi_lifespan_deps import LifespanContainer

class Speechless(Exception):
    def __str__(self):
        raise ValueError

def get_pool():
    raise Speechless

app = LifespanContainer(get_pool)
"""


@pytest.mark.parametrize(("options", "count"), [("", 1), (" --json", 2)])
def test_an_error_that_cannot_say_what_it_is(here: Path, options: str, count: int) -> None:
    (here / "main.py").write_text(SPEECHLESS)
    ended = invoke(f"start main:app{options}")
    assert ended.code == 1
    assert ended.out.count("Speechless: <exception str() failed>") == count
    assert ended.err.splitlines()[-1] == "`get_pool` (main.py:8) failed to start"
    assert "failed to hear" not in ended.err


def test_a_provider_that_exits(mode: Mode) -> None:
    mode("exit")
    ended = invoke("start")
    assert ended.code == 1
    assert "SystemExit: no licence" in ended.err


def test_a_lifespan_function_that_fails(mode: Mode) -> None:
    mode("bad lifespan")
    ended = invoke("start")
    assert ended.code == 1
    assert last_line(ended.out) == "The start failed after 0.00 s, with 3 started. Stopped 3."
    assert ended.err.splitlines()[-1] == "ValueError: the lifespan function failed"


def test_a_stop_that_fails(mode: Mode) -> None:
    mode("bad stop")
    ended = invoke("start")
    assert ended.code == 1
    assert "Failed to stop get_pool  0.00 s  OSError: not closed\n" in normalized(ended.out)
    assert last_line(ended.out) == "Started 3 in 0.00 s. Stopped 2 of 3 in 0.00 s."
    assert "OSError: not closed\nreally\n" in ended.err


@pytest.mark.parametrize(
    ("timeout", "text"),
    [
        ("0", "give more than 0 seconds"),
        ("-1", "give more than 0 seconds"),
        ("nan", "give more than 0 seconds"),
        ("long", "Invalid value for '--timeout'"),
    ],
)
def test_a_bad_time_limit(timeout: str, text: str) -> None:
    ended = invoke(f"start --timeout {timeout}")
    assert ended.code == 2
    assert text in ended.err


def test_what_the_log_says_is_not_held_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastapi_lifespan_deps")
    assert invoke("start").code == 0
    assert "Started 3 lifespan dependencies in " in caplog.text


def test_no_time_limit() -> None:
    assert invoke("start --timeout inf").code == 0


# What hangs


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have been left; what hangs is set free instead."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        sys.modules["main"].released.set()

    monkeypatch.setattr(os, "_exit", leave)
    return codes


@pytest.mark.parametrize(
    ("hanging", "lines"),
    [
        (
            "thread",
            [
                "The start has taken 0.4 s, which is its time limit.",
                "`get_model` (main.py:42) has been starting for 0.00 s; it runs at main.py:48",
                "The stop has taken 0.4 s, which is its time limit.",
                "`get_model` (main.py:42) has been starting for 0.00 s; it runs at main.py:48",
            ],
        ),
        (
            "loop",
            [
                "The start has taken 0.4 s, which is its time limit.",
                "`get_index` (main.py:52) has been starting for 0.00 s; it runs at main.py:58",
                "The stop has taken 0.4 s, which is its time limit.",
                "`get_index` (main.py:52) has been starting for 0.00 s; it runs at main.py:58",
            ],
        ),
        (
            "hung stop",
            [
                "The stop has taken 0.4 s, which is its time limit.",
                "`get_pool` (main.py:27) has been stopping for 0.00 s; it waits at main.py:38",
            ],
        ),
        (
            "lifespan",
            [
                "The start has taken 0.4 s, which is its time limit.",
                "`lifespan` (main.py:78) has been starting for 0.00 s; it waits at main.py:81",
                "The stop has taken 0.4 s, which is its time limit.",
                "These threads were started meanwhile, and have not ended: `asyncio_0`",
            ],
        ),
        (
            "thread left",
            [
                "The end of the process has taken 0.4 s, which is its time limit.",
                "These threads were started meanwhile, and have not ended: `left behind`",
            ],
        ),
    ],
)
def test_what_hangs_is_told(
    mode: Mode,
    left: list[int],
    hanging: str,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode(hanging)
    monkeypatch.syspath_prepend("")
    import_module("main")  # which takes its time
    ended = invoke("start --timeout 0.4")
    assert left == [1]
    assert ended.code == 1
    # asyncio has a thread that waits for its others
    told = re.sub(r", `Thread-\d+ \(_do_shutdown\)`", "", normalized(ended.err)).splitlines()
    assert told[: len(lines)] == lines


def test_a_start_that_hangs_and_can_be_cancelled(mode: Mode, left: list[int]) -> None:
    mode("task")
    ended = invoke("start --timeout 1")
    assert (ended.code, left) == (1, [])
    assert "`get_index` (main.py:52) has been starting for " in ended.err
    assert last_line(ended.out) == (
        "Gave up the start after 0.00 s, with 2 started. Stopped 2 in 0.00 s."
    )


def test_json_says_what_hung_though_it_was_cancelled(mode: Mode) -> None:
    mode("task")
    ended = invoke("start --timeout 1 --json")
    (hung,) = json.loads(last_line(ended.out))["hanging"]
    assert 0 < hung.pop("seconds") < SECONDS
    position = hung.pop("position")
    assert re.fullmatch(r"waits at main\.py:\d+", position)
    assert hung == {"name": "get_index", "where": "main.py:52"}


def test_an_import_that_hangs(here: Path, left: list[int]) -> None:
    lines = "import threading", "released = threading.Event()", "released.wait()"
    (here / "main.py").write_text("\n".join([*lines, APP]))
    ended = invoke("start --timeout 0.4")
    assert left == [1]
    assert ended.err.splitlines()[:2] == [
        "The import has taken 0.4 s, which is its time limit.",
        "It is at main.py:3",
    ]


def test_a_thread_that_ends_soon(mode: Mode) -> None:
    mode("quick thread")
    assert invoke("start").code == 0


EXECUTOR = """
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

from fastapi_lifespan_deps import LifespanContainer

if "{kind}" == "threads":
    pool = ThreadPoolExecutor(1)
else:
    from concurrent.futures import ProcessPoolExecutor
    pool = ProcessPoolExecutor(1, get_context("spawn"))

def get_answer():
    return pool.submit(int, "42").result()

app = LifespanContainer(get_answer)
"""


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_executor_that_nobody_shuts_down(here: Path, kind: str) -> None:
    """Python does, when the process ends."""
    (here / "main.py").write_text(EXECUTOR.format(kind=kind))
    ended = run("start main:app --timeout 20", here)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("hanging", ["thread", "sleep", "hung stop", "lifespan", "thread left"])
def test_what_hangs_is_left(here: Path, hanging: str) -> None:
    ended = run("start --timeout 2", here, MODE=hanging)
    assert ended.code == 1
    assert "which is its time limit" in ended.err
    assert last_line(ended.out).startswith(("Started 3", "Gave up the start"))


@pytest.mark.parametrize("command", ["start", "start --json", "check", "graph"])
def test_without_a_standard_output(here: Path, command: str) -> None:
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *MODULE]
    ended = run(command, here, closed)
    assert (ended.code, ended.out) == (0, "")
    assert "Traceback" not in ended.err


def test_what_is_printed_without_a_standard_output_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    main()
    with sys.stdout:
        print("lost")


# At a terminal


def test_at_a_terminal(here: Path) -> None:
    with Terminal("start", here) as terminal:
        assert terminal.wait() == 0
    shown = re.sub(" +$", "", normalized(terminal.text), flags=re.MULTILINE)
    assert "importing: the application, 0.00 s" in shown
    assert shown.endswith(
        "✓ get_pool  0.00 s\n✓ get_model  0.00 s\n✓ get_index  0.00 s\n"
        "Started 3 in 0.00 s. Stopped 3 in 0.00 s.\n"
    )
    # in what was drawn it was not lost
    for printed in ("imported", "the pool is open", "the pool is closed"):
        assert f"{printed}\n" in shown


def test_at_a_narrow_terminal_without_colours(here: Path) -> None:
    with Terminal("start", here, columns=40, MODE="fail", NO_COLOR="1") as terminal:
        assert terminal.wait() == 1
    lines = normalized(terminal.text).splitlines()
    # What is drawn last stays. On a busy machine it was drawn before, too.
    failed = [line for line in lines if line.startswith("✗")][-1]
    assert failed == "✗ get_model  0.00 s FileNotFoundError:…"
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.seen)
    assert "  File " in terminal.text


def test_at_a_dumb_terminal(here: Path) -> None:
    with Terminal("start", here, TERM="dumb") as terminal:
        assert terminal.wait() == 0
    assert normalized(terminal.seen) == LINES


@pytest.mark.parametrize("hanging", ["task", "sleep"])
def test_ctrl_c_stops_it(here: Path, hanging: str) -> None:
    """A second one leaves what hangs, be it the event loop."""
    with Terminal("start", here, MODE=hanging) as terminal:
        terminal.read_until("the index hangs")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("SIGINT: stopping. Once more leaves what hangs.")
        if hanging == "sleep":
            terminal.process.send_signal(signal.SIGINT)
        code = terminal.wait()
    assert "`get_index` (main.py:52) has been starting for" in terminal.text
    if hanging == "task":
        assert code == 130
        assert "Stopped 2 in " in terminal.text
    else:
        assert code == 1
        assert "Stopped 0 of 2 in " in terminal.text
    assert "the pool is closed" in terminal.text or hanging == "sleep"


def test_sigterm_stops_it(here: Path) -> None:
    with Terminal("start", here, MODE="task") as terminal:
        terminal.read_until("the index hangs")
        terminal.process.terminate()
        assert terminal.wait() == 143


def test_ctrl_c_while_it_is_imported(here: Path) -> None:
    (here / "main.py").write_text("import time\nprint('importing')\ntime.sleep(1000)\n")
    with Terminal("start", here) as terminal:
        terminal.read_until("importing\n")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text


# Signals that a provider sends to this very process


@pytest.mark.parametrize(
    ("signalled", "code", "text"),
    [
        ("start", 130, "SIGINT: stopping. Once more leaves what hangs."),
        ("taken", 130, "SIGINT: stopping. Once more leaves what hangs."),
        ("start again", 1, "`get_index` (main.py:52) has been starting for"),
        ("stop", 130, "SIGINT: stopping. Once more leaves what hangs."),
        ("import", 130, ""),
        ("interrupt", 130, ""),
    ],
)
def test_signals(mode: Mode, left: list[int], signalled: str, code: int, text: str) -> None:
    mode(f"signal: {signalled}")
    ended = invoke("start")
    assert ended.code == code
    assert left == ([1] if signalled == "start again" else [])
    assert text in ended.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_python_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was set in C is None to it."""
    put_back: list[object] = []
    real = signal.signal

    def set_handler(number: int, handler: Any) -> Any:
        put_back.append(handler)
        real(number, handler)

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", set_handler)
        assert invoke("start").code == 0
    real(signal.SIGINT, signal.default_int_handler)
    assert put_back[-2:] == [signal.SIG_DFL, signal.SIG_DFL]


def test_other_signals_are_for_others() -> None:
    told, heard = threading.Event(), []

    def listen(number: int) -> None:
        heard.append(number)
        told.set()

    former = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    with Interrupts(listen):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert told.wait(SECONDS)
    signal.signal(signal.SIGUSR1, former)
    assert heard == [signal.SIGTERM]


def test_what_comes_too_late_does_nothing() -> None:
    """Another thread may have been a moment faster."""
    timeline = Timeline()
    attempt = Attempt(timeline, Lines(timeline, sys.stdout), 60)
    attempt.late("starting")
    attempt.interrupt(signal.SIGINT)
    attempt.begin("importing")
    attempt.interrupt(signal.SIGINT)  # the main thread is told by an exception
    attempt.end()
    assert attempt.code == 0


# What reads it, and goes


def test_a_reader_that_goes(here: Path) -> None:
    """The start is not what it goes with."""
    process = subprocess.Popen(
        [*MODULE, "start"],
        cwd=here,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "imported\n"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(SECONDS) == 0
    assert errors == ""


def test_a_reader_that_is_gone() -> None:
    (Path("main.py")).write_text(APP.replace("print(", "str("))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file, redirect_stdout(file):
        assert cli(["start"], standalone_mode=False) == 0


# Drawn


def test_drawn_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for command, code, text in (("start", 0, "Started 3 in"), ("start main:no", 2, "")):
        ours, theirs = pty.openpty()
        with os.fdopen(theirs, "w") as file, redirect_stdout(file):
            assert cli(command.split(), standalone_mode=False) == code
            shown = b""
            while text.encode() not in shown:  # a terminal gives it in parts
                assert select.select([ours], [], [], SECONDS)[0]
                shown += os.read(ours, 65536)
        os.close(ours)


def told(
    kind: Any, number: int, seconds: float | None = None, error: BaseException | None = None
) -> LifespanEvent:
    return LifespanEvent(
        kind=kind,
        provider=PROVIDERS[number],
        name=f"get_{number:02}",
        where="x.py:1",
        time_ns=0,
        seconds=seconds,
        error=error,
    )


PROVIDERS = [lambda number=number: number for number in range(100)]


class Hook:
    """What waits."""

    def __init__(self, provider: Callable[..., Any]) -> None:
        self.provider = provider

    def position(self) -> str:
        return "waits at main.py:7"


def run_with(*hooks: Hook) -> Any:
    """As much of a run as is looked at."""
    watch = Watch(None)
    for hook in hooks:
        watch.begin(hook, "start")
    return SimpleNamespace(live=SimpleNamespace(supervisor=SimpleNamespace(watch=watch)))


def drawn(
    *events: LifespanEvent,
    hooks: Sequence[Hook] = (),
    phase: str = "starting",
    width: int = 60,
    encoding: str = "utf-8",
    is_over: bool = False,
) -> list[str]:
    """What a terminal of ten lines shows after these events."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, force_terminal=True, width=width, height=10, highlight=False)
    timeline = Timeline()
    timeline.attend(run_with(*hooks))
    table = LiveTable(timeline, console, "main:app")
    table.begin(phase)
    for event in events:
        table.hear(event)
    if is_over:
        table.close()
    recording = Console(file=io.StringIO(), record=True, width=width)
    recording.print(table.render())
    if not is_over:
        table.close()
    return [line.rstrip() for line in normalized(recording.export_text()).splitlines()]


def test_the_rows() -> None:
    events = [
        told("starting", 1),
        told("started", 1, 0.5),
        told("starting", 2),
        told("started", 2, 1.0),
        told("starting", 3),
        told("start_failed", 3, 0.1, ValueError("first\nsecond")),
        told("starting", 4),
        told("stopping", 1),
        told("stopping", 2),
        told("stop_failed", 2, 0.2, ValueError()),
    ]
    assert drawn(*events) == [
        "… get_01  0.00 s stops",
        "✗ get_02  0.00 s ValueError",
        "✗ get_03  0.00 s ValueError: first",
        "… get_04  0.00 s",
        "starting: 2 started, 0.00 s",
    ]
    assert drawn(*events, is_over=True) == drawn(*events)[:-1]


def test_a_hook_is_a_row_while_it_runs() -> None:
    events = told("starting", 1), told("started", 1, 0.5), told("starting", 2)
    assert drawn(*events, hooks=[Hook(PROVIDERS[2]), Hook(invoke)], width=70) == [
        "✓ get_01  0.00 s",
        "… get_02  0.00 s waits at main.py:7",
        "… invoke  0.00 s waits at main.py:7",
        "starting: 1 started, 0.00 s",
    ]


def test_a_hook_without_a_hash_is_a_row_too() -> None:
    @dataclass
    class Warming:
        def __call__(self) -> None: ...

    assert drawn(hooks=[Hook(Warming())], width=90)[0].startswith("… ")


def test_bars() -> None:
    events = [
        told(kind, number, seconds)
        for number, seconds in ((1, 0.5), (2, 1.0), (3, 0.0))
        for kind in ("starting", "started")
    ]
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, highlight=False, no_color=True)
    table = LiveTable(Timeline(), console, "main:app")
    for event in events:
        table.hear(event)
    table.close()
    bars = [line.count("█") for line in file.getvalue().splitlines() if "get_" in line][-3:]
    assert bars == [10, 20, 0]


@pytest.mark.parametrize(
    ("phase", "line"),
    [
        ("importing", "importing: main:app, 0.00 s"),
        ("starting", "starting: 1 started, 0.00 s"),
        ("stopping", "stopping: 0 of 1 stopped, 0.00 s"),
        ("leaving", "leaving: 0.00 s"),
    ],
)
def test_the_line_below(phase: str, line: str) -> None:
    events = told("starting", 1), told("started", 1, 0.5)
    assert drawn(*events, phase=phase)[-1] == line


def test_more_rows_than_fit() -> None:
    """Those that are starting are seen; in the end, all."""
    events = [
        told(kind, number, 0.1)
        for number in range(50)
        for kind in (("starting",) if number in (3, 49) else ("starting", "started"))
    ]
    lines = drawn(*events)
    assert [line.split()[1] for line in lines[:-1]] == [
        "get_03",
        *(f"get_{number}" for number in range(44, 50)),
    ]
    assert len(drawn(*events, is_over=True)) == 50
    many = [told("starting", number) for number in range(50)]
    assert len(drawn(*many)) == 8


def test_a_narrow_terminal() -> None:
    events = told("starting", 1), told("started", 1, 0.5)
    for width in (40, 20, 10, 1):
        assert all(len(line) <= width for line in drawn(*events, width=width))


def test_a_terminal_that_knows_no_blocks() -> None:
    events = told("starting", 1), told("started", 1, 0.5), told("starting", 2)
    assert drawn(*events, encoding="ascii")[:2] == ["+ get_01  0.00 s", ". get_02  0.00 s"]


def test_events_that_say_nothing_of_a_row() -> None:
    timeline = Timeline()
    assert timeline.hear(told("stopped", 1, 0.5)) is None
    assert timeline.hear(told("refreshing", 1)) is None
    assert timeline.rows == []
