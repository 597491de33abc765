from collections.abc import AsyncIterator
from typing import Annotated

from docs_src.moving.shop import Pool, Prices, Settings
from fastapi_lifespan_deps import Depends, LifespanFastAPI, View, get_container


async def get_pool(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Pool]:
    pool = Pool(settings.url)
    yield pool
    await pool.close()


def load_prices() -> Prices:
    return Prices()


app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(
    user_id: int, pool: Annotated[Pool, Depends(get_pool, scope="lifespan")]
) -> str:
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(prices: Annotated[Prices, Depends(load_prices, scope="lifespan")]) -> int:
    return prices.version


@app.post("/prices", status_code=204)
async def reload_prices(container: Annotated[View, Depends(get_container)]) -> None:
    await container.refresh(load_prices)
