import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanContainer

from .app import SessionDep, app

container = LifespanContainer.for_app(app)


def take_turn() -> Iterator[None]:
    with Path(os.environ["LOCK"]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


TurnDep = Annotated[None, Depends(take_turn, scope="lifespan")]


def remove_users(path: Path, turn: TurnDep, session: SessionDep) -> None:
    with path.open() as lines:
        for name in map(str.strip, lines):
            session.execute("DELETE FROM users WHERE name = ?", [name])
            print(f"removed {name}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        container.run(remove_users, Path(sys.argv[1]))
    except BlockingIOError:
        sys.exit("another one runs")
