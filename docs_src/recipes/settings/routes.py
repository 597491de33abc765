from typing import Annotated

from fastapi import APIRouter
from pydantic_settings import BaseSettings, SettingsConfigDict

from fastapi_lifespan_deps import Depends


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")

    title: str = "Shop"
    origins: list[str] = []


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]

router = APIRouter()


@router.get("/title")
async def read_title(settings: SettingsDep) -> str:
    return settings.title
