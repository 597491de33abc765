"""docs_src/health/: what the page on health checks shows, with a real Redis that goes and comes."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("redis")
from redis import Redis

from docs_src.health import command, consumer, details
from docs_src.health.main import app
from fastapi_lifespan_deps import enable_lifespan_scope
from tests.clients import PATIENCE, Patience, running
from tests.processes import ROOT, ServerProcess
from tests.services import free_port, redis_server
from tests.test_events import Listener

yaml: Any = pytest.importorskip("yaml")

pytestmark = pytest.mark.anyio

HEALTH = ROOT / "docs_src/health"
PASS, FAIL = (200, {"status": "pass"}), (503, {"status": "fail"})


class Shop:
    """The example under uvicorn."""

    def __init__(self, client: httpx.Client, process: ServerProcess) -> None:
        self._client = client
        self.process = process

    def get(self, path: str) -> tuple[int, Any]:
        response = self._client.get(path)
        return response.status_code, response.json()

    def becomes(self, expected: tuple[int, Any]) -> None:
        """Wait until readiness is so, and is so again; liveness doesn't change."""
        patience = Patience()
        while self.get("/readyz") != expected:
            patience.look(None)
            assert self.get("/livez") == PASS
        assert self.get("/readyz") == expected


@contextmanager
def shop(redis_url: str) -> Iterator[Shop]:
    port = free_port()
    command = ["-W", "error", "-m", "uvicorn", "docs_src.health.main:app", "--port", str(port)]
    with (
        ServerProcess(command, REDIS_URL=redis_url) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        process.read_until("(Uvicorn running)")
        yield Shop(client, process)


@pytest.mark.server
def test_readiness_follows_redis_and_liveness_does_not(tmp_path: Path) -> None:
    with ExitStack() as first:
        url = first.enter_context(redis_server(tmp_path))
        with shop(url) as client:
            client.becomes(PASS)
            assert client.get("/hits/home") == (200, 1)
            first.close()
            client.becomes(FAIL)
            client.process.read_until("(`get_cache` is unhealthy: its check fails)")
            with redis_server(tmp_path, urlsplit(url).port):
                client.becomes(PASS)
                assert client.get("/hits/home") == (200, 1)  # it keeps nothing
                with frozen(url):
                    client.becomes(FAIL)
                client.becomes(PASS)
            client.becomes(FAIL)
            client.process.process.terminate()
            client.process.wait()
            assert "Application shutdown complete." in client.process.output
            assert client.process.output.count("is unhealthy") == 3


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """Let Redis take connections, and answer nothing."""
    with Redis.from_url(url) as redis:
        pid = redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.server
def test_without_redis_it_does_not_start() -> None:
    command = ["-m", "uvicorn", "docs_src.health.main:app", "--port", "0"]
    with ServerProcess(command, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as process:
        assert process.wait() == 3
        assert "`get_cache` (docs_src/health/main.py:10) failed to start" in process.output


def test_the_probes_ask_what_is_there_and_wait_longer_than_a_check() -> None:
    document = yaml.safe_load((HEALTH / "kubernetes.yaml").read_text())
    [container] = document["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["uvicorn", "app.health.main:app"]
    [port] = container["ports"]
    assert f"--port={port['containerPort']}" in container["command"]
    paths = {getattr(route, "path", None) for route in app.routes}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == port["name"]
        assert probe["periodSeconds"] > 1
    assert container["readinessProbe"]["timeoutSeconds"] > 0.8


def test_details_are_as_shown_for_whoever_may_see_them() -> None:
    with TestClient(details.app) as client:
        assert client.get("/healthz").status_code == 403
        found = client.get("/healthz", headers={"token": "secret"}).json()
        shown = json.loads((HEALTH / "details.txt").read_text())
        for one in (*found["dependencies"], *shown["dependencies"]):
            assert isinstance(one.pop("seconds"), float)
        assert found == shown
        assert client.get("/users/1").status_code == 200
        assert client.get("/readyz").status_code == 200


async def test_a_consumer_that_has_died_takes_liveness(anyio_backend: str) -> None:
    listener = Listener()
    enable_lifespan_scope(consumer.app, on_lifespan_event=listener)
    with pytest.raises(ExceptionGroup):
        async with running(consumer.app) as client:
            await client.post("/orders", params={"item": "tea"})
            assert (await client.get("/livez")).status_code == 200
            await client.post("/orders", params={"item": ""})
            await listener.until("died")
            assert (await client.get("/livez")).status_code == 503
            assert (await client.get("/readyz")).status_code == 503
            await consumer.app.lifespan_container.refresh(consumer.get_consumer)
            assert (await client.get("/livez")).status_code == 200
    assert consumer.taken.pop() == "tea"


async def test_the_command_says_how_it_is(
    capsys: pytest.CaptureFixture[str], anyio_backend: str
) -> None:
    assert await command.doctor()
    assert capsys.readouterr().out == "pass get_pool docs_src/first_steps.py:9 \n"
