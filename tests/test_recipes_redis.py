"""docs/recipes/redis.md: redis-py on a real Redis that goes and comes."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("redis")
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, MaxConnectionsError

from docs_src.recipes.redis_app import main, news, test_visits
from tests.clients import PATIENCE, Patience, running
from tests.processes import ServerProcess
from tests.services import free_port, redis_server

pytestmark = [pytest.mark.server, pytest.mark.anyio]

client = test_visits.client
test_visits_are_counted = pytest.mark.usefixtures("url")(test_visits.test_visits_are_counted)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REDIS_URL", server)
    monkeypatch.setenv("TEST_REDIS_URL", f"{server}/1")
    return server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # redis-py's


async def test_the_client_is_shared_and_closed(url: str) -> None:
    async with Redis.from_url(url) as other, running(main.app) as client:
        before = len(await other.client_list())
        for visit in (1, 2, 3):
            assert (await client.post("/visits/page")).json() == visit
        assert await other.ttl("visits:page") == 86_400
        assert len(await other.client_list()) == before  # the ping's connection did it all
        redis = main.app.lifespan_container[main.get_redis]
        assert len(redis.connection_pool._available_connections) == 1
    async with Redis.from_url(url) as other:
        with anyio.fail_after(PATIENCE):
            while len(await other.client_list()) > 1:
                await anyio.lowlevel.checkpoint()


async def test_without_redis_there_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError):
        async with running(main.app):
            raise AssertionError("started")


async def test_redis_goes_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        port = free_port()
        url = stack.enter_context(redis_server(tmp_path, port))
        monkeypatch.setenv("REDIS_URL", url)
        async with running(main.app) as client:
            assert (await client.post("/visits/page")).json() == 1
            stack.close()
            gone = await client.post("/visits/page")
            assert (gone.status_code, gone.headers["Retry-After"]) == (503, "1")
            assert (await client.get("/readyz")).status_code == 200
            report = await main.app.lifespan_container.check_health()
            assert report.status == "fail"
            with redis_server(tmp_path, port):
                assert (await client.post("/visits/page")).json() == 1


async def test_a_pool_that_is_used_up_says_so_at_once(url: str) -> None:
    async with Redis.from_url(url, max_connections=1) as redis, redis.pubsub() as channel:
        await channel.subscribe("news")
        with pytest.raises(MaxConnectionsError):
            await redis.ping()


def test_news_reach_all(url: str) -> None:
    with (
        TestClient(news.app) as client,
        client.websocket_connect("/news") as first,
        client.websocket_connect("/news") as second,
    ):
        subscribed(client)
        # One connection for both.
        assert client.post("/news", params={"text": "rain"}).json() == 1
        for listener in (first, second):
            while (text := listener.receive_text()) != "rain":
                assert text == ""  # of those that found out


def subscribed(client: TestClient) -> None:
    """Publish until somebody listens; who is there then hears of it."""
    patience = Patience()
    while not client.post("/news", params={"text": ""}).json():
        patience.look(None)


async def test_news_go_on_when_redis_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with ExitStack() as stack, caplog.at_level(logging.ERROR):
        monkeypatch.setenv("REDIS_URL", stack.enter_context(redis_server(tmp_path, port)))
        async with running(news.app) as client:
            board = news.app.lifespan_container[news.get_news]
            with board.listen() as texts, anyio.fail_after(PATIENCE):
                while not (await client.post("/news", params={"text": "rain"})).json():
                    await anyio.lowlevel.checkpoint()
                assert await texts.receive() == "rain"
                stack.close()
                while "no news for now" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
                stack.enter_context(redis_server(tmp_path, port))
                while not (await client.post("/news", params={"text": "sun"})).json():
                    await anyio.lowlevel.checkpoint()
                assert await texts.receive() == "sun"


def test_a_server_stops_though_somebody_listens(url: str) -> None:
    from websockets.sync.client import connect

    command = ["-W", "error", "-m", "uvicorn", "docs_src.recipes.redis_app.news:app", "--port", "0"]
    with ServerProcess(command, REDIS_URL=url) as server:
        port = server.read_until(r"running on http://127.0.0.1:(\d+)")
        with connect(f"ws://127.0.0.1:{port}/news"):
            server.process.terminate()
            server.wait()
        assert "Application shutdown complete" in server.output
