"""docs/recipes/http-clients.md: an httpx client on a real server."""

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import anyio
import anyio.lowlevel
import httpx
import pytest
from fastapi.testclient import TestClient

from docs_src.recipes.http_clients import main, test_prices
from tests.clients import PATIENCE, running
from tests.services import free_port

pytestmark = [pytest.mark.anyio]

client = test_prices.client
test_price = test_prices.test_price
test_the_service_fails = test_prices.test_the_service_fails


class Service(ThreadingHTTPServer):
    """Another service: it counts connections, and notes the cookies that come back."""

    connections = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cookies: list[str | None] = []
        self.may_answer = threading.Event()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have given up are none."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        service = cast(Service, self.server)
        service.cookies.append(self.headers.get("Cookie"))
        if "slow" in self.path:
            service.may_answer.wait(PATIENCE)
        body = b'{"price": 4.5}'
        self.send_response(200)
        self.send_header("Set-Cookie", "user=Ada; Path=/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("PRICES_URL", service.url)
        yield service
        service.may_answer.set()
        service.shutdown()
        thread.join()


async def test_one_connection_serves_all(service: Service, anyio_backend: str) -> None:
    async with running(main.app) as client:
        for _ in range(3):
            assert (await client.get("/prices/tea")).json() == 4.5
        prices = main.app.lifespan_container[main.get_prices]
    assert service.connections == 1
    assert prices.is_closed


async def test_a_client_for_each_request_has_a_connection_for_each(
    service: Service, anyio_backend: str
) -> None:
    for _ in range(3):
        async with httpx.AsyncClient() as client:
            await client.get(f"{service.url}/items/tea")
    assert service.connections == 3


async def test_cookies_of_one_user_are_not_sent_for_another(
    service: Service, anyio_backend: str
) -> None:
    async with running(main.app) as client:
        await client.get("/prices/tea")
        await client.get("/prices/tea")
    assert service.cookies == [None, None]

    service.cookies.clear()
    async with httpx.AsyncClient(base_url=service.url) as stock:
        await stock.get("/items/tea")
        await stock.get("/items/tea")
    assert service.cookies == [None, "user=Ada"]


async def test_a_stream_has_the_client_to_its_end(service: Service, anyio_backend: str) -> None:
    async with running(main.app) as client:
        assert (await client.get("/catalogue")).text == '{"price": 4.5}'


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> None:
    monkeypatch.setenv("PRICES_URL", f"http://127.0.0.1:{free_port()}")
    async with running(main.app) as client:
        assert (await client.get("/prices/tea")).status_code == 502


@pytest.mark.parametrize(
    ("timeout", "status"),
    [(httpx.Timeout(60, read=0.05), 504), (httpx.Timeout(60, pool=0.05), 503)],
)
async def test_time_limits(
    service: Service,
    timeout: httpx.Timeout,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend: str,
) -> None:
    """The one connection that there is, is waited for, or what comes on it."""

    async def get_hasty_prices() -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=service.url, timeout=timeout, limits=limits
        ) as client:
            yield client

    monkeypatch.setitem(main.app.dependency_overrides, main.get_prices, get_hasty_prices)
    async with running(main.app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get, "/prices/slow")
        with anyio.fail_after(PATIENCE):
            while not service.cookies:  # until it has arrived
                await anyio.lowlevel.checkpoint()
        answer = await client.get("/prices/slow")
        assert answer.status_code == status
        assert ("Retry-After" in answer.headers) is (status == 503)
        service.may_answer.set()


def test_a_wrong_setting_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRICES_URL", raising=False)
    with pytest.raises(ValueError, match="prices_url"), TestClient(main.app):
        raise AssertionError("started")
