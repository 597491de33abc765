"""Commands as they are given: in this process, in one of its own, at a terminal."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from typer.testing import CliRunner

from fastapi_lifespan_deps.command.cli import cli
from tests.processes import ROOT

SECONDS = 60  # that anything may take here

MODULE = (sys.executable, "-W", "error", "-m", "fastapi_lifespan_deps")
SCRIPT = (str(Path(sys.executable).with_name("fastapi-lifespan-deps")),)


class Ended(NamedTuple):
    """How a command has ended, and what it wrote."""

    code: int
    out: str
    err: str


def invoke(command: str | Sequence[str]) -> Ended:
    """Give a command in this process. What it raises, but for its exit, is raised."""
    arguments = command.split() if isinstance(command, str) else list(command)
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(command: str, directory: Path, program: Sequence[str] = MODULE, **more: str) -> Ended:
    """Give a command in a process of its own, without a terminal."""
    result = subprocess.run(
        [*program, *command.split()],
        cwd=directory,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Ended(result.returncode, result.stdout, result.stderr)


class Terminal:
    """A command in a process of its own, at a terminal."""

    def __init__(self, command: str, directory: Path, *, columns: int = 80, **more: str) -> None:
        import pty  # which Windows doesn't have

        self.seen = ""
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*MODULE, *command.split()],
            cwd=directory,
            env=environment(**{"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm", **more}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._give_up_at = time.monotonic() + SECONDS

    def _read(self) -> bool:
        """Read what comes next; False at the end."""
        left = max(self._give_up_at - time.monotonic(), 0)
        readable, _, _ = select.select([self._ours], [], [], left)
        assert readable, f"nothing more was seen than\n{self.seen}"
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so of a terminal that nobody has open
            return False
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.seen):
            assert self._read(), f"it ended:\n{self.seen}"

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(SECONDS)

    @property
    def text(self) -> str:
        """What was written, without colours and moves of the cursor."""
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def normalized(text: str) -> str:
    """Without what is different each time: how long something took, and how long its bar is."""
    text = re.sub(r"[█▉▊▋▌▍▎▏]+ *", "", text)
    text = re.sub(r" {2,}(?=\d+\.\d+ s\b)", "  ", text)
    return re.sub(r"\d+\.\d+(?= s\b)(?! s, which is)", "0.00", text)
