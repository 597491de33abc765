from fastapi import FastAPI, Request

from docs_src.moving.shop import Pool, Prices, Settings, log

app = FastAPI()


@app.on_event("startup")
async def open_pool() -> None:
    app.state.pool = Pool(Settings.url)


@app.on_event("startup")
async def load_prices() -> None:
    app.state.prices = Prices()


@app.on_event("startup")
async def announce() -> None:
    log.append("serving")


@app.on_event("shutdown")
async def save_prices() -> None:
    log.append(f"save prices {app.state.prices.version}")


@app.on_event("shutdown")
async def close_pool() -> None:
    await app.state.pool.close()


@app.get("/users/{user_id}")
async def read_user(user_id: int, request: Request) -> str:
    pool: Pool = request.app.state.pool
    return f"user {user_id} of {pool.url}"


@app.get("/prices")
async def read_prices(request: Request) -> int:
    prices: Prices = request.app.state.prices
    return prices.version
