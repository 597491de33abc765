import logging
from collections.abc import AsyncIterator
from typing import Annotated

from mcp.server import MCPServer

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .served import serve, sessions, tool


class Shelf:
    """Stands for the pool of a database."""

    def __init__(self) -> None:
        self.items = {"tea": 3}


async def get_shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.items.clear()


ShelfDep = Annotated[Shelf, Depends(get_shelf, scope="lifespan")]


async def get_transaction(shelf: ShelfDep) -> AsyncIterator[dict[str, int]]:
    changed = dict(shelf.items)
    try:
        yield changed
    except Exception:
        logging.warning("rolled back")
        raise
    shelf.items = changed


TransactionDep = Annotated[dict[str, int], Depends(get_transaction)]


async def count(item: str, shelf: ShelfDep) -> int:
    """How many of an item there are."""
    return shelf.items.get(item, 0)


async def take(item: str, transaction: TransactionDep) -> int:
    """Take one of an item; how many are left."""
    transaction[item] -= 1
    if transaction[item] < 0:
        raise ValueError(f"there is no {item} left")
    return transaction[item]


async def price(item: str) -> float:
    """What an item costs."""
    return {"tea": 4.5}[item]


stock = MCPServer("stock")
prices = MCPServer("prices")
start_stock = sessions(stock, "/stock")
start_prices = sessions(prices, "/prices")

app = LifespanFastAPI(
    dependencies=[
        Depends(start_stock, scope="lifespan"),
        Depends(start_prices, scope="lifespan"),
    ],
    handlers=[count, take],
)
serve(app, "/stock", start_stock)
serve(app, "/prices", start_prices)
stock.add_tool(tool(app, count))
stock.add_tool(tool(app, take))
prices.add_tool(price)


@app.get("/count/{item}")
async def read_count(item: str, shelf: ShelfDep) -> int:
    return shelf.items.get(item, 0)
