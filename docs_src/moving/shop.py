from types import TracebackType
from typing import Literal, Self

log: list[str] = []


class Settings:
    url = "postgresql://localhost/shop"


class Pool:
    """Stands for the connection pool of your database driver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_open = True
        log.append("open the pool")

    async def close(self) -> None:
        self.is_open = False
        log.append("close the pool")


class Session:
    """A transaction on the pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def begin(self) -> Self:
        log.append("begin")
        return self

    async def end(self, what: Literal["commit", "roll back"]) -> None:
        log.append(what)

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end("roll back" if error else "commit")

    async def fetch_user(self, user_id: int) -> str:
        return f"user {user_id} of {self.pool.url}"


class Users:
    def __init__(self, session: Session) -> None:
        self.session = session

    async def find(self, user_id: int) -> str:
        return await self.session.fetch_user(user_id)


class Prices:
    """What is loaded from time to time. Each time there is a new version."""

    version = 0

    def __init__(self) -> None:
        Prices.version += 1
        self.version = Prices.version
        log.append(f"load prices {self.version}")
