from typing import Annotated

from fastapi import Depends, FastAPI, Request

from docs_src.moving.shop import Pool


def get_pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool


PoolDep = Annotated[Pool, Depends(get_pool)]  # the line that changes

app = FastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return f"user {user_id} of {pool.url}"
