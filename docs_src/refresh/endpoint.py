import os
import secrets
from typing import Annotated

from fastapi import HTTPException
from fastapi.security import APIKeyHeader

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container

from .model import ModelDep, load_model

app = LifespanFastAPI()


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)


def check_admin(key: Annotated[str, Depends(APIKeyHeader(name="admin-key"))]) -> None:
    if not secrets.compare_digest(key.encode(), os.environ["ADMIN_KEY"].encode()):
        raise HTTPException(403)


@app.post("/model/refresh", dependencies=[Depends(check_admin)])
async def refresh_model(
    container: Annotated[LifespanContainer, Depends(get_container)],
) -> str:
    await container.refresh(load_model)
    return f"this is {container[load_model].version}"
