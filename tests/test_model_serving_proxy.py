"""docs_src/deploy/nginx.conf: what nginx lets through to the example application, and how."""

import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from types import MappingProxyType
from typing import Self

import pytest

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import ROOT, CountWords

# isort: split
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.logs import REQUEST_ID, take_id
from docs_src.model_serving.main import create_app
from docs_src.model_serving.settings import Settings
from tests.services import free_port, program

pytestmark = pytest.mark.server

CONF = ROOT / "docs_src/deploy/nginx.conf"
HOST = "embeddings.example.com"
SECONDS = 60
MAIN = """\
{user}
daemon off;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/embeddings.conf;
}}
"""


@dataclass(frozen=True)
class Request:
    """What has come through, and from whom."""

    path: str
    headers: dict[str, str]
    client: str
    scheme: str


class Seen:
    """ASGI middleware that notes requests."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app, self.port = app, port
        self.requests: list[Request] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.requests.append(
                Request(scope["path"], headers, scope["client"][0], scope["scheme"])
            )
        await self.app(scope, receive, send)


@contextmanager
def application() -> Iterator[Seen]:
    """The application, with something that loads at once in the place of its model."""
    app = create_app()
    app.dependency_overrides[get_model] = CountWords
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = Seen(app, listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(seen, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            # It waits until the startup is over.
            with closing(HTTPConnection("127.0.0.1", seen.port, timeout=SECONDS)) as connection:
                assert ask(connection, "GET", "/readyz")[0] == 200
            yield seen
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


class HangsUp:
    """A server that reads a request, and closes the connection without an answer."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.requests = 0
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with suppress(OSError):  # It is closed.
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.recv(2**16)
                    self.requests += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(SECONDS)


def certify(directory: Path) -> None:
    """Make a certificate that certifies itself."""
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    command += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1"]
    command += ["-keyout", f"{directory}/privkey.pem", "-out", f"{directory}/fullchain.pem"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)


class Proxy:
    """nginx with the file of the page, in which only ports and the certificate are others."""

    def __init__(self, directory: Path, upstreams: Sequence[int]) -> None:
        self.port, self.plain_port = free_port(), free_port()
        servers = " ".join(f"server 127.0.0.1:{port};" for port in upstreams)
        conf = CONF.read_text()
        for old, new in {
            "server 127.0.0.1:8000;": servers,
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            f"/etc/letsencrypt/live/{HOST}": str(directory),
        }.items():
            assert old in conf
            conf = conf.replace(old, new)
        (directory / "embeddings.conf").write_text(conf)
        user = "user root;" if os.geteuid() == 0 else ""  # The directory is for its owner alone.
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory, user=user))
        nginx = program("nginx", "/usr/sbin/nginx")
        self._command = [nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
        certify(directory)
        self._context = ssl.create_default_context(cafile=str(directory / "fullchain.pem"))

    @contextmanager
    def running(self) -> Iterator[None]:
        tried = subprocess.run(
            [*self._command, "-t"], capture_output=True, text=True, timeout=SECONDS
        )
        assert tried.returncode == 0, tried.stderr
        assert "[warn]" not in tried.stderr
        with subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                assert any("start worker process " in line for line in process.stderr)
                yield
            finally:
                process.terminate()
                process.stderr.read()  # or it would wait for who reads it

    @contextmanager
    def connected(self, address: str = "127.0.0.1") -> Iterator[HTTPConnection]:
        """By TLS, from an address."""
        with closing(
            HTTPSConnection(
                "127.0.0.1",
                self.port,
                timeout=SECONDS,
                context=self._context,
                source_address=(address, 0),
            )
        ) as connection:
            yield connection


def ask(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, str]:
    connection.request(method, path, body, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with application() as seen:
        yield seen


@pytest.fixture(scope="module")
def proxy_of_all(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("nginx"), [seen.port])
    with proxy.running():
        yield proxy


@pytest.fixture
def proxy(proxy_of_all: Proxy, seen: Seen) -> Proxy:
    seen.requests.clear()
    return proxy_of_all


BODY = json.dumps({"texts": ["a cat"]})


def test_who_asks_is_told(proxy: Proxy, seen: Seen) -> None:
    forged = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http"}
    with proxy.connected("127.0.0.2") as connection:
        assert ask(connection, "POST", "/embeddings", BODY, forged)[0] == 200
    [request] = seen.requests
    assert (request.client, request.scheme) == ("127.0.0.2", "https")


@pytest.mark.parametrize(
    "given", ["order-17", "a b", "]", '"', "x" * 128, "", "x" * 129, "caf\xe9", "\t"]
)
def test_requests_have_ids_that_the_application_takes(proxy: Proxy, seen: Seen, given: str) -> None:
    with proxy.connected() as connection:
        connection.request("GET", "/livez", headers={"x-request-id": given})
        response = connection.getresponse()
        response.read()
        assert ask(connection, "GET", "/livez")[0] == 200
    first, second = [request.headers["x-request-id"] for request in seen.requests]
    assert (first == given) == (take_id(given) == given)
    assert first == given or re.fullmatch("[0-9a-f]{32}", first)
    assert response.headers["x-request-id"] == first
    assert f'"~^{REQUEST_ID}$"' in CONF.read_text()
    assert re.fullmatch("[0-9a-f]{32}", second)
    assert first != second


def test_without_tls_all_that_is_told_is_where_to_go(proxy: Proxy, seen: Seen) -> None:
    with closing(HTTPConnection("127.0.0.1", proxy.plain_port, timeout=SECONDS)) as connection:
        connection.request("GET", "/livez?a=b", headers={"host": HOST})
        response = connection.getresponse()
        assert response.status == 308
        assert response.headers["location"] == f"https://{HOST}/livez?a=b"
    assert seen.requests == []


@pytest.mark.parametrize("path", ["/metrics", "/admin/model"])
def test_what_is_private_is_not_let_through_however_it_is_written(
    proxy: Proxy, seen: Seen, path: str
) -> None:
    ways = [
        path,
        f"{path}/",
        f"{path}?a=b",
        f"/{path}",
        f"/.{path}",
        f"/livez/..{path}",
        f"/livez/%2e%2e{path}",
        path.replace("m", "%6d"),
        f"http://{HOST}{path}",
    ]
    for way in ways:
        for method in ("GET", "POST"):
            with proxy.connected() as connection:
                status, answer = ask(connection, method, way)
            assert status == 404
            assert "nginx" in answer
    assert seen.requests == []
    # On the machine itself they are there.
    with closing(HTTPConnection("127.0.0.1", seen.port, timeout=SECONDS)) as connection:
        assert ask(connection, "GET", "/metrics")[0] == 200


def test_a_body_may_be_as_large_as_the_server_lets_it(proxy: Proxy, seen: Seen) -> None:
    limit = Settings().max_body_bytes
    with proxy.connected() as connection:
        assert ask(connection, "POST", "/embeddings", BODY.ljust(limit))[0] == 200
    [request] = seen.requests
    assert request.headers["content-length"] == str(limit)
    with proxy.connected() as connection:
        status, answer = ask(connection, "POST", "/embeddings", BODY.ljust(limit + 1))
    assert status == 413
    assert "nginx" in answer
    assert seen.requests == [request]


def test_a_body_is_passed_on_when_it_is_whole(proxy: Proxy, seen: Seen) -> None:
    with proxy.connected() as slow, proxy.connected() as other:
        slow.putrequest("POST", "/embeddings")
        slow.putheader("content-type", "application/json")
        slow.putheader("content-length", str(len(BODY)))
        slow.endheaders(BODY[:-1].encode())
        # A body of the same size that is whole comes through meanwhile.
        assert ask(other, "POST", "/embeddings", BODY, {"x-request-id": "other"})[0] == 200
        assert [request.headers["x-request-id"] for request in seen.requests] == ["other"]
        slow.send(BODY[-1:].encode())
        assert slow.getresponse().status == 200
    assert len(seen.requests) == 2


def test_a_request_that_one_server_leaves_unanswered_is_answered_by_another(
    seen: Seen, tmp_path: Path
) -> None:
    with HangsUp() as hangs_up:
        proxy = Proxy(tmp_path, [hangs_up.port, seen.port])
        with proxy.running():
            for _ in range(4):
                with proxy.connected() as connection:
                    assert ask(connection, "POST", "/embeddings", BODY)[0] == 200
    assert hangs_up.requests


def test_limits_fit_those_of_the_server() -> None:
    conf = CONF.read_text()

    def seconds(name: str) -> list[int]:
        return [int(number) for number in re.findall(rf"\b{name} (\d+)s;", conf)]

    assert re.findall(r"client_max_body_size (\d+)m;", conf) == [
        str(Settings().max_body_bytes // 2**20)
    ]
    [longest] = seconds("proxy_read_timeout")
    assert longest > Settings().request_timeout
    [idle] = seconds("keepalive_timeout")
    assert idle < uvicorn.Config("").timeout_keep_alive
