import pytest

from .database import Pool
from .first_steps import get_pool
from .outside_requests import Message, container, handle


def get_fake_pool() -> Pool:
    return Pool("fake")


@pytest.mark.anyio
async def test_handle() -> None:
    container.dependency_overrides[get_pool] = get_fake_pool
    try:
        async with container:
            assert await handle(Message(1, "acme")) == "user 1 of fake, for acme"
    finally:
        container.dependency_overrides.clear()
