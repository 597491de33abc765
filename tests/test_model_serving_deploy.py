"""The example application under the servers of docs/how-to/deploy.md, from start to end."""

import json
import os
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import ServerProcess

# isort: split
from tests.dockerfile import command as command_of_image

pytestmark = pytest.mark.server

PATIENCE = 120.0  # seconds for each thing that is waited for
BODY = {"texts": ["It takes a while to embed this. " * 8] * 4}
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

    @property
    def picks_port(self) -> bool:
        return "--port 0" in self.command


MODULE = "docs_src.model_serving.main:app"
UVICORN = "uvicorn --log-config docs_src/deploy/logging.json --fd {fd}"
GUNICORN = "gunicorn --config docs_src/deploy/gunicorn_conf.py --bind fd://{fd}"

SERVERS = [
    Server("tests.served_model --port 0", 1, -signal.SIGTERM, shutdown_delay=True),
    Server(f"{UVICORN} --workers 2 tests.served_model:app", 2, 0),
    Server(f"{UVICORN} --workers 2 tests.served_model:app", 2, 0, shutdown_delay=True),
    Server(f"{GUNICORN} --graceful-timeout 600 tests.served_model:app", 2, 0, shutdown_delay=True),
    Server(f"{GUNICORN} --preload tests.served_model:app", 2, 0),
]


class Process(ServerProcess):
    """A server that listens on a socket of ours, so that clients may connect at once, and wait."""

    def __init__(self, command: str, directory: Path, **environment: str) -> None:
        if "gunicorn" in command:
            pytest.importorskip("gunicorn")
            pytest.importorskip("uvicorn_worker")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.port, fd = listener.getsockname()[1], listener.fileno()
            environment["HOME"] = str(directory)  # gunicorn puts a socket there.
            arguments = shlex.split(command.format(fd=fd))
            super().__init__(["-m", *arguments], pass_fds=[fd], **environment)


def send(connection: HTTPConnection, path: str, body: Any = None) -> tuple[int, int, bytes]:
    """Return the process that answered, the status, and the answer.

    The process is 0 if the application didn't answer, but the server in its place.
    """
    content = None if body is None else json.dumps(body)
    method = "GET" if body is None else "POST"
    connection.request(method, path, content, {"content-type": "application/json"})
    response = connection.getresponse()
    process_id = int(response.headers.get("process-id", 0))
    return process_id, response.status, response.read()


@dataclass
class Load:
    """What a client has seen that sends requests all the time, until nobody listens any more."""

    keep_alive: bool
    answers: list[tuple[int, int]] = field(default_factory=list)
    """The process that answered, and the status."""
    unanswered: int = 0
    """Requests on whose connection not one byte came back."""
    is_flowing: threading.Event = field(default_factory=threading.Event)

    def send_requests(self, port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        while True:
            try:
                process_id, status, _ = send(connection, "/embeddings", BODY)
            except ConnectionRefusedError:
                return
            # The server has closed the connection, or has never taken it. An answer that breaks
            # off in its middle counts as begun, and not as answered.
            except (ConnectionResetError, BrokenPipeError):
                self.unanswered += 1
                connection.close()  # The next request connects anew.
            else:
                self.answers.append((process_id, status))
                if len(self.answers) == 10:
                    self.is_flowing.set()
                if not self.keep_alive:
                    connection.close()


@dataclass
class Life:
    """What was seen from the start of a server to its end."""

    server: Server
    load: list[Load] = field(
        default_factory=lambda: [Load(keep_alive=number % 2 == 0) for number in range(4)]
    )
    workers: set[int] = field(default_factory=set)
    """The processes that answered before the signal."""
    draining: dict[int, str] = field(default_factory=dict)
    """What /healthz of each process said after the signal, when /readyz was 503."""
    served_while_draining: dict[int, int] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    """The statuses of embeddings that this file asked for, besides the load."""
    exit_code: int = 0
    output: str = ""

    def see_all_workers(self, port: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.workers) < self.server.workers:
            assert time.monotonic() < deadline, self.workers
            with connected(port) as connection:
                process_id, status, _ = send(connection, "/embeddings", BODY)
            self.workers.add(process_id)
            self.answers.append(status)

    def see_all_drain(self, port: int) -> None:
        """Wait until no worker is ready, and let each serve a new connection then."""
        deadline = time.monotonic() + PATIENCE
        while self.served_while_draining.keys() != self.workers:
            assert time.monotonic() < deadline, self.draining
            with connected(port) as connection:
                process_id, status, _ = send(connection, "/readyz")
                if status == 503:
                    _, _, answer = send(connection, "/healthz")
                    self.draining[process_id] = json.loads(answer)["status"]
                    _, status, _ = send(connection, "/embeddings", BODY)
                    self.served_while_draining[process_id] = status
                    self.answers.append(status)


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
    with (
        ThreadPoolExecutor(len(life.load)) as threads,
        Process(server.command, directory, **environment) as process,
    ):
        process.read_until(rf"(?s)({LOADED}.*){{{server.workers}}}")
        port = process.port
        if server.picks_port:
            port = int(process.read_until(r"curl -s http://127\.0\.0\.1:(\d+)/"))
        clients = [threads.submit(load.send_requests, port) for load in life.load]
        life.see_all_workers(port)
        assert all(load.is_flowing.wait(PATIENCE) for load in life.load)

        process.process.send_signal(signal.SIGTERM)
        if server.shutdown_delay:
            life.see_all_drain(port)
            # A main process takes one signal only. The second one is for the workers themselves.
            for process_id in life.workers:
                os.kill(process_id, signal.SIGTERM)
        life.exit_code = process.wait()
        for client in clients:
            client.result(PATIENCE)
        life.output = process.output
    answered = sum(len(load.answers) for load in life.load)
    print(f"{server}: {answered} answered, {sum(load.unanswered for load in life.load)} not begun")
    return life


def test_each_worker_loads_and_releases_the_model_once(life: Life) -> None:
    assert len(life.workers) == life.server.workers
    for event in (LOADED, RELEASED):
        lines = [line for line in life.output.splitlines() if event in line]
        assert len(lines) == life.server.workers
        if not life.server.picks_port:  # It logs no process id.
            found = {int(re.findall(r"\[(\d+)\]", line)[0]) for line in lines}
            assert found == life.workers


def test_no_request_is_lost_when_the_server_is_told_to_stop(life: Life) -> None:
    """Each that the application began was answered, and the client has read the answer.

    What the application never began is sent again by a client, as long as somebody listens.
    """
    statuses = life.answers + [status for load in life.load for _, status in load.answers]
    assert set(statuses) == {200}
    assert life.output.count("begun /embeddings\n") == len(statuses)


def test_the_exit_code_is_that_of_a_stop(life: Life) -> None:
    assert life.exit_code == life.server.exit_code
    assert "Traceback" not in life.output


def test_during_the_shutdown_delay_it_serves_though_it_is_not_ready(life: Life) -> None:
    assert set(life.draining.values()) <= {"draining"}
    assert set(life.served_while_draining.values()) <= {200}
    assert life.draining.keys() == (life.workers if life.server.shutdown_delay else set())


# What the page shows


@pytest.mark.parametrize(
    ("command", "exit_codes"),
    [
        pytest.param(shlex.join(command_of_image()[2:]), {3}, id="uvicorn of the image"),
        # Its main process says that all is well.
        pytest.param(f"{UVICORN} --workers 2 {MODULE}", {0}, id="uvicorn 2"),
        # 1 when it hears of the second failure while it handles the first.
        pytest.param(f"{GUNICORN} {MODULE}", {3, 1}, id="gunicorn 2"),
    ],
)
def test_a_failed_startup_says_why_and_exits(
    command: str, exit_codes: set[int], tmp_path: Path
) -> None:
    directory = str(tmp_path / "typo")
    with Process(command, tmp_path, MODEL_SERVING_MODEL_DIR=directory) as process:
        assert process.wait() in exit_codes
    assert "but there is no such directory." in process.output
    assert LOADED not in process.output
