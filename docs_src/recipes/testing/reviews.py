from typing import Annotated

from fastapi import APIRouter

from fastapi_lifespan_deps import Depends

from .users import UsersDep


class Model:
    """Stands for one that takes a minute to load."""

    def judge(self, text: str) -> str:
        return "positive" if "good" in text else "negative"


def load_model() -> Model:
    return Model()


ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]

router = APIRouter()


@router.get("/reviews/{user_id}")
async def read_review(user_id: int, text: str, users: UsersDep, model: ModelDep) -> str:
    return f"{users.names[user_id]} is {model.judge(text)}"
