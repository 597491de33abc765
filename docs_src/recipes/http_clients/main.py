from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated

import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_settings import BaseSettings

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Settings(BaseSettings):
    prices_url: str


async def get_prices(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=settings.prices_url,
        timeout=httpx.Timeout(10, connect=3, pool=1),
        limits=httpx.Limits(max_connections=50, max_keepalive_connections=20),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # it keeps none
    ) as client:
        yield client


Prices = Annotated[httpx.AsyncClient, Depends(get_prices, scope="lifespan")]

app = LifespanFastAPI()


@app.exception_handler(httpx.HTTPError)
async def tell_of_a_failure(request: Request, error: httpx.HTTPError) -> JSONResponse:
    if isinstance(error, httpx.PoolTimeout):
        return JSONResponse({"detail": "too many requests at once"}, 503, {"Retry-After": "1"})
    if isinstance(error, httpx.TimeoutException):
        return JSONResponse({"detail": "another service takes too long"}, 504)
    return JSONResponse({"detail": "another service fails"}, 502)


@app.get("/prices/{item}")
async def read_price(item: str, prices: Prices) -> float:
    response = await prices.get(f"/items/{item}")
    response.raise_for_status()
    return float(response.json()["price"])


@app.get("/catalogue")
async def read_catalogue(prices: Prices) -> StreamingResponse:
    async def stream() -> AsyncIterator[bytes]:
        async with prices.stream("GET", "/catalogue") as response:
            async for part in response.aiter_bytes():
                yield part

    return StreamingResponse(stream())
