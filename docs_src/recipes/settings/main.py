from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from pydantic import Field, HttpUrl, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_", env_file=".env", extra="ignore")

    page_size: int = Field(50, ge=1, le=500)


class PricesSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SHOP_PRICES_",
        env_file=".env",
        extra="ignore",
        hide_input_in_errors=True,  # the key is among it
    )

    url: HttpUrl
    api_key: SecretStr


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]
PricesSettingsDep = Annotated[PricesSettings, Depends(scope="lifespan")]


async def get_prices(settings: PricesSettingsDep) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-API-Key": settings.api_key.get_secret_value()}
    async with httpx.AsyncClient(base_url=str(settings.url), headers=headers) as client:
        yield client


Prices = Annotated[httpx.AsyncClient, Depends(get_prices, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/page-size")
async def read_page_size(settings: SettingsDep) -> int:
    return settings.page_size


@app.get("/prices-url")
async def read_prices_url(prices: Prices) -> str:
    return str(prices.base_url)
