import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import anyio
from temporalio import activity

from fastapi_lifespan_deps import Depends, LifespanContainer


class Model:
    def classify(self, text: str) -> str:
        return "invoice" if "total" in text else "letter"


def load_model() -> Iterator[Model]:
    print("model loaded", flush=True)  # takes a minute, and a gigabyte
    yield Model()
    print("model released", flush=True)


class Archive:
    """Stands for the client of the service that has your documents."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def names(self, project: str) -> AsyncIterator[str]:
        async for path in anyio.Path(self.root, project).iterdir():
            yield f"{project}/{path.name}"

    def read(self, name: str) -> str:
        return (self.root / name).read_text()


async def open_archive() -> AsyncIterator[Archive]:
    yield Archive(Path(os.environ["ARCHIVE"]))


def get_database() -> str:
    url = os.environ["DATABASE"]
    with closing(sqlite3.connect(url)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS labels (name, label, attempt)")
    return url


ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]
ArchiveDep = Annotated[Archive, Depends(open_archive, scope="lifespan")]
DatabaseDep = Annotated[str, Depends(get_database, scope="lifespan")]


def get_session(database: DatabaseDep) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database, timeout=1)) as session:
        yield session
        session.commit()


def get_attempt() -> int:
    return activity.info().attempt


SessionDep = Annotated[sqlite3.Connection, Depends(get_session)]
AttemptDep = Annotated[int, Depends(get_attempt)]

container = LifespanContainer()


@activity.defn
@container.inject
async def list_documents(project: str, archive: ArchiveDep) -> list[str]:
    found: list[str] = []
    async for name in archive.names(project):
        found.append(name)
        activity.heartbeat(len(found))
    return sorted(found)


@activity.defn
@container.inject
def classify(
    name: str, archive: ArchiveDep, model: ModelDep, session: SessionDep, attempt: AttemptDep
) -> str:
    label = model.classify(archive.read(name))
    session.execute("INSERT INTO labels VALUES (?, ?, ?)", (name, label, attempt))
    return label
