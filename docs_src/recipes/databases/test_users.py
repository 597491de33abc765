from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from .main import Base, User, app, get_engine, get_session

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"  # asyncpg's; one event loop for the module


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[AsyncEngine]:
    async with app.router.lifespan_context(app):
        engine = app.lifespan_container[get_engine]
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield engine


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with engine.connect() as connection:
        transaction = await connection.begin()

        @asynccontextmanager
        async def new_session() -> AsyncIterator[AsyncSession]:
            async with AsyncSession(
                connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
            ) as session:
                yield session

        async def get_test_session() -> AsyncIterator[AsyncSession]:
            async with new_session() as session, session.begin():
                yield session

        app.dependency_overrides[get_session] = get_test_session
        async with new_session() as session:
            yield session
        del app.dependency_overrides[get_session]
        await transaction.rollback()


@pytest.fixture
async def client(session: AsyncSession) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("attempt", [1, 2])
async def test_create_user(client: AsyncClient, session: AsyncSession, attempt: int) -> None:
    response = await client.post("/users", params={"name": "Ada"})
    assert (await client.get(f"/users/{response.json()}")).json() == "Ada"
    assert (await session.scalars(select(User.name))).all() == ["Ada"]


async def test_a_refused_user_is_not_kept(client: AsyncClient, session: AsyncSession) -> None:
    response = await client.post("/users", params={"name": "R2D2"})
    assert response.status_code == 422
    assert (await session.scalars(select(User.name))).all() == []
