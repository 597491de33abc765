"""A server and all the processes that it has started, as Linux's /proc shows them."""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

PROC = Path("/proc")
STOP_SECONDS = 15


class Memory(NamedTuple):
    """In bytes."""

    processes: int
    resident: int
    """The sum over the processes: what they share is counted in each."""
    proportional: int
    """The same, with what is shared divided by the number of those who share it."""


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Of the whole tree, until now."""
    ticks = sum(int(fields[11]) + int(fields[12]) for p in tree(pid) if (fields := _stat(p)))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> Memory:
    """Of the whole tree."""
    processes = tree(pid)
    kilobytes = {"Rss": 0, "Pss": 0}
    for process in processes:
        with suppress(OSError):
            for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in kilobytes:
                    kilobytes[name] += int(value.split()[0])
    return Memory(len(processes), kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024)


@contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """Let these trees do nothing at all: some poll, and would take time from who is measured."""
    processes = [process for pid in pids for process in tree(pid)]
    try:
        for process in processes:
            _signal(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            _signal(process, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str] | None:
    """The fields after the name, which may have spaces: state, parent, ..."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None  # It has ended meanwhile.


@contextmanager
def started(
    command: list[str | Path], environment: dict[str, str], directory: Path, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server. At the end, nothing is left of its tree."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the benchmark.
        ) as process,
    ):
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    processes = tree(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in _left(processes, 1):
        _signal(pid, signal.SIGKILL)
    _left(processes, STOP_SECONDS)


def _left(processes: list[int], seconds: float) -> list[int]:
    """Those that still run after some time, in which they may end."""
    deadline = monotonic() + seconds
    while (left := [pid for pid in processes if is_alive(pid)]) and monotonic() < deadline:
        sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    """Whether it still runs: one that has ended, and nobody has asked how, doesn't."""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"
