from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from fastapi_lifespan_deps import WorkerSummary, run_worker

from .redis_stream import Order, container, get_transaction, handle


class Accepted(dict[str, str]):
    """Stands for the transaction."""

    def hset(self, name: str, key: str, value: str) -> None:
        self[key] = value


@pytest.fixture
def accepted() -> Iterator[Accepted]:
    accepted = Accepted()
    container.dependency_overrides[get_transaction] = lambda: accepted
    yield accepted
    container.dependency_overrides.clear()


async def messages() -> AsyncIterator[Order]:
    yield Order("1", {"item": "tea", "quantity": "3"})
    yield Order("2", {"item": "tea", "quantity": "many"})


def test_orders(accepted: Accepted) -> None:
    failed: list[str] = []

    async def work() -> WorkerSummary:
        async with container.running(only=[handle]):
            return await run_worker(
                handle,
                messages,
                container=container,
                on_error=lambda order, error: failed.append(order.id),
            )

    summary = anyio.run(work)
    assert (summary.done, summary.failed) == (1, 1)
    assert accepted == {"1": "3 x tea"}
    assert failed == ["2"]
