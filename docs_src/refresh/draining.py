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
    old = container[load_model].version
    draining = await container.refresh(load_model, drain_timeout=60)
    await draining.wait()
    return f"{old} is closed"
