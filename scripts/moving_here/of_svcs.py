"""What the page on svcs says of that library. scripts/moving runs it."""

import logging
from collections.abc import Iterator

import pytest
import svcs
from fastapi import HTTPException
from fastapi.testclient import TestClient

from tests.moving import TEST_URL, failing, load, log, shop, with_failing_commit


def test_values_are_there_before_the_first_request() -> None:
    with TestClient(load("svcs.before").app):
        assert log() == ["open the pool"]


@pytest.mark.parametrize("error", [None, HTTPException(404)])
def test_an_error_reaches_the_session_if_it_is_not_suppressed(error: Exception | None) -> None:
    lines = failing("svcs.before", error)
    assert lines == ["open the pool", "begin", "roll back", "close the pool"]


def test_an_error_is_suppressed_by_default() -> None:
    registry = svcs.Registry()
    seen = []

    def get_number() -> Iterator[int]:
        try:
            yield 1
        except ValueError:
            seen.append("error")
            raise
        seen.append("no error")

    registry.register_factory(int, get_number)
    with pytest.raises(ValueError), svcs.Container(registry) as container:
        container.get(int)
        raise ValueError
    assert seen == ["no error"]


def test_a_failing_clean_up_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert with_failing_commit("svcs.before") == 200
    assert "clean up failed" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_value_that_is_registered_while_serving_holds_for_the_next_request() -> None:
    app = load("svcs.before").app
    with TestClient(app) as client:
        registry = svcs.fastapi.get_registry(client)
        registry.register_value(shop().Pool, shop().Pool("new"))
        assert client.get("/database").json() == "new"
        assert "close the pool" not in log()


def test_each_start_makes_its_own() -> None:
    app = load("svcs.before").app
    for _ in range(2):
        with TestClient(app) as client:
            client.get("/users/1")
    assert log() == ["open the pool", "begin", "commit", "close the pool"] * 2


def test_nothing_is_served_without_a_start() -> None:
    client = TestClient(load("svcs.before").app, raise_server_exceptions=False)
    assert client.get("/users/1").status_code == 500


def test_what_is_missing_is_found_by_the_request() -> None:
    services = svcs.Container(svcs.Registry())
    with services, pytest.raises(svcs.exceptions.ServiceNotFoundError):
        services.get(int)


def test_a_service_is_made_when_it_is_asked_for() -> None:
    made = []
    registry = svcs.Registry()
    registry.register_factory(int, lambda: made.append(1) or 1)
    with svcs.Container(registry) as container:
        assert made == []
        container.get(int)
        container.get(int)
    assert made == [1]


def test_a_service_may_have_a_ping() -> None:
    pinged = []
    registry = svcs.Registry()
    registry.register_value(int, 1, ping=pinged.append)
    with svcs.Container(registry) as container:
        for ping in container.get_pings():
            ping.ping()
    assert pinged == [1]


def test_during_the_move_an_override_reaches_both() -> None:
    example = load("svcs.during")
    example.app.dependency_overrides[example.get_pool] = lambda: shop().Pool(TEST_URL)
    with TestClient(example.app) as client:
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
