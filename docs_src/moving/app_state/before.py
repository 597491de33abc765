from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint

from docs_src.moving.shop import Pool, Prices, Settings

settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = pool = Pool(settings.url)
    app.state.prices = Prices()
    yield
    await pool.close()


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def name_database(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["database"] = request.app.state.pool.url
    return response


@app.get("/users/{user_id}")
async def read_user(user_id: int, request: Request) -> str:
    pool: Pool = request.app.state.pool
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(request: Request) -> int:
    prices: Prices = request.app.state.prices
    return prices.version


@app.post("/prices", status_code=204)
async def reload_prices(request: Request) -> None:
    request.app.state.prices = Prices()
