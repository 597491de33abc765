"""A connection that sends the same request again and again."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httptools

from .requests import WrongAnswer


class Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered, until nobody has one left to send.

    It does no more than that, so that the server is what is busy, and not the client.
    """

    transport: asyncio.Transport
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def __init__(self, requests: Iterator[Any]) -> None:
        self.requests = requests  # of all connections
        self.done = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""

    def is_right(self, body: bytes) -> bool:
        """Take an answer. To be overridden."""
        return True

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self.transport = transport

    def send(self) -> None:
        if next(self.requests, None) is None:
            self.done.set_result(None)
            self.transport.close()
        else:
            self.body = b""
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status == 200 and self.is_right(self.body):
            self.send()
        else:
            self.done.set_exception(WrongAnswer(f"{status}, {self.body!r}"))
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed a connection"))
