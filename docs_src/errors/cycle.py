from __future__ import annotations

from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Users:
    def __init__(self, orders: Annotated[Orders, Depends(scope="lifespan")]) -> None:
        self.orders = orders


class Orders:
    def __init__(self, users: Annotated[Users, Depends(scope="lifespan")]) -> None:
        self.users = users


app = LifespanFastAPI()


@app.get("/users")
async def read_users(users: Annotated[Users, Depends(scope="lifespan")]) -> None: ...
