from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import HTTPException
from pydantic_settings import BaseSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Settings(BaseSettings):
    database_url: str  # postgresql+asyncpg://user:password@host/database


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


async def get_engine(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        settings.database_url,
        pool_size=10,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
    )
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    yield engine
    await engine.dispose()


EngineDep = Annotated[
    AsyncEngine, Depends(get_engine, scope="lifespan", start_timeout=10, stop_timeout=10)
]


async def get_session(engine: EngineDep) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]

app = LifespanFastAPI()


@app.post("/users")
async def create_user(name: str, session: SessionDep) -> int:
    user = User(name=name)
    session.add(user)
    await session.flush()
    if not name.isalpha():
        raise HTTPException(422, "a name has letters only")
    return user.id


@app.get("/users/{user_id}")
async def read_user(user_id: int, session: SessionDep) -> str:
    user = await session.get(User, user_id)
    if user is None:
        raise HTTPException(404)
    return user.name
