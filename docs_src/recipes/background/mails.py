from collections.abc import AsyncIterator
from typing import Annotated

from fastapi_lifespan_deps import Depends


class Outbox:
    """Stands for the connection to your mail server."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[str] = []

    async def send(self, address: str) -> None:
        if not self.is_open:
            raise RuntimeError("the outbox is closed")
        if "@" not in address:
            raise ValueError(f"{address} is no address")
        self.sent.append(address)


async def get_outbox() -> AsyncIterator[Outbox]:
    outbox = Outbox()
    yield outbox
    outbox.is_open = False


OutboxDep = Annotated[Outbox, Depends(get_outbox, scope="lifespan")]


async def send_mail(address: str, outbox: OutboxDep) -> None:
    await outbox.send(address)


async def send_report(outbox: OutboxDep) -> None:
    await outbox.send("boss@example.com")
