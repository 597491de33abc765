from typing import Annotated

from pydantic_settings import BaseSettings

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Settings(BaseSettings):
    database_url: str
    page_size: int = 50


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]

app = LifespanFastAPI()


@app.get("/page-size")
async def read_page_size(settings: SettingsDep) -> int:
    return settings.page_size
