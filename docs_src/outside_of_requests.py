from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .first_steps import get_pool

app = LifespanFastAPI(dependencies=[Depends(get_pool, scope="lifespan")])


async def greet(user_id: int) -> str:
    pool = app.lifespan_container[get_pool]
    return await pool.fetch_user(user_id)
