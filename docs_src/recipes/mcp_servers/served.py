from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

from fastapi import FastAPI
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_lifespan_deps import inject, lifespan_container

HOSTS = ["shop.example.com", "127.0.0.1:*", "localhost:*"]


def sessions(server: MCPServer, path: str) -> Callable[[], AsyncIterator[ASGIApp]]:
    """A provider of what answers for an MCP server, with sessions of its own in each run."""

    async def start_sessions() -> AsyncIterator[ASGIApp]:
        answering = server.streamable_http_app(
            streamable_http_path=path,
            transport_security=TransportSecuritySettings(allowed_hosts=HOSTS),
        )
        async with server.session_manager.run():
            yield answering

    return start_sessions


class Serve:
    """An ASGI application: the one that a provider has started."""

    def __init__(self, app: FastAPI, provider: Callable[[], AsyncIterator[ASGIApp]]) -> None:
        self.app = app
        self.provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = lifespan_container(self.app)[self.provider]
        await answering(scope, receive, send)


def serve(app: FastAPI, path: str, provider: Callable[[], AsyncIterator[ASGIApp]]) -> None:
    app.router.routes.append(Route(path, Serve(app, provider)))


def tool(app: FastAPI, function: Callable[..., Any]) -> Callable[..., Any]:
    """What an MCP server may call: it shows the parameters that are no dependencies."""

    @wraps(inject(function))
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await lifespan_container(app).call(function, *args, **kwargs)

    return call
