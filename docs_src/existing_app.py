from fastapi import FastAPI

from fastapi_lifespan_deps import enable_lifespan_scope

from .first_steps import PoolDep


def create_app() -> FastAPI:
    """Stands for a function, a framework or a plugin that makes the application for you."""
    return FastAPI()


app = enable_lifespan_scope(create_app())


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)
