from collections.abc import AsyncIterator

from mcp.server import MCPServer

from fastapi_lifespan_deps import Depends, LifespanFastAPI

stock = MCPServer("stock")
prices = MCPServer("prices")


@stock.tool()
async def count(item: str) -> int:
    return {"tea": 3}.get(item, 0)


@prices.tool()
async def price(item: str) -> float:
    return {"tea": 4.5}.get(item, 0)


async def run_sessions() -> AsyncIterator[None]:
    async with stock.session_manager.run(), prices.session_manager.run():
        yield


app = LifespanFastAPI(dependencies=[Depends(run_sessions, scope="lifespan")])
app.mount("/stock", stock.streamable_http_app(streamable_http_path="/"))
app.mount("/prices", prices.streamable_http_app(streamable_http_path="/"))
