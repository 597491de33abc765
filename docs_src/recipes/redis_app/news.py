import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastapi import WebSocket
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .main import RedisDep


class News:
    """What is published on one channel, for as many as listen in this process."""

    def __init__(self) -> None:
        self._listeners: set[MemoryObjectSendStream[str]] = set()

    @contextmanager
    def listen(self) -> Iterator[MemoryObjectReceiveStream[str]]:
        send, receive = anyio.create_memory_object_stream[str](100)
        self._listeners.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._listeners.discard(send)

    async def follow(self, redis: Redis) -> None:
        while True:
            try:
                async with redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe("news")
                    async for message in channel.listen():
                        self._tell(message["data"])
            except RedisError:
                logging.exception("no news for now")
                await anyio.sleep(1)

    def _tell(self, text: str) -> None:
        for listener in self._listeners:
            try:
                listener.send_nowait(text)
            except anyio.WouldBlock:
                logging.warning("somebody is too slow for the news")


async def get_news(redis: RedisDep) -> AsyncIterator[News]:
    news = News()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(news.follow, redis)
        yield news
        tasks.cancel_scope.cancel()


NewsDep = Annotated[News, Depends(get_news, scope="lifespan")]

app = LifespanFastAPI()


@app.post("/news")
async def publish(text: str, redis: RedisDep) -> int:
    listening: int = await redis.publish("news", text)
    return listening


@app.websocket("/news")
async def read_news(websocket: WebSocket, news: NewsDep) -> None:
    async def send(texts: MemoryObjectReceiveStream[str]) -> None:
        async for text in texts:
            await websocket.send_text(text)

    await websocket.accept()
    with news.listen() as texts:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, texts)
            async for _ in websocket.iter_text():
                pass  # until the client goes, or the server stops
            tasks.cancel_scope.cancel()
