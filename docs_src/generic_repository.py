from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .first_steps import PoolDep


class User(BaseModel):
    name: str


class Order(BaseModel):
    item: str


Row = TypeVar("Row")


class Repository(Generic[Row]):
    def __init__(self, pool: PoolDep) -> None:
        self.pool = pool
        self.rows: list[Row] = []

    def add(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows)


UsersDep = Annotated[Repository[User], Depends(scope="lifespan")]
OrdersDep = Annotated[Repository[Order], Depends(scope="lifespan")]

app = LifespanFastAPI()


@app.post("/users")
async def add_user(user: User, users: UsersDep) -> int:
    return users.add(user)


@app.post("/orders")
async def add_order(order: Order, orders: OrdersDep) -> int:
    return orders.add(order)
