from datetime import timedelta
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .model import Model, load_model

HourlyModel = Annotated[
    Model, Depends(load_model, scope="lifespan", refresh_every=timedelta(hours=1))
]

app = LifespanFastAPI()


@app.get("/predict")
def predict(text: str, model: HourlyModel) -> str:
    return model.predict(text)
