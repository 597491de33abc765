from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi_lifespan_deps import Depends


class Model:
    """Stands for something large that is read from a file."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.is_open = True

    def predict(self, text: str) -> str:
        if not self.is_open:
            raise RuntimeError(f"{self.version} is closed")
        return f"{text} is good, says {self.version}"


def load_model() -> Iterator[Model]:
    model = Model(Path("model.txt").read_text())  # takes seconds, and blocks
    yield model
    model.is_open = False


ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]
