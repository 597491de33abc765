from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import BackgroundTasks

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Mailer:
    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[str] = []

    async def send(self, address: str) -> None:
        if not self.is_open:
            raise RuntimeError("the mailer is closed")
        self.sent.append(address)


async def get_mailer() -> AsyncIterator[Mailer]:
    mailer = Mailer()
    yield mailer
    mailer.is_open = False


MailerDep = Annotated[Mailer, Depends(get_mailer, scope="lifespan")]

app = LifespanFastAPI()


@app.post("/invitations")
async def invite(address: str, tasks: BackgroundTasks, mailer: MailerDep) -> str:
    tasks.add_task(mailer.send, address)
    return "on its way"


@app.get("/sent")
async def read_sent(mailer: MailerDep) -> list[str]:
    return mailer.sent
