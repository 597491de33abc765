from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Pool:
    async def fetch_user(self, user_id: int) -> str:
        return f"user {user_id}"


async def get_pool() -> Pool:
    return Pool()


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)
