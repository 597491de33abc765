from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container

from .first_steps import PoolDep, get_pool

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)


@app.get("/health")
async def read_health(
    container: Annotated[LifespanContainer, Depends(get_container)],
) -> dict[str, bool]:
    return {"database": container[get_pool].is_open}
