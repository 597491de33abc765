"""docs/recipes/mcp-servers.md: the official SDK's servers, and its client, over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

pytest.importorskip("mcp")
from mcp import Client
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl

from docs_src.recipes.mcp_servers import main, mounted, test_tools
from docs_src.recipes.mcp_servers.served import serve, sessions
from fastapi_lifespan_deps import Depends, LifespanFastAPI
from tests.clients import PATIENCE
from tests.processes import ServerProcess

pytestmark = [pytest.mark.server, pytest.mark.anyio]

client = test_tools.client
test_take = test_tools.test_take
test_nothing_is_left = test_tools.test_nothing_is_left

# The protocol of 2026-07-28, which has no sessions, and those before, which have.
PROTOCOLS = pytest.mark.parametrize("mode", ["auto", "legacy"])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # uvicorn's


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """An application under a server in this event loop; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        with anyio.fail_after(PATIENCE):
            while not server.started:
                await anyio.lowlevel.checkpoint()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True


async def result(client: Client, tool: str, **arguments: Any) -> Any:
    called = await client.call_tool(tool, arguments)
    assert not called.is_error, called
    assert called.structured_content is not None
    return called.structured_content["result"]


def test_what_people_meet() -> None:
    """An application runs no lifespan of what is mounted; and a session manager runs once."""
    app = FastAPI()
    server = MCPServer("stock")
    app.mount("/stock", server.streamable_http_app(streamable_http_path="/"))
    with TestClient(app) as client, pytest.raises(RuntimeError, match=r"Make sure to use run\(\)"):
        client.post("/stock/", json={})

    with TestClient(mounted.app):
        pass
    with pytest.raises(RuntimeError, match="only be called once"), TestClient(mounted.app):
        raise AssertionError("started")


@PROTOCOLS
async def test_servers_that_are_mounted(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, in a process of its own, since it starts once."""
    command = ["-m", "uvicorn", "docs_src.recipes.mcp_servers.mounted:app", "--port", "0"]
    with ServerProcess(command) as server:
        url = f"http://127.0.0.1:{server.read_until(r'running on http://127.0.0.1:([0-9]+)')}"
        async with Client(f"{url}/stock/", mode=mode) as stock:
            assert await result(stock, "count", item="tea") == 3
            async with Client(f"{url}/prices/", mode=mode) as prices:
                assert await result(prices, "price", item="tea") == 4.5
            # It stops, though a client is there.
            server.process.terminate()
            await anyio.to_thread.run_sync(server.wait)
    assert "Application shutdown complete" in server.output
    assert "Traceback" not in server.output


@PROTOCOLS
async def test_tools_share_what_routes_have(mode: str) -> None:
    """The application starts as often as one likes."""
    for _ in range(2):
        async with (
            serving(main.app) as url,
            Client(f"{url}/stock", mode=mode) as stock,
            Client(f"{url}/prices", mode=mode) as prices,
            httpx.AsyncClient(base_url=url) as plain,
        ):
            tools = {tool.name: tool for tool in (await stock.list_tools()).tools}
            assert list(tools["take"].input_schema["properties"]) == ["item"]
            assert tools["take"].description == "Take one of an item; how many are left."
            assert await result(stock, "take", item="tea") == 2
            assert await result(stock, "count", item="tea") == 2
            assert (await plain.get("/count/tea")).json() == 2
            assert await result(prices, "price", item="tea") == 4.5


@PROTOCOLS
async def test_an_error_of_a_tool_is_thrown_into_its_dependencies(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(main.app) as url, Client(f"{url}/stock", mode=mode) as stock:
        refused = await stock.call_tool("take", {"item": "coffee"})
        assert refused.is_error
        assert "rolled back" in caplog.text
        assert await result(stock, "count", item="tea") == 3  # the sessions go on


async def test_two_runs_at_once() -> None:
    async with serving(main.app) as url, Client(f"{url}/stock", mode="legacy") as stock:
        await result(stock, "take", item="tea")
        with TestClient(main.app) as client:
            assert client.get("/count/tea").json() == 3
        assert await result(stock, "count", item="tea") == 2


async def test_a_refresh_reaches_tools_of_sessions_that_are_open() -> None:
    async with serving(main.app) as url, Client(f"{url}/stock", mode="legacy") as stock:
        await result(stock, "take", item="tea")
        draining = await main.app.lifespan_container.refresh(main.get_shelf)
        with anyio.fail_after(PATIENCE):
            await draining.wait()
        assert await result(stock, "count", item="tea") == 3


class Tokens:
    async def verify_token(self, token: str) -> AccessToken | None:
        return AccessToken(token=token, client_id="Ada", scopes=[]) if token == "hers" else None


async def test_a_server_that_asks_for_a_token() -> None:
    """Its metadata have a path of their own."""
    auth = AuthSettings(
        issuer_url=AnyHttpUrl("https://login.example.com"),
        resource_server_url=AnyHttpUrl("http://localhost/stock"),
        validate_token_resource=False,
    )
    server = MCPServer("stock", auth=auth, token_verifier=Tokens())
    server.add_tool(mounted.count)
    start = sessions(server, "/stock")
    app = LifespanFastAPI(dependencies=[Depends(start, scope="lifespan")])
    serve(app, "/stock", start)
    serve(app, "/.well-known/oauth-protected-resource/stock", start)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        refused = await client.post("/stock", json={})
        assert refused.status_code == 401
        assert "/.well-known/oauth-protected-resource/stock" in refused.headers["WWW-Authenticate"]
        metadata = await client.get("/.well-known/oauth-protected-resource/stock")
        assert metadata.json()["authorization_servers"] == ["https://login.example.com/"]
        headers = {"Authorization": "Bearer hers"}
        assert (await client.post("/stock", json={}, headers=headers)).status_code == 400


async def test_other_hosts_are_refused() -> None:
    async with serving(main.app) as url, httpx.AsyncClient(base_url=url) as client:
        for host, status in [("shop.example.com", 400), ("elsewhere.example.com", 421)]:
            answer = await client.post("/stock", json={}, headers={"Host": host})
            assert answer.status_code == status, answer.text
