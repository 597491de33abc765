from functools import lru_cache
from typing import Annotated

from fastapi import Depends, FastAPI

from docs_src.moving.shop import Pool, Prices, Settings

settings = Settings()
pool = Pool(settings.url)


@lru_cache
def load_prices() -> Prices:
    return Prices()


app = FastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int) -> str:
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(prices: Annotated[Prices, Depends(load_prices)]) -> int:
    return prices.version


@app.post("/prices", status_code=204)
async def reload_prices() -> None:
    load_prices.cache_clear()
