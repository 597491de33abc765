from typing import Annotated

from anyio import to_thread

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .model import Model, load_model


async def get_model() -> Model:
    return await to_thread.run_sync(load_model, abandon_on_cancel=True)


ModelDep = Annotated[Model, Depends(get_model, scope="lifespan", start_timeout=60.0)]

app = LifespanFastAPI()


@app.get("/sentiment")
def read_sentiment(text: str, model: ModelDep) -> str:
    return model.predict(text)
