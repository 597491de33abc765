"""The same checks for the examples of "Moving here": before, during and after the move."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends
from tests.moving import MOMENTS, OF_LIBRARIES, check, check_test, load, log


@pytest.mark.parametrize("name", [f"{library}.{when}" for library, when in MOMENTS])
def test_same_requests(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    "name", [f"{library}.{when}" for library, when in MOMENTS if when != "during"]
)
def test_tests_that_are_shown(name: str) -> None:
    check_test(name)


@pytest.mark.parametrize("name", [f"{name}.during" for name in OF_LIBRARIES])
def test_who_closes_the_pool_during_the_move(name: str) -> None:
    """The library that makes it does, before lifespan dependencies stop. svcs doesn't make it."""
    example = load(name)

    async def use(
        pool: Annotated[Any, Depends(example.get_pool, scope="lifespan")],
    ) -> AsyncIterator[None]:
        yield
        log().append("a dependency stops")

    example.app.get("/other", dependencies=[Depends(use, scope="lifespan")])(list)
    with TestClient(example.app):
        pass
    closed_first = ["close the pool", "a dependency stops"]
    expected = closed_first[::-1] if name == "svcs.during" else closed_first
    assert log() == ["open the pool", *expected]
