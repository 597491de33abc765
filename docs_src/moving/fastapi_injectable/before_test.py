import asyncio

from fastapi import FastAPI
from fastapi_injectable import register_app

from docs_src.database import Pool

from .before import get_pool, work


def test_work() -> None:
    async def main() -> list[str]:
        app = FastAPI()
        app.dependency_overrides[get_pool] = lambda: Pool("fake")
        await register_app(app)  # for all tests that come after this one, too
        return await work([1])

    assert asyncio.run(main()) == ["user 1 of fake"]
