from typing import Annotated

from fastapi import Header, HTTPException

from fastapi_lifespan_deps import Depends, LifespanFastAPI, add_health_routes

from ..database import Pool
from ..first_steps import get_pool


def is_open(pool: Pool) -> bool:
    return pool.is_open


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan", health=is_open)]


async def admin(token: Annotated[str, Header()] = "") -> None:
    if token != "secret":
        raise HTTPException(403)


app = LifespanFastAPI()
add_health_routes(app, details="/healthz", details_dependencies=[Depends(admin)])


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)
