from datetime import timedelta
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container

from .model import ModelDep, load_model

app = LifespanFastAPI()


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)


@app.post("/model/refresh")
async def refresh_model(
    container: Annotated[LifespanContainer, Depends(get_container)],
) -> str:
    await container.refresh(
        load_model, policy="resource_preserving", drain_timeout=timedelta(minutes=1)
    )
    return f"this is {container[load_model].version}"
