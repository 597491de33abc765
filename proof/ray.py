"""Ray Serve: one Ray for all cells, one after the other; a replica is a worker.

It has no process of its own for an application: to start is to deploy, SIGTERM and Ctrl-C are to
delete, as the program does that has deployed it, and the exit code tells whether the deploy failed.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import Signals
from typing import Any
from uuid import uuid4

from .load import ask
from .servers import Running, Server
from .tree import ROOT
from .waiting import PATIENCE, wait_until


class Ray:
    """A Ray, with a program that deploys and deletes."""

    def __init__(self) -> None:
        # Not deep in the file system: a path of a Unix socket may have about a hundred characters.
        self._directory = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self.answers: list[dict[str, Any]] = []
        self._program = subprocess.Popen(
            [sys.executable, "-m", "proof.on_ray", self._directory.name],
            cwd=ROOT,
            # with a token of its own, Ray writes none into the home directory
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_TOKEN": uuid4().hex,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        atexit.register(self.end)
        self.port: int = wait_until("Ray", lambda: self.told("port"))["port"]

    def _read(self) -> None:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith("@"):
                self.answers.append(json.loads(line[1:]))

    def told(self, fact: str, value: object = None, name: str = "") -> dict[str, Any]:
        """The answer that has this, if there is one."""
        for answer in list(self.answers):
            if fact in answer and value in (None, answer[fact]) and answer.get("name", "") == name:
                return answer
        return {}

    def do(self, what: str, name: str, **arguments: object) -> None:
        assert self._program.stdin is not None
        self.answers = [
            one for one in self.answers if (one.get("done"), one.get("name")) != (what, name)
        ]
        self._program.stdin.write(json.dumps({"do": what, "name": name, **arguments}) + "\n")
        self._program.stdin.flush()

    def logs(self, name: str) -> str:
        """What the replicas of an application have logged."""
        folder = Path(self._directory.name) / "session_latest/logs"
        files = sorted(folder.glob(f"serve/replica_{name}_*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def end(self) -> None:
        assert self._program.stdin is not None
        with suppress(OSError):
            self._program.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self._program.pid, signal.SIGKILL)
        self._program.wait()
        self._directory.cleanup()


class _Rays:
    """The one Ray, made for whoever is first."""

    def __init__(self) -> None:
        self._ray: Ray | None = None
        self.number = 0  # of applications so far

    def take(self) -> Ray:
        self.number += 1
        self._ray = self._ray or Ray()
        return self._ray


_rays = _Rays()


@dataclass(frozen=True)
class RayServer(Server):
    def run(self, application: str, directory: Path, environment: Mapping[str, str]) -> Running:
        return RayRunning(self, application, directory, environment)


class RayRunning(Running):
    """An application on Ray Serve."""

    def __init__(
        self, server: Server, application: str, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.server = server
        self.directory = directory
        self._ray = _rays.take()
        self._name = f"proof{_rays.number}"
        self._environment = {
            **environment,
            "PROOF_APPLICATION": application,
            "PROOF_DIRECTORY": str(directory),
        }
        self.port = self._ray.port
        self._is_deleting = False
        self._deploy()

    def _deploy(self) -> None:
        workers = self.server.workers
        self._ray.do("deploy", self._name, workers=workers, environment=self._environment)

    @property
    def output(self) -> str:
        error = self._ray.told("done", "deploy", self._name).get("error", "")
        return f"{self._ray.logs(self._name)}\n{error}"

    def signal(self, number: Signals, workers: list[int]) -> None:
        self.send(number)

    def send(self, number: Signals) -> None:
        if not self._is_deleting:
            self._is_deleting = True
            self._ray.do("delete", self._name)

    def reload(self) -> None:
        self._environment["PROOF_DEPLOY"] = "again"
        self._deploy()

    def draining(self) -> Callable[[], None]:
        def is_refused() -> bool:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                return ask(connection, "GET", "/pid")[0] != 200
            except (OSError, HTTPException):
                return True
            finally:
                connection.close()

        def wait() -> None:
            wait_until("Ray to refuse requests", is_refused)

        return wait

    def end(self, patience: float) -> int:
        has_failed = False
        if not self._is_deleting:
            deployed = wait_until(
                "the deploy to fail", lambda: self._ray.told("done", "deploy", self._name), patience
            )
            has_failed = bool(deployed["error"])
            self.send(Signals.SIGTERM)  # other replicas may still be about to stop
        wait_until("the delete", lambda: self._ray.told("done", "delete", self._name), patience)
        return int(has_failed)

    def kill(self) -> None:
        self.send(Signals.SIGTERM)
        wait_until("the delete", lambda: self._ray.told("done", "delete", self._name))
