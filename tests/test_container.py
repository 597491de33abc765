"""Clauses 9, 10 and 14: looking values up in the container that a request is given."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, cast

import anyio
import anyio.from_thread
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    LifespanNotRunning,
    UninitializedLifespanDependency,
    View,
    enable_lifespan_scope,
    get_container,
)
from fastapi_lifespan_deps.serve.routing import LifespanRouter
from tests.clients import Gate, Thing, provider, running
from tests.recording import app_with

Container = Annotated[LifespanContainer, Depends(get_container)]


class Settings:
    pass


async def get_pool(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Thing]:
    yield Thing("pool")


def get_name(pool: Annotated[Thing, Depends(get_pool, scope="lifespan")]) -> Iterator[str]:
    yield f"name of {pool}"


async def get_number() -> int:
    return 7


def get_unused() -> str:
    raise AssertionError("no route declares it")


def get_own() -> str:
    return "own"


class Seen:
    """What an endpoint was given, outside JSON."""

    container: LifespanContainer
    values: tuple[Any, ...]


def make_app(seen: Seen, kind: type[FastAPI] = LifespanFastAPI) -> FastAPI:
    app = kind()

    @app.get("/")
    async def read(
        container: Container,
        name: Annotated[str, Depends(get_name, scope="lifespan")],
        number: Annotated[int, Depends(get_number, scope="lifespan")],
        own: Annotated[str, Depends(get_own, scope="lifespan", use_cache=False)],
    ) -> None:
        seen.container, seen.values = container, (name, number)

    @app.websocket("/socket")
    async def talk(websocket: WebSocket, container: Container) -> None:
        await websocket.accept()
        await websocket.send_text(container[get_name])
        await websocket.close()

    return app


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_values_are_found_by_their_provider(seen: Seen) -> None:
    with TestClient(make_app(seen)) as client:
        client.get("/")
        container = seen.container
        assert (container[get_name], container[get_number]) == seen.values
        assert container[get_name] is seen.values[0]
        assert isinstance(container[Settings], Settings)
        assert container[get_pool].name == "pool"
        for provider in (get_name, get_number, get_pool, Settings):
            assert provider in container
            assert container.get(provider) is container[provider]
            assert container.get(provider, "default") is container[provider]
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "name of pool"


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        (get_unused, "nothing asked for it when the application started"),
        (get_own, "it has use_cache=False wherever it is declared"),
    ],
)
def test_what_is_shared_by_nobody_is_not_there(seen: Seen, provider: Any, problem: str) -> None:
    """Nobody declares the one; every place of the other has an instance of its own."""
    with TestClient(make_app(seen)) as client:
        client.get("/")
        assert provider not in seen.container
        assert seen.container.get(provider) is None
        assert seen.container.get(provider, "default") == "default"
        with pytest.raises(UninitializedLifespanDependency, match=problem) as caught:
            seen.container[provider]
        assert caught.value.provider is provider


@pytest.mark.parametrize(
    ("provider", "is_type"),
    [
        (Thing, True),
        (Annotated[Thing, Depends(get_pool, scope="lifespan")], True),
        (get_unused, False),
    ],
)
def test_a_type_finds_no_value_and_the_message_says_why(
    seen: Seen, provider: Any, is_type: bool
) -> None:
    with TestClient(make_app(seen)) as client:
        client.get("/")
        with pytest.raises(UninitializedLifespanDependency) as caught:
            seen.container[provider]
        assert ("by its provider" in str(caught.value)) is is_type


def test_anything_hashable_may_be_asked_for(seen: Seen) -> None:
    with TestClient(make_app(seen)) as client:
        client.get("/")
        assert "pool" not in seen.container
        assert None not in seen.container


def test_an_override_is_found_by_what_it_replaces(seen: Seen) -> None:
    app = make_app(seen)

    def fake() -> Thing:
        return Thing("fake")

    app.dependency_overrides[get_pool] = fake
    with TestClient(app) as client:
        client.get("/")
        assert seen.container[get_pool].name == "fake"
        assert seen.container[get_name] == "name of fake"
        assert fake not in seen.container


def test_a_failed_override_is_there_but_raises(seen: Seen) -> None:
    app = make_app(seen)

    def fails() -> Thing:
        raise ValueError("no pool")

    @app.get("/only-container")
    async def read(container: Container) -> None:
        seen.container = container

    with TestClient(app) as client:
        app.dependency_overrides[get_pool] = fails
        client.get("/only-container")
        assert get_name in seen.container
        assert seen.container[get_number] == 7
        for provider in (get_pool, get_name):
            with pytest.raises(UninitializedLifespanDependency, match="it failed to start"):
                seen.container[provider]
            with pytest.raises(UninitializedLifespanDependency, match="it failed to start"):
                seen.container.get(provider, "default")


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
def test_a_mounted_application_sees_its_own_overrides(kind: type[FastAPI]) -> None:
    above, below = Seen(), Seen()
    parent, child = make_app(above), make_app(below, kind)
    parent.mount("/child", child)
    child.dependency_overrides[get_pool] = lambda: Thing("of the child")
    with TestClient(parent) as client:
        client.get("/")
        client.get("/child/")
        assert above.container[get_name] == "name of pool"
        assert below.container[get_name] == "name of of the child"
        assert above.container[get_number] is below.container[get_number]
        with client.websocket_connect("/child/socket") as socket:
            assert socket.receive_text() == "name of of the child"


def test_a_mounted_application_does_not_see_what_only_its_parent_declares() -> None:
    seen = Seen()
    parent, child = make_app(Seen()), LifespanFastAPI()

    @child.get("/")
    async def read(
        container: Container, number: Annotated[int, Depends(get_number, scope="lifespan")]
    ) -> None:
        seen.container = container

    parent.mount("/child", child)
    with TestClient(parent) as client:
        client.get("/child/")
        assert get_number in seen.container
        assert get_pool not in seen.container


@pytest.mark.anyio
async def test_a_container_keeps_the_view_of_its_request(seen: Seen) -> None:
    app, gate = make_app(seen), Gate()
    found: list[str] = []

    @app.get("/held")
    async def read(container: Container) -> None:
        await gate.wait()
        found.append(container[get_name])

    async with running(app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get, "/held")
        await gate.hold()
        app.dependency_overrides[get_pool] = lambda: Thing("fake")
        await client.get("/")
        assert seen.container[get_name] == "name of fake"
        gate.open()
    assert found == ["name of pool"]


def test_after_the_run_a_container_gives_nothing(seen: Seen) -> None:
    with TestClient(make_app(seen)) as client:
        client.get("/")
    with pytest.raises(UninitializedLifespanDependency, match="it has been stopped"):
        seen.container[get_name]
    with pytest.raises(UninitializedLifespanDependency):
        seen.container.get(get_name, "default")


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
def test_without_a_run_there_is_no_container(seen: Seen, kind: type[FastAPI]) -> None:
    with pytest.raises(UninitializedLifespanDependency) as caught:
        TestClient(make_app(seen, kind)).get("/")
    assert caught.value.provider is get_container


def test_an_application_without_lifespan_dependencies_has_no_container() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(container: Container) -> None: ...

    with TestClient(app) as client, pytest.raises(UninitializedLifespanDependency) as caught:
        client.get("/")
    assert "event loop" not in str(caught.value)


def test_the_container_may_be_overridden_itself(seen: Seen) -> None:
    app = make_app(seen)
    app.dependency_overrides[get_container] = lambda: {get_name: "fake"}
    with TestClient(app) as client, client.websocket_connect("/socket") as socket:
        assert socket.receive_text() == "fake"


def test_the_running_container_belongs_to_an_event_loop() -> None:
    app = app_with(provider("value", []))
    with pytest.raises(LifespanNotRunning, match="the application is not running"):
        _ = app.lifespan_container
    with TestClient(app):
        with pytest.raises(LifespanNotRunning, match="another event loop"):
            _ = app.lifespan_container  # here is none at all

        async def ask() -> None:
            with pytest.raises(LifespanNotRunning, match="another event loop"):
                _ = app.lifespan_container

        anyio.run(ask, backend="asyncio")
        anyio.run(ask, backend="trio")
    with pytest.raises(LifespanNotRunning, match="the application is not running"):
        _ = app.lifespan_container


@pytest.mark.anyio
async def test_the_running_container_of_the_latest_run_here() -> None:
    get_value = provider("value", [])
    app = enable_lifespan_scope(FastAPI())

    @app.get("/")
    async def read(value: Annotated[Thing, Depends(get_value, scope="lifespan")]) -> None: ...

    router = cast(LifespanRouter, app.router)
    async with app.router.lifespan_context(app):
        first = router.lifespan_container[get_value]
        async with app.router.lifespan_context(app):
            assert router.lifespan_container[get_value] is not first
        assert router.lifespan_container[get_value] is first


# --- Other threads, and other event loops


def ask_in_another_loop(container: View, step: str) -> Any:
    """As `asyncio.run` in a thread, which a `def` endpoint may think of."""

    async def ask() -> Any:
        if step == "look up":
            return container[get_pool]
        if step == "contains":
            return get_pool in container
        return await container.refresh(get_pool)

    return asyncio.run(ask())


@pytest.mark.parametrize("step", ["look up", "contains", "refresh"])
@pytest.mark.parametrize("whose", ["of a request", "of the application"])
@pytest.mark.anyio
async def test_clause_10_in_another_event_loop_it_says_at_once_where_to_ask(
    step: str, whose: str
) -> None:
    app = LifespanFastAPI()
    found: list[View] = []

    @app.get("/")
    def read(
        pool: Annotated[Any, Depends(get_pool, scope="lifespan")],
        container: Annotated[LifespanContainer, Depends(get_container)],
    ) -> str:
        with pytest.raises(LifespanNotRunning, match="in another event loop") as raised:
            ask_in_another_loop(container if whose == "of a request" else found[0], step)
        return str(raised.value)

    async with running(app) as client:
        found.append(app.lifespan_container)
        with anyio.fail_after(20):
            assert (
                "anyio.from_thread.run(container.refresh, provider)" in (await client.get("/")).text
            )


@pytest.mark.anyio
async def test_in_a_thread_values_are_looked_up_and_a_refresh_is_asked_for_in_the_loop() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        pool: Annotated[Any, Depends(get_pool, scope="lifespan")],
        container: Annotated[LifespanContainer, Depends(get_container)],
    ) -> list[bool]:
        before = container[get_pool]
        draining = anyio.from_thread.run(container.refresh, get_pool)
        with pytest.raises(LifespanNotRunning, match="in another event loop"):
            asyncio.run(draining.wait())
        return [before is pool, container[get_pool] is pool, get_pool in container]

    async with running(app) as client:
        assert (await client.get("/")).json() == [True, False, True]


@pytest.mark.anyio
async def test_a_container_cannot_be_asked_for_in_another_loop() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(request: Request, pool: Annotated[Any, Depends(get_pool, scope="lifespan")]) -> None:
        with pytest.raises(LifespanNotRunning, match="in another event loop"):
            asyncio.run(get_container(request))

    async with running(app) as client:
        assert (await client.get("/")).status_code == 200
