from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Model:
    def predict(self, text: str) -> str:
        return "positive" if "good" in text else "negative"


def load_model() -> Model:
    return Model()  # takes seconds, and blocks


ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/sentiment")
def read_sentiment(text: str, model: ModelDep) -> str:
    return model.predict(text)
