from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter

from fastapi_lifespan_deps import Depends


class Users:
    """Stands for a database."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


async def get_users() -> AsyncIterator[Users]:
    users = Users(["Ada", "Grace"])
    yield users
    users.names.clear()


UsersDep = Annotated[Users, Depends(get_users, scope="lifespan")]

router = APIRouter()


@router.get("/users")
async def read_users(users: UsersDep) -> list[str]:
    return users.names


async def rename(user_id: int, name: str, users: UsersDep) -> None:
    users.names[user_id] = name
