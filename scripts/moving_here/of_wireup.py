"""What the page on wireup says of that library. scripts/moving runs it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from wireup import Injected, create_async_container, create_sync_container, injectable
from wireup.errors import WireupError
from wireup.integration.fastapi import request_factory, setup

from tests.moving import TEST_URL, URL, failing, load, log, shop, with_failing_commit


def test_it_starts_at_the_first_request() -> None:
    with TestClient(load("wireup.before").app):
        assert log() == []


@pytest.mark.parametrize("error", [None, HTTPException(404)])
def test_an_error_reaches_the_session(error: Exception | None) -> None:
    lines = failing("wireup.before", error)
    assert lines == ["open the pool", "begin", "roll back", "close the pool"]


def test_the_second_run_has_the_pool_that_was_closed() -> None:
    app = load("wireup.before").app
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/users/1").status_code == 200
    one = ["begin", "commit"]
    assert log() == ["open the pool", *one, "close the pool", *one]


def test_the_first_run_without_a_start_and_its_pool_is_never_closed() -> None:
    client = TestClient(load("wireup.before").app)
    assert client.get("/users/1").status_code == 200
    assert log() == ["open the pool", "begin", "commit"]


def test_a_singleton_that_takes_what_is_scoped_is_refused_when_the_container_is_built() -> None:
    before = load("wireup.before")

    @injectable
    def get_users(session: before.Session) -> before.Users:
        raise AssertionError

    with pytest.raises(WireupError):
        create_async_container(
            config=before.config, injectables=[before.get_pool, before.get_session, get_users]
        )


@pytest.mark.parametrize("is_made_first", [False, True])
def test_what_was_made_first_stays(is_made_first: bool) -> None:
    before = load("wireup.before")

    class Cache:
        def __init__(self, pool: before.Pool) -> None:
            self.pool = pool

    container = create_async_container(
        config=before.config, injectables=[before.get_pool, injectable(Cache)]
    )

    async def work() -> tuple[str, str, str]:
        if is_made_first:
            await container.get(Cache)
        with container.override({before.Pool: before.Pool("fake")}):
            during = await container.get(Cache)
        after = await container.get(Cache)
        return during.pool.url, after.pool.url, (await container.get(before.Pool)).url

    url = URL if is_made_first else "fake"
    assert asyncio.run(work()) == (url, url, URL)


def test_a_transient_is_made_each_time_and_qualifiers_tell_two_of_a_type_apart() -> None:
    before = load("wireup.before")

    @injectable(lifetime="transient", qualifier="one")
    def get_one() -> before.Pool:
        return before.Pool("one")

    @injectable(qualifier="two")
    def get_two() -> before.Pool:
        return before.Pool("two")

    container = create_sync_container(injectables=[get_one, get_two])
    with container.enter_scope() as scope:
        one, two = scope.get(before.Pool, "one"), scope.get(before.Pool, "two")
        assert (one.url, two.url) == ("one", "two")
        assert scope.get(before.Pool, "one") is not one
        assert scope.get(before.Pool, "two") is two


def test_a_scope_ends_before_the_response() -> None:
    assert with_failing_commit("wireup.before") == with_failing_commit("wireup.after") == 500


@pytest.mark.parametrize("is_around", [False, True])
def test_a_scope_in_middleware_mode_ends_after_the_response(is_around: bool) -> None:
    lines: list[str] = []

    @injectable(lifetime="scoped")
    async def get_path(request: Request) -> AsyncIterator[str]:
        yield request.url.path
        lines.append("the scope ends")

    async def read(path: Injected[str]) -> StreamingResponse:
        def body() -> Iterator[str]:
            lines.append("the response is sent")
            yield path

        return StreamingResponse(body())

    app = FastAPI()
    app.get("/", response_model=None)(read)
    container = create_async_container(injectables=[get_path, request_factory])
    setup(container, app, middleware_mode=is_around)
    with TestClient(app) as client:
        assert client.get("/").text == "/"
    in_order = ["the scope ends", "the response is sent"]
    assert lines == (in_order[::-1] if is_around else in_order)


def test_during_the_move_an_override_reaches_both() -> None:
    example = load("wireup.during")
    pool = shop().Pool(TEST_URL)
    with example.container.override({shop().Pool: pool}), TestClient(example.app) as client:
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
