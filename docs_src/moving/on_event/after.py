from collections.abc import AsyncIterator
from typing import Annotated

from docs_src.moving.shop import Pool, Prices, Settings, log
from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def open_pool() -> AsyncIterator[Pool]:
    pool = Pool(Settings.url)
    yield pool
    await pool.close()


PoolDep = Annotated[Pool, Depends(open_pool, scope="lifespan")]


async def load_prices(pool: PoolDep) -> AsyncIterator[Prices]:
    prices = Prices()
    yield prices
    log.append(f"save prices {prices.version}")


PricesDep = Annotated[Prices, Depends(load_prices, scope="lifespan")]


async def announce() -> None:
    log.append("serving")


app = LifespanFastAPI(on_startup=[announce])


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(prices: PricesDep) -> int:
    return prices.version
