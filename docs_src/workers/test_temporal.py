from collections.abc import AsyncIterator, Iterator

import pytest
from temporalio.testing import ActivityEnvironment

from .temporal_activities import classify, container, get_session, list_documents, open_archive


class FakeArchive:
    async def names(self, project: str) -> AsyncIterator[str]:
        yield f"{project}/1"

    def read(self, name: str) -> str:
        return "total: 12"


class FakeSession:
    def execute(self, statement: str, values: tuple[str, str, int]) -> None:
        assert values == ("shop/1", "invoice", 1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    container.dependency_overrides |= {open_archive: FakeArchive, get_session: FakeSession}
    yield
    container.dependency_overrides.clear()


def test_classify() -> None:
    with container.sync(only=[classify]):
        assert ActivityEnvironment().run(classify, "shop/1") == "invoice"


@pytest.mark.anyio
async def test_list_documents() -> None:
    async with container.running(only=[list_documents]):
        assert await ActivityEnvironment().run(list_documents, "shop") == ["shop/1"]
