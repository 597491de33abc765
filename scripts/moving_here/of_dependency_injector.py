"""What the page on dependency-injector says of that library. scripts/moving runs it."""

import asyncio
from collections.abc import AsyncIterator
from threading import Barrier, Thread

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject
from fastapi import HTTPException
from fastapi.testclient import TestClient

from tests.moving import TEST_URL, URL, failing, load, log, shop, with_failing_commit


def test_resources_are_opened_before_the_first_request() -> None:
    with TestClient(load("dependency_injector.before").app):
        assert log() == ["open the pool"]


@pytest.mark.parametrize("error", [None, HTTPException(404)])
def test_the_endpoint_sees_its_own_error(error: Exception | None) -> None:
    lines = failing("dependency_injector.before", error)
    assert lines == ["open the pool", "begin", "roll back", "close the pool"]


def test_the_endpoint_ends_before_the_response() -> None:
    for when in ("before", "after"):
        assert with_failing_commit(f"dependency_injector.{when}") == 500


def test_the_first_run_without_a_start_and_its_pool_is_never_closed() -> None:
    client = TestClient(load("dependency_injector.before").app)
    assert client.get("/users/1").status_code == 200
    assert log() == ["open the pool", "begin", "commit"]


def test_an_override_does_not_reach_what_has_been_made() -> None:
    before = load("dependency_injector.before")
    settings = shop().Settings()
    settings.url = TEST_URL
    with TestClient(before.app) as client, before.container.settings.override(settings):
        assert client.get("/database").json() == URL


def test_a_singleton_may_be_made_by_several_threads() -> None:
    both = Barrier(2)
    made = []

    def make() -> object:
        both.wait(timeout=30)
        made.append(object())
        return made[-1]

    provider = providers.Singleton(make)
    threads = [Thread(target=provider) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2


async def open_session() -> AsyncIterator[object]:
    yield object()


class Sessions(containers.DeclarativeContainer):
    session = providers.Resource(open_session)


@inject
async def handle(
    seen: list[object],
    both: asyncio.Barrier,
    session: object = Closing[Provide[Sessions.session]],
) -> None:
    seen.append(session)
    await both.wait()


def test_a_resource_that_is_closed_after_each_call_is_shared_by_calls_at_the_same_time() -> None:
    async def work() -> list[object]:
        seen: list[object] = []
        both = asyncio.Barrier(2)
        calls = [handle(seen, both) for _ in range(2)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {type(None), TypeError}
        return seen

    container = Sessions()
    container.wire(modules=[__name__])
    try:
        first, second = asyncio.run(work())
    finally:
        container.unwire()
    assert first is second


def test_configuration_comes_from_files_and_the_environment() -> None:
    assert {"from_yaml", "from_ini", "from_env"} <= set(dir(providers.Configuration))


def test_during_the_move_an_override_reaches_both() -> None:
    example = load("dependency_injector.during")
    settings = shop().Settings()
    settings.url = TEST_URL
    with example.container.settings.override(settings), TestClient(example.app) as client:
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
