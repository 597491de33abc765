from typing import Annotated

from dishka import FromDishka, make_async_container
from dishka.integrations.fastapi import DishkaRoute, setup_dishka
from fastapi import APIRouter, FastAPI

from docs_src.moving.shop import Pool, Users
from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .before import ShopProvider, lifespan


async def get_pool(app: FastAPI) -> Pool:
    pool: Pool = await app.state.dishka_container.get(Pool)
    return pool


PoolDep = Annotated[Pool, Depends(get_pool, scope="lifespan")]

app = LifespanFastAPI(lifespan=lifespan)


@app.get("/database")  # this one has moved
async def read_database(pool: PoolDep) -> str:
    return pool.url


router = APIRouter(route_class=DishkaRoute)


@router.get("/users/{user_id}")  # this one hasn't
async def read_user(user_id: int, users: FromDishka[Users]) -> str:
    return await users.find(user_id)


app.include_router(router)
setup_dishka(make_async_container(ShopProvider()), app)
