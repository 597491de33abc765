from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Request, Response
from starlette.middleware.base import RequestResponseEndpoint

from docs_src.moving.shop import Pool, Prices, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI, View, get_container


async def get_pool(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Pool]:
    pool = Pool(settings.url)
    yield pool
    await pool.close()


async def load_prices() -> Prices:
    return Prices()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]
PricesDep = Annotated[Prices, Depends(load_prices, scope="lifespan")]

app = LifespanFastAPI()


@app.middleware("http")
async def name_database(request: Request, call_next: RequestResponseEndpoint) -> Response:
    container = await get_container(request)
    response = await call_next(request)
    response.headers["database"] = container[get_pool].url
    return response


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(prices: PricesDep) -> int:
    return prices.version


@app.post("/prices", status_code=204)
async def reload_prices(container: Annotated[View, Depends(get_container)]) -> None:
    await container.refresh(load_prices)
