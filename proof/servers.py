"""The servers: how each is started, reloaded and ended, how it ends, and what it cannot do."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any, Self

from .load import ask
from .tree import ROOT
from .waiting import PATIENCE, NeverCame, wait_until


@dataclass(frozen=True)
class Limit:
    """What a server cannot do: these claims don't hold, which the cell checks.

    They don't hold without FastAPI and this library either, which the cell checks, too. Where it is
    a race, `always` is false: then they may hold. What `may` not hold either comes with the others.
    """

    claims: frozenset[str]
    reason: str
    always: bool = True
    may: frozenset[str] = frozenset()

    def explains(self, claims: Collection[str]) -> bool:
        if not claims:
            return not self.always
        return self.claims <= set(claims) <= self.claims | self.may


@dataclass(frozen=True)
class Server:
    name: str
    package: str
    command: str  # {fd}, {port} and {directory} are filled in
    workers: int = 1
    one_at_a_time: bool = False  # its cells share something
    needs: tuple[str, ...] = ()  # packages besides
    # By how it ends: the exit codes, and what is in the last line that it writes.
    codes: Mapping[str, Collection[int]] = field(default_factory=dict)
    last: Mapping[str, str] = field(default_factory=dict)
    passes_on: str = ""  # what it writes when it has passed a signal on to its workers
    replaces: bool = False  # a worker that was killed, by a new one
    reload: str = "SIGHUP"
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by fault
    limits: Mapping[str, Limit] = field(default_factory=dict)  # by fault

    def for_fault(self, fault: str) -> Self:
        """As it is started to see this fault."""
        return replace(self, **self.variants.get(fault, {}))

    def run(self, application: str, directory: Path, environment: Mapping[str, str]) -> "Running":
        return Running(self, application, directory, environment)


class Running:
    """A server that runs, in processes of its own."""

    def __init__(
        self, server: Server, application: str, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.server = server
        self.directory = directory
        self.log = directory / "output"
        with socket.socket() as listener, self.log.open("ab") as output:
            takes_port = "{port}" in server.command
            if takes_port:  # the server shares the port that is reserved here
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", 0))
            if not takes_port:  # clients may connect at once, and wait
                listener.listen(128)
            self.port, fd = listener.getsockname()[1], listener.fileno()
            command = server.command.format(fd=fd, port=self.port, directory=directory)
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command.split(), f"{application}:app"],
                cwd=ROOT,
                # gunicorn puts a socket into the home directory
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "HOME": str(directory),
                    "PROOF_DIRECTORY": str(directory),
                    **environment,
                },
                pass_fds=[] if takes_port else [fd],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: Signals, workers: list[int]) -> None:
        """SIGTERM reaches the main process, as from an orchestrator; Ctrl-C all of them.

        It returns when all have seen it that shall see it before the start goes on.
        """
        self.send(number)
        if self.server.passes_on:
            wait_until("the signal to be passed on", lambda: self.server.passes_on in self.output)
        processes = {self.process.pid, *workers}
        wait_until(
            "the signal to be taken", lambda: not any(is_pending(pid, number) for pid in processes)
        )

    def send(self, number: Signals) -> None:
        if number == SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def stop(self) -> None:
        self.send(SIGTERM)

    def reload(self) -> None:
        if self.server.reload == "SIGHUP":
            self.send(SIGHUP)
        else:
            (self.directory / "reloaded.py").write_text("# anew\n")

    def draining(self) -> Callable[[], None]:
        """What waits until each worker has begun to shut down: it closes an idle connection."""
        idle: dict[int, HTTPConnection] = {}

        def connect() -> bool:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            pid = ask(connection, "GET", "/pid")[1]["pid"]
            if pid in idle:
                connection.close()
            else:
                idle[pid] = connection
            return len(idle) == self.server.workers

        wait_until("a connection to each worker", connect)

        def wait() -> None:
            for pid, connection in idle.items():
                with connection.sock, suppress(ConnectionError):
                    if connection.sock.recv(1):
                        raise NeverCame(f"worker {pid} has sent something out of turn")

        return wait

    def end(self, patience: float) -> int:
        """Wait for the end; the exit code."""
        wait_until(
            f"the end of {self.server.name}", lambda: self.process.poll() is not None, patience
        )
        return self.process.returncode

    def kill(self) -> None:
        """Whatever is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, SIGKILL)
        self.process.wait(PATIENCE)


def is_pending(pid: int, number: Signals) -> bool:
    """Whether the process has not yet seen the signal (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [
        line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
