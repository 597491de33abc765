"""The load: clients that send requests, read streams and talk, and what each of them sees.

Whoever has been told to stop ends what it has begun. What a client sees is one of
    complete    all of the answer, with status 200
    failed      all of an answer with another status
    broken      a part of an answer
    unanswered  not one byte, on a connection that was closed or reset
    refused     nobody listens, or a proxy has nobody to pass it on to: 404
    closed      a WebSocket was closed by the server, in order: with a close frame
"""

import itertools
import json
import os
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from .waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Seen:
    """What a client has seen of a request."""

    id: str
    kind: str  # request, stream, websocket
    outcome: str
    detail: str = ""
    pid: int = 0


def ask(connection: HTTPConnection, method: str, path: str) -> tuple[int, Any]:
    """The status, and the answer; what it raises is an `OSError` or an `HTTPException`."""
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    is_json = "json" in response.headers.get("content-type", "")
    return response.status, json.loads(body) if is_json else body.decode()


def _failed(status: int) -> str:
    return "refused" if status == 404 else "failed"


KINDS = ("request", "stream", "websocket")
_ids = itertools.count(1)


@dataclass
class Load:
    """Clients on one port."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    _flowing: tuple[str, ...] = ()
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))
    _clients: list[Future[None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        self._stop.set()
        self._threads.shutdown(wait=kind is None)
        if kind is None:
            self.stop()

    def stop(self) -> None:
        """Let the clients end, each after what it has begun."""
        self._stop.set()
        for client in self._clients:
            client.result(PATIENCE)

    def flow(self, requests: int = 4, streams: int = 1, websockets: int = 1) -> None:
        """Clients of each kind, one request after the other."""
        self._flowing = KINDS
        for number in range(requests):
            self._start(self._send_requests, number % 2 == 0)
        for _ in range(streams):
            self._start(self._repeat, self._read_stream, "/stream?lines=5")
        for _ in range(websockets):
            self._start(self._repeat, self._talk, 5)

    def hold(self, each: int) -> None:
        """Requests, streams and WebSockets that are long: to the release, or to `stop`."""
        for _ in range(each):
            self._hold(self._read_answer, "/wait")
            self._hold(self._read_stream, "/stream")
            self._hold(self._talk, 0)

    def wait_for_more(self, what: str, number: int = 10) -> None:
        """Wait until so many more requests are complete, and one of each kind that flows."""
        before = {kind: self.complete(kind) for kind in KINDS}

        def is_more() -> bool:
            more = {kind: self.complete(kind) - before[kind] for kind in KINDS}
            return sum(more.values()) >= number and all(more[kind] for kind in self._flowing)

        wait_until(f"{number} complete answers {what}, some of each kind", is_more)

    def complete(self, kind: str) -> int:
        return sum(seen.outcome == "complete" and seen.kind == kind for seen in list(self.seen))

    def counts(self) -> Counter[str]:
        return Counter(f"{seen.kind} {seen.outcome}" for seen in self.seen)

    # Clients

    def _start(self, client: Any, *arguments: Any) -> None:
        self._clients.append(self._threads.submit(client, *arguments))

    def _hold(self, client: Any, argument: Any) -> None:
        self.held.append(id := self._id())
        self._start(lambda: self.seen.append(client(id, argument)))

    def _repeat(self, client: Any, argument: Any) -> None:
        while not self._stop.is_set():
            seen = client(self._id(), argument)
            self.seen.append(seen)
            if seen.outcome == "refused":
                self._stop.wait(0.05)  # perhaps it is about to listen again

    def _send_requests(self, keep_alive: bool) -> None:
        connection = self._connection()
        while not self._stop.is_set():
            seen = self._ask(connection, self._id(), "/")
            self.seen.append(seen)
            if seen.outcome == "refused":
                self._stop.wait(0.05)
            if not keep_alive or seen.outcome != "complete":
                connection.close()
        connection.close()

    def _id(self) -> str:
        return f"{os.getpid()}-{next(_ids)}"

    def _connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def _ask(self, connection: HTTPConnection, id: str, path: str) -> Seen:
        """One answer, which has a length: it is whole, or it is an error."""
        seen = partial(Seen, id, "request")
        try:
            status, answer = ask(connection, "GET", f"{path}?id={id}")
        except ConnectionRefusedError:
            return seen("refused")
        except ConnectionError as error:
            return seen("unanswered", repr(error))
        except HTTPException as error:
            return seen("broken", repr(error))
        if status != 200:
            return seen(_failed(status), f"{status} {answer}")
        return seen("complete", answer["model"], answer["pid"])

    def _read_answer(self, id: str, path: str) -> Seen:
        connection = self._connection()
        try:
            return self._ask(connection, id, path)
        finally:
            connection.close()

    def _read_stream(self, id: str, path: str) -> Seen:
        connection = self._connection()
        seen = partial(Seen, id, "stream")
        lines: list[bytes] = []
        try:
            connection.request("GET", f"{path}{'&' if '?' in path else '?'}id={id}")
            response = connection.getresponse()
            lines.extend(response)
        except ConnectionRefusedError:
            return seen("refused")
        except (ConnectionError, HTTPException) as error:
            return seen("broken" if lines else "unanswered", repr(error))
        finally:
            connection.close()
        if response.status != 200:
            return seen(_failed(response.status), f"{response.status} {b''.join(lines)!r}")
        is_whole = lines[-1:] == [b"end\n"]
        return seen("complete" if is_whole else "broken", f"{len(lines)} lines")

    def _talk(self, id: str, messages: int) -> Seen:
        """So many messages and their echo; with 0, as many as there are until somebody stops."""
        seen, pid = partial(Seen, id, "websocket"), 0
        try:
            with connect(
                f"ws://127.0.0.1:{self.port}/talk?id={id}", open_timeout=PATIENCE, proxy=None
            ) as websocket:
                pid = int(websocket.recv(PATIENCE))
                said, is_last = 0, False
                while not is_last:
                    # one more after somebody has stopped: it shows whether the server has closed
                    is_last = said + 1 == messages if messages else self._stop.is_set()
                    websocket.send(f"{said}")
                    if websocket.recv(PATIENCE) != f"{said}":
                        return seen("broken", f"message {said} has no echo", pid)
                    said += 1
                    if not is_last:
                        self._stop.wait(0.02)
            return seen("complete", f"{said} messages", pid)
        except ConnectionRefusedError:
            return seen("refused")
        except ConnectionClosed as error:
            if error.rcvd:
                return seen("closed", f"{error.rcvd.code}", pid)
            # also raised if the connection is reset before it was asked to become a WebSocket
            return seen("broken" if pid else "unanswered", "no close frame", pid)
        except (ConnectionError, EOFError, InvalidMessage) as error:
            return seen("unanswered", repr(error))
        except InvalidStatus as error:
            return seen(_failed(error.response.status_code), repr(error))
        except InvalidHandshake as error:
            return seen("failed", repr(error))
