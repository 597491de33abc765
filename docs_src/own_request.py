from starlette.requests import HTTPConnection

from fastapi_lifespan_deps import get_container

from .first_steps import get_pool


async def greet(connection: HTTPConnection, user_id: int) -> str:
    container = await get_container(connection)
    return await container[get_pool].fetch_user(user_id)
