import asyncio

from docs_src.database import Pool

from .after import container, get_pool, work


def test_work() -> None:
    container.dependency_overrides[get_pool] = lambda: Pool("fake")
    try:
        assert asyncio.run(work([1])) == ["user 1 of fake"]
    finally:
        container.dependency_overrides.clear()
