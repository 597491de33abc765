"""Programs in processes of their own, whose output is read as it comes."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

ROOT = Path(__file__).parent.parent


class ServerProcess:
    """A server in a process of its own; by default the example, on a port that is free."""

    def __init__(
        self,
        command: Sequence[str] = ("-W", "error", "-m", "docs_src.model_serving", "--port", "0"),
        *,
        cwd: str | Path = ROOT,
        pass_fds: Sequence[int] = (),
        stdin: Any = None,
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            # More threads than free cores are slow beyond measure: they wait, busily, for those
            # that don't run.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            pass_fds=pass_fds,
            stdin=stdin,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def read_until(self, pattern: str) -> str:
        """Wait for output that matches, at most a minute from line to line."""
        while not (match := re.search(pattern, self.output)):
            line = self._lines.get(timeout=60)
            assert line is not None, f"the server ended:\n{self.output}"
            self.output += line
        return match[1]

    def wait(self) -> int:
        """Wait for the end, and read what is left of the output."""
        while (line := self._lines.get(timeout=60)) is not None:
            self.output += line
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Workers outlive a main process that is killed.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def writing_to(pipe: Path) -> Iterator[TextIO]:
    """Open a named pipe as soon as somebody reads it, or after a minute."""
    give_up = threading.Timer(60, lambda: os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    give_up.start()
    with pipe.open("w") as writing:
        give_up.cancel()
        yield writing
