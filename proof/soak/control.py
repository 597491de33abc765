"""The connection by which a server process is told what to do, and says what came of it."""

import json
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from proof.waiting import PATIENCE, NeverCame

LONG = 2**24  # bytes in a line


class Control:
    """The connection by which a server process is told what to do."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._waiting: dict[int, tuple[anyio.Event, list[Any]]] = {}
        self._sending = anyio.Lock()
        self._number = 0

    async def listen(self) -> None:
        lines = BufferedByteReceiveStream(self._stream)
        while True:
            try:
                answer = json.loads(await lines.receive_until(b"\n", LONG))
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                raise NeverCame("the server process has ended") from None
            event, got = self._waiting.pop(answer["id"])
            got.append(answer)
            event.set()

    async def do(self, what: str, **facts: object) -> Any:
        """Let it do something, and wait for what came of it."""
        self._number += 1
        number = self._number
        event, got = self._waiting[number] = anyio.Event(), []
        async with self._sending:
            await self._stream.send(json.dumps([number, what, facts]).encode() + b"\n")
        try:
            with anyio.fail_after(PATIENCE):
                await event.wait()
        except TimeoutError:
            raise NeverCame(f"waited for the end of {what} {facts}, in vain") from None
        if "error" in got[0]:
            raise NeverCame(f"{what} {facts} failed: {got[0]['error']}")
        return got[0]["answer"]
