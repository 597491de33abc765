"""What the page on dishka says of that library. scripts/moving runs it."""

from importlib import import_module

import pytest
from dishka import Provider, Scope, make_async_container, provide
from dishka.exceptions import GraphMissingFactoryError
from dishka.integrations.fastapi import FastapiProvider
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient

from tests.moving import TEST_URL, failing, load, log, with_failing_commit


def test_it_starts_at_the_first_request() -> None:
    with TestClient(load("dishka.before").app):
        assert log() == []


def test_an_error_is_told_by_the_yield() -> None:
    assert failing("dishka.before") == ["open the pool", "begin", "roll back", "close the pool"]


def test_an_http_exception_is_not() -> None:
    lines = failing("dishka.before", HTTPException(404))
    assert lines == ["open the pool", "begin", "commit", "close the pool"]


def test_the_first_run_without_a_start_and_its_pool_is_never_closed() -> None:
    client = TestClient(load("dishka.before").app)
    assert client.get("/users/1").status_code == 200
    assert log() == ["open the pool", "begin", "commit"]


def test_what_is_missing_is_found_when_the_container_is_built() -> None:
    provider = Provider(scope=Scope.APP)
    provider.provide(load("dishka.before").Users)
    with pytest.raises(GraphMissingFactoryError):
        make_async_container(provider)


def test_what_lives_shorter_is_refused_when_the_container_is_built() -> None:
    class Reading(Provider):
        @provide(scope=Scope.APP)
        def get_path(self, request: Request) -> str:
            return request.url.path

    with pytest.raises(GraphMissingFactoryError):
        make_async_container(Reading(), FastapiProvider())


def test_a_scope_ends_after_the_response() -> None:
    assert with_failing_commit("dishka.before") == with_failing_commit("dishka.after") == 200


def test_there_are_scopes_within_a_request() -> None:
    names = [scope.name for scope in Scope]
    assert names == ["RUNTIME", "APP", "SESSION", "REQUEST", "ACTION", "STEP"]


def test_during_the_move_another_container_reaches_both() -> None:
    provider = load("dishka.before_test").TestProvider()
    example = import_module("docs_src.moving.dishka.during")
    example.app.state.dishka_container = make_async_container(example.ShopProvider(), provider)
    with TestClient(example.app) as client:
        assert client.get("/database").json() == TEST_URL
        assert client.get("/users/1").json() == f"user 1 of {TEST_URL}"
