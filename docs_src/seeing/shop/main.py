from fastapi_lifespan_deps import LifespanFastAPI

from .db import PoolDep
from .ml import IndexDep, ModelDep

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return f"user {user_id} from {pool}"


@app.get("/similar")
async def read_similar(index: IndexDep) -> list[str]:
    return index


@app.post("/feedback")
async def add_feedback(model: ModelDep) -> str:
    return model
