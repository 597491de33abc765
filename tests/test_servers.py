"""Real servers: one start and one stop per worker, and the same object for all its requests."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest
from websockets.sync.client import connect

from tests.processes import ServerProcess
from tests.services import free_port

pytestmark = pytest.mark.server

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0  # seconds for each thing that is waited for


@dataclass(frozen=True)
class Server:
    """How to start a server that listens on an open socket, or on a port."""

    command: str
    listen: str
    workers: int = 1
    signal: Signals = SIGTERM
    needs: tuple[str, ...] = ()
    reports_failure: bool = True  # by its exit code, when the startup fails

    def __str__(self) -> str:
        return f"{self.command} ({self.signal.name})"


UVICORN = Server("uvicorn", "--fd {fd}")
UVICORN_2 = replace(UVICORN, command="uvicorn --workers 2", workers=2)
HYPERCORN = Server("hypercorn", "--bind fd://{fd}", reports_failure=False)
TRIO = replace(HYPERCORN, command="hypercorn --worker-class trio", needs=("trio",))
GRANIAN = Server("granian --interface asgi", "--host 127.0.0.1 --port {port}")
GRANIAN_2 = replace(GRANIAN, command="granian --interface asgi --workers 2", workers=2)
GUNICORN = Server(
    "gunicorn --worker-class uvicorn_worker.UvicornWorker --workers 2",
    "--bind fd://{fd}",
    workers=2,
    needs=("uvicorn", "uvicorn_worker"),
)
SERVERS = [UVICORN, UVICORN_2, HYPERCORN, TRIO, GRANIAN, GRANIAN_2, GUNICORN]
SERVERS += [replace(UVICORN, signal=SIGINT), replace(UVICORN_2, signal=SIGINT)]


class Pipe:
    """The events that all workers of a server write, in order: (process id, what)."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # open for writing too, so that it never looks as if the last writer had gone
        self.file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by `serving`
        self.events: list[tuple[int, str]] = []
        self._rest = b""

    def wait_for(self, event: str, count: int = 1) -> list[int]:
        """Wait for an event in `count` processes, and return these."""
        while len(found := [pid for pid, what in self.events if what == event]) < count:
            assert self.read(PATIENCE), f"no {event!r} after {self.events}"
        return found

    def read(self, timeout: float = 0) -> bool:
        if not select.select([self.file], [], [], timeout)[0]:
            return False
        *lines, self._rest = (self._rest + self.file.read(1 << 16)).split(b"\n")
        for line in lines:
            pid, _, what = line.decode().partition(" ")
            self.events.append((int(pid), what))
        return True


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int
    pipe: Pipe

    def connection(self) -> HTTPConnection:
        """A connection to the server, which may still be about to listen."""
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.connect()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                self.pipe.read(0.05)
            else:
                return connection


@contextmanager
def serving(server: Server, path: Path, **environ: str) -> Iterator[Served]:
    for module in (server.command.split()[0], *server.needs):
        pytest.importorskip(module)
    pipe = Pipe(path / "events")
    output = path / "output"
    with socket.socket() as listener, pipe.file, output.open("wb") as log:
        if "{port}" in server.listen:  # the server shares the port that is reserved here
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        port, fd = listener.getsockname()[1], listener.fileno()
        if "{fd}" in server.listen:  # clients may connect at once and wait in the backlog
            listener.listen()
        arguments = f"{server.command} {server.listen.format(fd=fd, port=port)}"
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments.split(), "tests.served_app:app"],
            cwd=ROOT,
            # gunicorn puts a socket into the home directory
            env=os.environ | {"EVENTS": str(path / "events"), "HOME": str(path)} | environ,
            pass_fds=[fd],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Served(process, port, pipe)
            process.wait(PATIENCE)
            pipe.read()
        finally:
            process.kill()
            process.wait()
            print(output.read_text())


@dataclass
class Life:
    """What was seen from the start of a server to its end."""

    server: Server
    events: list[tuple[int, str]] = field(default_factory=list)
    http: list[tuple[int, str]] = field(default_factory=list)
    websocket: list[tuple[int, str]] = field(default_factory=list)
    in_flight: tuple[int, str] = (0, "")


def seen(message: str | bytes) -> tuple[int, str]:
    """The process that answered, and the model that it has."""
    pid, name = message.split()
    return int(pid), str(name)


def get(connection: HTTPConnection) -> tuple[int, str]:
    connection.request("GET", "/")
    return seen(json.loads(connection.getresponse().read()))


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Serve some requests, and send the signal while another one is in flight."""
    life = Life(request.param)
    with serving(life.server, tmp_path_factory.mktemp("server")) as served:
        life.events = served.pipe.events
        served.pipe.wait_for("start model", life.server.workers)

        in_flight = served.connection()
        in_flight.putrequest("POST", "/")
        in_flight.putheader("content-length", "4")
        in_flight.endheaders(b"ha")
        (worker,) = served.pipe.wait_for("request begins")

        idle = served.connection()
        life.http.append(get(idle))
        while life.http[-1][0] != worker:
            idle.close()
            idle = served.connection()
            life.http.append(get(idle))
        while not life.websocket or life.websocket[-1][0] != worker:
            with connect(f"ws://127.0.0.1:{served.port}/") as websocket:
                life.websocket.append(seen(websocket.recv(PATIENCE)))

        served.process.send_signal(life.server.signal)
        assert idle.sock.recv(1) == b""  # the worker has begun to shut down
        in_flight.send(b"lf")
        life.in_flight = seen(json.loads(in_flight.getresponse().read()))
        in_flight.close()
        idle.close()
    return life


def test_each_worker_starts_and_stops_once_in_reverse_order_before_it_exits(life: Life) -> None:
    events = defaultdict(list)
    for pid, event in life.events:
        events[pid].append(event)
    (worker,) = (pid for pid, what in life.events if what == "request begins")
    events[worker].remove("request begins")
    assert len(events) == life.server.workers
    for of_worker in events.values():
        assert of_worker == [
            "start engine",
            "start model",
            "stop model, its engine is alive",
            "stop engine",
        ]


def test_http_and_websocket_requests_of_a_worker_see_the_same_object(life: Life) -> None:
    names = dict(life.http)
    assert set(names.items()) == set(life.http)
    assert life.websocket[-1] in life.http
    assert len(set(names.values())) == len(names)


def test_a_request_in_flight_when_the_signal_comes_is_served_with_live_values(life: Life) -> None:
    assert life.in_flight in life.http


@pytest.mark.parametrize("server", [UVICORN, HYPERCORN, TRIO, GRANIAN, GUNICORN], ids=str)
def test_a_failed_startup_stops_what_had_started_and_ends_the_server(
    server: Server, tmp_path: Path
) -> None:
    with serving(server, tmp_path, BROKEN="yes") as served:
        served.pipe.wait_for("start engine")
    whats = [what for _, what in served.pipe.events]
    assert whats.count("start engine") == whats.count("stop engine") == len(whats) / 2
    assert served.process.returncode or not server.reports_failure
    assert "RuntimeError: the model is broken" in (tmp_path / "output").read_text()


@pytest.mark.parametrize("server", [UVICORN, HYPERCORN, TRIO, GRANIAN, GUNICORN], ids=str)
def test_a_startup_that_hangs_is_named_with_its_line(server: Server, tmp_path: Path) -> None:
    """In the terminal, where nobody has set up the log."""
    for module in (server.command.split()[0], *server.needs):
        pytest.importorskip(module)
    listen = "--bind 127.0.0.1:0" if "--bind" in server.listen else f"--port {free_port()}"
    command = f"-m {server.command} {listen} tests.served_hanging:app".split()
    with ServerProcess(command, HOME=str(tmp_path)) as process:
        process.read_until(
            r"(`get_pool` \(tests/served_hanging\.py:8\) has been starting for \d\.\d s; "
            r"it waits at tests/served_hanging\.py:9)"
        )
