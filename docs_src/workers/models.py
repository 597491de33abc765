from typing import Annotated

from fastapi_lifespan_deps import Depends


class Model:
    """Stands for one that is large, and takes its time to load."""

    def __init__(self, device: str) -> None:
        self.device = device

    def classify(self, text: str) -> str:
        return f"{'good' if 'good' in text else 'bad'}, by {self.device}"


def get_model() -> Model:
    return Model("cpu")


def get_model_on_gpu() -> Model:
    return Model("gpu")


ModelDep = Annotated[Model, Depends(get_model, scope="lifespan")]

# What to start, or what to put in the place of what.
SETS = {"cpu": [get_model], "gpu": {get_model: get_model_on_gpu}}
