from typing import Annotated

from fastapi import Request

from fastapi_lifespan_deps import Depends, LifespanFastAPI


def get_locale(request: Request) -> str:
    return request.headers.get("accept-language", "en")


def get_catalog(locale: Annotated[str, Depends(get_locale, scope="lifespan")]) -> dict[str, str]:
    return {"language": locale}


app = LifespanFastAPI()


@app.get("/catalog")
async def read_catalog(
    catalog: Annotated[dict[str, str], Depends(get_catalog, scope="lifespan")],
) -> dict[str, str]:
    return catalog
