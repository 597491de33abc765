"""The example application under the servers of docs/how-to/deploy.md, from start to end."""

import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.serving import ROOT, ServerProcess

from docs_src.model_serving.main import app  # isort: skip - what it needs may not be there
from docs_src.model_serving.settings import Settings  # isort: skip

pytestmark = pytest.mark.server

PATIENCE = 120.0  # seconds for each thing that is waited for
CLIENTS = 4
LOADED = "Loaded the model all-MiniLM-L6-v2"
RELEASED = "Released the model all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Server:
    """How to start a server, and how it ends after SIGTERM."""

    command: str
    workers: int
    exit_code: int
    shutdown_delay: bool = False

    def __str__(self) -> str:
        delayed = ", shutdown delay" if self.shutdown_delay else ""
        return f"{self.command.split()[0]} {self.workers}{delayed}"


MODULE = "docs_src.model_serving.main:app"
LOGGING = "docs_src/deploy/logging.json"
UVICORN = f"uvicorn --log-config {LOGGING} --fd {{fd}}"
GUNICORN = "gunicorn --config docs_src/deploy/gunicorn_conf.py --bind fd://{fd}"

SERVERS = [
    Server("tests.served_model --port 0", 1, -signal.SIGTERM, shutdown_delay=True),
    Server(f"{UVICORN} --workers 2 tests.served_model:app", 2, 0),
    Server(f"{UVICORN} --workers 2 tests.served_model:app", 2, 0, shutdown_delay=True),
    Server(f"{GUNICORN} --graceful-timeout 600 tests.served_model:app", 2, 0, shutdown_delay=True),
    Server(f"{GUNICORN} --preload tests.served_model:app", 2, 0),
]


class Process(ServerProcess):
    """A server in a process of its own, or in several."""

    def __init__(self, command: str, directory: Path, **environment: str) -> None:
        module = command.split()[0]
        pytest.importorskip(module)
        if module == "gunicorn":
            pytest.importorskip("uvicorn_worker")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()  # Clients may connect at once, and wait.
            self.port, fd = listener.getsockname()[1], listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *shlex.split(command.format(fd=fd))],
                cwd=ROOT,
                # gunicorn puts a socket into the home directory
                env={**os.environ, "HOME": str(directory), **environment},
                pass_fds=[fd],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()


def send(connection: HTTPConnection, path: str, body: Any = None) -> tuple[int, int, Any]:
    """Return the process that answered, the status, and the answer."""
    content = None if body is None else json.dumps(body)
    method = "GET" if body is None else "POST"
    connection.request(method, path, content, {"content-type": "application/json"})
    response = connection.getresponse()
    process_id = int(response.headers["process-id"])
    return process_id, response.status, json.loads(response.read())


@dataclass
class Load:
    """What a client has seen that sends requests all the time, until nobody listens any more."""

    answers: list[tuple[int, int]] = field(default_factory=list)
    """The process that answered, and the status."""
    unanswered: int = 0
    """Requests on whose connection not one byte came back."""

    def send_requests(self, port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        while True:
            try:
                process_id, status, _ = send(connection, "/embeddings", {"texts": ["a text"]})
            except ConnectionRefusedError:
                return
            # The server has closed the connection, or has never taken it. An answer that breaks
            # off in the middle is another error: it ends the test.
            except (ConnectionResetError, BrokenPipeError):
                connection.close()  # The next request connects anew.
                self.unanswered += 1
            else:
                self.answers.append((process_id, status))


@dataclass
class Life:
    """What was seen from the start of a server to its end."""

    server: Server
    load: list[Load] = field(default_factory=lambda: [Load() for _ in range(CLIENTS)])
    draining: dict[int, tuple[int, str]] = field(default_factory=dict)
    """What /readyz of each process said after the signal."""
    served_while_draining: dict[int, int] = field(default_factory=dict)
    checks: int = 0
    """Requests for embeddings that are not of the load."""
    exit_code: int = 0
    output: str = ""


@contextmanager
def connected(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Start a server, and send it a signal while clients send requests all the time."""
    life = Life(request.param)
    server = life.server
    environment = {"MODEL_SERVING_SHUTDOWN_DELAY": "600" if server.shutdown_delay else ""}
    directory = tmp_path_factory.mktemp("server")
    with Process(server.command, directory, **environment) as process, ThreadPoolExecutor() as pool:
        # One after the other: they are counted below.
        process.read_until(rf"(?s)({LOADED}.*){{{server.workers}}}")
        if "--port 0" in server.command:
            process.port = int(process.read_until(r"http://127\.0\.0\.1:(\d+)/"))
        clients = [pool.submit(load.send_requests, process.port) for load in life.load]
        workers = wait_for_answers(life, process.port)

        process.process.send_signal(signal.SIGTERM)
        if server.shutdown_delay:
            drain(life, process.port, workers)
            # The main process passes on one signal only. A second one is for the workers.
            for process_id in workers:
                os.kill(process_id, signal.SIGTERM)
        life.exit_code = process.wait()
        finish(clients)
    life.output = process.output
    return life


def wait_for_answers(life: Life, port: int) -> set[int]:
    """Wait until every worker answers, and return their process ids."""
    workers: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while len(workers) < life.server.workers:
        assert time.monotonic() < deadline
        with connected(port) as connection:
            workers.add(send(connection, "/livez")[0])
    return workers


def drain(life: Life, port: int, workers: set[int]) -> None:
    """Wait until no worker is ready, and see that each one serves new connections."""
    deadline = time.monotonic() + PATIENCE
    while life.draining.keys() | life.served_while_draining.keys() != workers or {
        status for status, _ in life.draining.values()
    } != {503}:
        assert time.monotonic() < deadline, life
        with connected(port) as connection:
            process_id, status, answer = send(connection, "/readyz")
            life.draining[process_id] = status, answer["status"]
            if status == 503:
                _, status, _ = send(connection, "/embeddings", {"texts": ["a text"]})
                life.served_while_draining[process_id] = status
                life.checks += 1


def finish(clients: list[Future[None]]) -> None:
    for client in clients:
        client.result(PATIENCE)


def test_each_worker_loads_and_releases_the_model_once(life: Life) -> None:
    for event in (LOADED, RELEASED):
        assert life.output.count(event) == life.server.workers
    if life.server.workers > 1:
        workers = {process_id for load in life.load for process_id, _ in load.answers}
        for event in (LOADED, RELEASED):
            lines = [line for line in life.output.splitlines() if event in line]
            assert {int(re.findall(r"\[(\d+)\]", line)[0]) for line in lines} == workers


def test_no_request_is_lost_when_the_server_is_told_to_stop(life: Life) -> None:
    """Whatever the application has begun was answered, and the client has read the answer.

    What no server has taken is sent again by the client: it isn't begun twice.
    """
    answers = Counter(status for load in life.load for _, status in load.answers)
    assert answers.keys() == {200}
    begun = life.output.count("begun /embeddings\n")
    assert begun == answers[200] + life.checks
    assert all(load.answers for load in life.load)


def test_the_server_ends_as_after_a_signal(life: Life) -> None:
    assert life.exit_code == life.server.exit_code
    assert "Traceback" not in life.output


def test_during_the_shutdown_delay_it_serves_but_is_not_ready(life: Life) -> None:
    if not life.server.shutdown_delay:
        pytest.skip("no delay")
    assert len(life.draining) == life.server.workers
    assert set(life.draining.values()) == {(503, "draining")}
    assert set(life.served_while_draining.values()) == {200}
