from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dishka import FromDishka, Provider, Scope, make_async_container, provide
from dishka.integrations.fastapi import DishkaRoute, setup_dishka
from fastapi import APIRouter, FastAPI

from docs_src.moving.shop import Pool, Session, Settings, Users


class ShopProvider(Provider):
    settings = provide(Settings, scope=Scope.APP)
    users = provide(Users, scope=Scope.REQUEST)

    @provide(scope=Scope.APP)
    async def get_pool(self, settings: Settings) -> AsyncIterator[Pool]:
        pool = Pool(settings.url)
        yield pool
        await pool.close()

    @provide(scope=Scope.REQUEST)
    async def get_session(self, pool: Pool) -> AsyncIterator[Session]:
        session = await Session(pool).begin()
        error = yield session
        await session.end("roll back" if error else "commit")


router = APIRouter(route_class=DishkaRoute)


@router.get("/database")
async def read_database(pool: FromDishka[Pool]) -> str:
    return pool.url


@router.get("/users/{user_id}")
async def read_user(user_id: int, users: FromDishka[Users]) -> str:
    return await users.find(user_id)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.dishka_container.close()


def create_app(*replacing: Provider) -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    setup_dishka(make_async_container(ShopProvider(), *replacing), app)
    return app


app = create_app()
