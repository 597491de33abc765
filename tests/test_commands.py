"""docs_src/command_line, as processes: what commands and a cron job start, and how they end."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TextIO

import pytest
from typer.testing import CliRunner

from docs_src.command_line.app import app, get_session, load_model, open_database
from docs_src.command_line.commands import cli
from fastapi_lifespan_deps import LifespanContainer
from tests.processes import ROOT, ServerProcess, writing_to

PATIENCE = 60.0  # seconds for each thing that is waited for

OPENED, CLOSED = "database opened", "database closed"


class Shell:
    """Runs programs of docs_src/command_line, with a database and a lock of their own."""

    def __init__(self, root: Path) -> None:
        self.database = root / "users.db"
        self.lock = root / "lock"

    def start(self, *command: str) -> ServerProcess:
        module = f"docs_src.command_line.{command[0]}"
        return ServerProcess(
            ["-W", "error", "-m", module, *command[1:]],
            DATABASE=str(self.database),
            LOCK=str(self.lock),
            NO_COLOR="1",
        )

    def run(self, *command: str) -> tuple[int, list[str]]:
        """The exit code, and the lines of the output."""
        with self.start(*command) as process:
            code = process.wait()
        return code, process.output.splitlines()

    def users(self) -> list[str]:
        with closing(sqlite3.connect(self.database)) as database:
            return [name for (name,) in database.execute("SELECT name FROM users ORDER BY name")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


# What is started


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ([], ["add-user", "Add a user."]),
        (["add-user"], ["name", "--quiet"]),
        (["load-users"], ["path"]),
        (["fetch-users"], ["url"]),
    ],
)
def test_help_shows_what_is_to_be_given_and_starts_nothing(
    shell: Shell, command: list[str], shown: list[str]
) -> None:
    code, lines = shell.run("commands", *command, "--help")
    assert code == 0
    for text in shown:
        assert any(text in line for line in lines)
    for text in ("session", "model", "client", OPENED):
        assert not any(text in line for line in lines)
    assert not shell.database.exists()


def test_a_command_starts_what_it_needs(shell: Shell) -> None:
    assert shell.run("commands", "status") == (0, ["https://example.com"])
    assert not shell.database.exists()
    assert shell.run("commands", "add-user", "Ada") == (0, [OPENED, "added Ada", CLOSED])
    assert shell.run("commands", "add-user", "Alan", "--quiet") == (0, [OPENED, CLOSED])
    assert shell.users() == ["Ada", "Alan"]


def test_routes_are_started_unless_they_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By `sync`, that is; a command starts what it needs, in any case."""
    monkeypatch.setenv("DATABASE", str(tmp_path / "users.db"))
    with LifespanContainer.for_app(app).sync() as running:
        assert load_model in running
        assert open_database in running
    with LifespanContainer.for_app(app, load_model, routes=False).sync() as running:
        assert load_model in running
        assert open_database not in running


# How a command ends


def test_the_exit_code_is_that_of_typer(shell: Shell) -> None:
    shell.run("commands", "add-user", "Ada")
    assert shell.run("commands", "add-user", "Ada") == (
        3,
        [OPENED, "Ada is there already", CLOSED],
    )


def test_an_error_rolls_back(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("Ada\nBuy this\n")
    code, lines = shell.run("commands", "load-users", str(path))
    assert code == 1
    assert lines[:5] == [OPENED, "model loaded", "added Ada", "model released", CLOSED]
    assert lines[-1] == "ValueError: 'Buy this' is no user"
    assert shell.users() == []


def test_a_command_whose_commit_fails_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_failing_session() -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as session:
            session.execute("CREATE TABLE users (name)")
            yield session
        raise ConnectionError("the database is away")

    monkeypatch.setitem(app.dependency_overrides, get_session, get_failing_session)
    result = CliRunner().invoke(cli, ["add-user", "Ada"])
    assert result.exit_code == 1
    assert result.output == "added Ada\n"
    assert isinstance(result.exception, ConnectionError)


@contextmanager
def listing(*names: str, goes_on: threading.Event | None = None) -> Iterator[str]:
    """An application that lists users, and then waits before it ends the list; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(f"{name}\n" for name in names).encode())
            if goes_on is not None:
                goes_on.wait(PATIENCE)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            if goes_on is not None:
                goes_on.set()
            server.shutdown()
            serving.join()


def test_a_command_may_be_asynchronous(shell: Shell) -> None:
    with listing("Ada", "Alan") as url:
        assert shell.run("commands", "fetch-users", url) == (
            0,
            [OPENED, "added Ada", "added Alan", CLOSED],
        )
    assert shell.users() == ["Ada", "Alan"]


def interrupt(process: ServerProcess, number: signal.Signals, writing: TextIO) -> None:
    """Send a signal to what reads a pipe.

    One that comes just before Python begins to wait is acted on when it has waited. So there is
    something to read, too.
    """
    process.process.send_signal(number)
    with suppress(BrokenPipeError):
        os.write(writing.fileno(), b"Alan\n")


def test_ctrl_c_leaves_the_dependencies_of_a_synchronous_command(
    shell: Shell, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        shell.start("commands", "load-users", str(pipe)) as process,
        writing_to(pipe) as writing,
    ):
        writing.write("Ada\n")
        writing.flush()
        process.read_until("(added Ada)")
        interrupt(process, signal.SIGINT, writing)
        assert process.wait() == 130
    lines = process.output.splitlines()
    assert lines[:3] == [OPENED, "model loaded", "added Ada"]
    assert lines[-2:] == ["model released", CLOSED]
    assert shell.users() == []


def test_ctrl_c_leaves_the_dependencies_of_an_asynchronous_command(shell: Shell) -> None:
    with (
        listing("Ada", goes_on=threading.Event()) as url,
        shell.start("commands", "fetch-users", url) as process,
    ):
        process.read_until("(added Ada)")
        process.process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert process.output.splitlines() == [OPENED, "added Ada", CLOSED]
    assert shell.users() == []


# The cron job


def test_a_cron_job(shell: Shell, tmp_path: Path) -> None:
    shell.run("commands", "add-user", "Ada")
    path = tmp_path / "users.txt"
    path.write_text("Ada\nAlan\n")
    with shell.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, lines = shell.run("cron_job", str(path))
        assert (code, lines[-1]) == (1, "another one runs")
        assert OPENED not in lines
    assert shell.run("cron_job", str(path)) == (
        0,
        [OPENED, "removed Ada", "removed Alan", CLOSED],
    )
    assert shell.users() == []


def test_sigterm_leaves_what_a_cron_job_has_entered(shell: Shell, tmp_path: Path) -> None:
    shell.run("commands", "add-user", "Ada")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with shell.start("cron_job", str(pipe)) as process, writing_to(pipe) as writing:
        writing.write("Ada\n")
        writing.flush()
        process.read_until("(removed Ada)")
        interrupt(process, signal.SIGTERM, writing)
        assert process.wait() == -signal.SIGINT  # in a shell 130
    lines = process.output.splitlines()
    assert lines[:2] == [OPENED, "removed Ada"]
    assert CLOSED in lines
    assert lines[-1] == "KeyboardInterrupt"
    assert shell.users() == ["Ada"]


def test_tests_of_commands() -> None:
    """The test that the page shows passes."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "docs_src/command_line/test_commands.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
