"""Clause 2: runs are isolated, one after the other, at the same time, and of two applications."""

import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, cast

import anyio
import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)

pytestmark = pytest.mark.anyio

ENDED = r"is not running|has ended|has been stopped"


class Pool:
    """What each run makes anew."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True


class Counting:
    """An application that answers with the number of the pool that the request was given."""

    def __init__(self, **options: Any) -> None:
        self.pools: list[Pool] = []
        self.app = app = LifespanFastAPI(**options)

        @app.get("/")
        async def read(pool: Annotated[Pool, Depends(self.get_pool, scope="lifespan")]) -> int:
            assert pool.is_open
            return pool.number

        @app.websocket("/ws")
        async def watch(
            websocket: WebSocket, pool: Annotated[Pool, Depends(self.get_pool, scope="lifespan")]
        ) -> None:
            assert pool.is_open
            await websocket.accept()
            await websocket.send_json(pool.number)
            await websocket.close()

    async def get_pool(self) -> AsyncIterator[Pool]:
        pool = Pool(len(self.pools))
        self.pools.append(pool)
        yield pool
        pool.is_open = False

    @property
    def are_open(self) -> list[bool]:
        return [pool.is_open for pool in self.pools]


def transport_with_state(app: Any, state: Any) -> httpx.AsyncClient:
    """A client that passes the lifespan state on, as servers do."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": dict(state or {})}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url="http://test")


def plain_client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def number(client: TestClient) -> int:
    with client.websocket_connect("/ws") as websocket:
        over_websocket = websocket.receive_json()
    over_http = client.get("/").json()
    assert over_http == over_websocket
    return int(over_http)


def test_an_application_can_be_started_again_and_has_new_instances_then() -> None:
    counting = Counting()
    for run in range(3):
        with TestClient(counting.app) as client:
            assert number(client) == run
            assert counting.are_open == [*[False] * run, True]
    assert counting.are_open == [False] * 3
    with pytest.raises(UninitializedLifespanDependency, match="is not running"):
        TestClient(counting.app).get("/")


def test_an_application_can_be_started_again_after_a_failed_startup() -> None:
    fails = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if fails:
            raise OSError("not yet")
        yield

    counting = Counting(lifespan=lifespan)
    with pytest.raises(OSError, match="not yet"), TestClient(counting.app):
        pass
    fails = False
    with TestClient(counting.app) as client:
        assert number(client) == 1
    assert counting.are_open == [False, False]


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_clients_of_one_application_open_together_have_their_own_instances(
    first_out: int,
) -> None:
    counting = Counting()
    clients = [TestClient(counting.app) for _ in range(2)]
    for client in clients:
        client.__enter__()
    assert [number(client) for client in clients] == [0, 1]
    assert [number(client) for client in clients] == [0, 1]
    clients[first_out].__exit__()
    still_open = 1 - first_out
    assert number(clients[still_open]) == still_open
    assert counting.are_open[first_out] is False
    with pytest.raises(UninitializedLifespanDependency):
        clients[first_out].get("/")
    clients[still_open].__exit__()
    assert counting.are_open == [False, False]


def test_runs_that_start_and_serve_in_many_threads_at_once_do_not_meet() -> None:
    counting = Counting()
    barrier = threading.Barrier(4, timeout=10)
    numbers: list[set[int]] = []

    def run() -> None:
        barrier.wait()
        with TestClient(counting.app) as client:
            barrier.wait()
            numbers.append({client.get("/").json() for _ in range(5)})
            barrier.wait()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(numbers, key=min) == [{0}, {1}, {2}, {3}]
    assert counting.are_open == [False] * 4


@pytest.mark.parametrize("first_out", [0, 1])
async def test_two_runs_in_one_event_loop_are_told_apart_by_the_lifespan_state(
    first_out: int,
) -> None:
    counting = Counting()
    app = counting.app
    contexts = [app.router.lifespan_context(app) for _ in range(2)]
    states = [await context.__aenter__() for context in contexts]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(transport_with_state(app, state)) for state in states
        ]
        for expected, client in enumerate(clients):
            assert (await client.get("/")).json() == expected
        await contexts[first_out].__aexit__(None, None, None)
        still_open = 1 - first_out
        assert (await clients[still_open].get("/")).json() == still_open
        with pytest.raises(UninitializedLifespanDependency, match=ENDED):
            await clients[first_out].get("/")
        # Nor does an override, which would start something, wake the dead.
        app.dependency_overrides[counting.get_pool] = lambda: Pool(9)
        assert (await clients[still_open].get("/")).json() == 9
        with pytest.raises(UninitializedLifespanDependency, match=ENDED):
            await clients[first_out].get("/")
        await contexts[still_open].__aexit__(None, None, None)
        with pytest.raises(UninitializedLifespanDependency, match=ENDED):
            await clients[still_open].get("/")
    assert counting.are_open == [False, False]


async def test_without_a_lifespan_state_requests_go_to_the_latest_run() -> None:
    counting = Counting()
    app = counting.app
    async with plain_client(app) as client, app.router.lifespan_context(app):
        assert (await client.get("/")).json() == 0
        async with app.router.lifespan_context(app):
            assert (await client.get("/")).json() == 1
        assert (await client.get("/")).json() == 0


async def test_two_lifespan_managers_of_one_application() -> None:
    counting = Counting()
    async with (
        LifespanManager(counting.app) as first,
        LifespanManager(counting.app) as second,
        plain_client(first.app) as one,
        plain_client(second.app) as two,
    ):
        assert (await one.get("/")).json() == 0
        assert (await two.get("/")).json() == 1
    assert counting.are_open == [False, False]


async def test_two_runs_that_start_at_the_same_time_do_not_mix_in_a_wrapped_lifespan() -> None:
    """The runs take turns, so that each is in the middle of its startup when the other goes on."""
    counting = Counting()
    app = counting.app
    arrived: list[anyio.Event] = [anyio.Event(), anyio.Event()]
    given: dict[str, list[int]] = {}

    async def startup() -> None:
        here, there = arrived if not arrived[0].is_set() else arrived[::-1]
        here.set()
        await there.wait()

    @asynccontextmanager
    async def lifespan(
        app: FastAPI, pool: Annotated[Pool, Depends(counting.get_pool, scope="lifespan")]
    ) -> AsyncIterator[dict[str, int]]:
        yield {"given": pool.number}

    app.router.lifespan_context = cast(Any, lifespan)
    app.router.on_startup.append(startup)
    wrapped = app.router.lifespan_context

    @asynccontextmanager
    async def wrapper(app: Any) -> AsyncIterator[Any]:
        async with wrapped(app) as state:
            yield state

    app.router.lifespan_context = wrapper

    async def run(name: str) -> None:
        async with (
            app.router.lifespan_context(app) as found,
            transport_with_state(app, found) as client,
        ):
            state = dict(found or {})
            given[name] = [(await client.get("/")).json(), state["given"]]

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(run, "first")
            group.start_soon(run, "second")
    assert sorted(given.values()) == [[0, 0], [1, 1]]


def test_two_applications_never_share() -> None:
    pools: list[object] = []

    async def get_pool() -> object:
        pools.append(object())
        return pools[-1]

    def application() -> FastAPI:
        app = LifespanFastAPI()

        @app.get("/")
        async def read(pool: Annotated[object, Depends(get_pool, scope="lifespan")]) -> int:
            return pools.index(pool)

        return app

    first, second = application(), application()
    with TestClient(first) as one, TestClient(second) as two:
        assert [one.get("/").json(), two.get("/").json()] == [0, 1]
        second.dependency_overrides[get_pool] = object
        assert one.get("/").json() == 0
    assert len(pools) == 2


async def test_a_value_is_dropped_when_the_run_has_ended_while_the_application_lives_on() -> None:
    kept: list[weakref.ref[Pool]] = []

    async def get_pool() -> AsyncIterator[Pool]:
        pool = Pool(0)
        kept.append(weakref.ref(pool))
        yield pool

    app = LifespanFastAPI()

    @app.get("/")
    async def read(pool: Annotated[Pool, Depends(get_pool, scope="lifespan")]) -> int:
        return pool.number

    async with app.router.lifespan_context(app), plain_client(app) as client:
        assert (await client.get("/")).json() == 0
    gc.collect()
    assert kept[0]() is None


async def test_clause_10_a_request_that_outlives_the_run_is_told_that_it_has_ended() -> None:
    counting = Counting()
    app = counting.app
    arrived, go_on = anyio.Event(), anyio.Event()

    @app.get("/later")
    async def read_later(
        request: Request, container: Annotated[Any, Depends(get_container)]
    ) -> None:
        arrived.set()
        await go_on.wait()
        with pytest.raises(UninitializedLifespanDependency, match=ENDED):
            container[counting.get_pool]

    with anyio.fail_after(10):
        async with plain_client(app) as client, anyio.create_task_group() as group:
            async with app.router.lifespan_context(app):
                group.start_soon(client.get, "/later")
                await arrived.wait()
            go_on.set()


async def test_an_application_that_runs_by_itself_and_is_mounted_in_another_one() -> None:
    """A request belongs to the run of the application through which it came first."""
    inner, outer = Counting(), LifespanFastAPI()
    outer.mount("/inner", inner.app)
    async with AsyncExitStack() as stack:
        for app in (inner.app, outer):
            await stack.enter_async_context(app.router.lifespan_context(app))
        for app, path, number in ((inner.app, "/", 0), (outer, "/inner/", 1)):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.get(path)).json() == number


async def test_a_request_with_the_state_of_an_earlier_run_is_served_by_the_living_one() -> None:
    counting = Counting()
    async with LifespanManager(counting.app) as earlier:
        pass
    async with (
        counting.app.router.lifespan_context(counting.app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(earlier.app), base_url="http://test"
        ) as client,
    ):
        assert (await client.get("/")).json() == 1


async def test_a_route_that_a_provider_adds_is_not_silent() -> None:
    """There is no second look at the routes if no code of hooks or lifespans has run."""
    counting = Counting()
    app = counting.app

    async def get_plugin() -> None:
        @app.get("/plugin")
        async def read(
            pool: Annotated[Pool, Depends(counting.get_pool, scope="lifespan")],
            own: Annotated[Pool, Depends(lambda: Pool(7), scope="lifespan")],
        ) -> None:
            pass

    @app.get("/own", dependencies=[Depends(get_plugin, scope="lifespan")])
    async def own() -> None:
        pass

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with pytest.raises(UninitializedLifespanDependency, match="nothing asked for it"):
                await client.get("/plugin")
