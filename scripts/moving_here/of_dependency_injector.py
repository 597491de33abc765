"""What the page on dependency-injector says of that library. scripts/moving runs it."""

import asyncio
from collections.abc import AsyncIterator
from threading import Barrier, Thread
from typing import Annotated

import pytest
from dependency_injector import containers, providers
from dependency_injector.ext.starlette import Lifespan
from dependency_injector.wiring import Closing, Provide, inject
from fastapi import Depends, FastAPI, HTTPException
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


class LocalSessions(containers.DeclarativeContainer):
    session = providers.ContextLocalResource(open_session)


@inject
async def wait(
    both: asyncio.Barrier, session: object = Closing[Provide[LocalSessions.session]]
) -> object:
    await both.wait()
    return session


def test_a_context_local_resource_is_each_calls_own() -> None:
    async def work() -> list[object]:
        both = asyncio.Barrier(2)
        return await asyncio.gather(wait(both), wait(both))

    container = LocalSessions()
    container.wire(modules=[__name__])
    try:
        first, second = asyncio.run(work())
    finally:
        container.unwire()
    assert first is not second


async def keep(log: list[str], what: str, *needed: str) -> AsyncIterator[str]:
    log.append(f"open the {what}")
    yield what
    log.append(f"close the {what}")


class Shop(containers.DeclarativeContainer):
    __self__ = providers.Self()
    lifespan = providers.Singleton(Lifespan, __self__)
    log = providers.Object(list[str]())
    pool = providers.Resource(keep, log, "pool")
    session = providers.ContextLocalResource(keep, log, "session", pool)


@inject
async def use(session: Annotated[str, Depends(Closing[Provide[Shop.session]])]) -> None: ...


def test_closing_also_closes_what_the_resource_is_made_from() -> None:
    container = Shop()
    container.wire(modules=[__name__])
    app = FastAPI(lifespan=container.lifespan())
    app.get("/")(use)
    try:
        with TestClient(app) as client:
            client.get("/")
            assert container.log()[-2:] == ["close the session", "close the pool"]
    finally:
        container.unwire()


def test_configuration_comes_from_files_and_the_environment() -> None:
    assert {"from_yaml", "from_ini", "from_env"} <= set(dir(providers.Configuration))


def test_during_the_move_an_override_reaches_both() -> None:
    example = load("dependency_injector.during")
    settings = shop().Settings()
    settings.url = TEST_URL
    with example.container.settings.override(settings), TestClient(example.app) as client:
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
