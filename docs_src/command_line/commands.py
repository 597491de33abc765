import sqlite3
from pathlib import Path

import typer

from fastapi_lifespan_deps import LifespanContainer

from .app import ClientDep, ModelDep, SessionDep, app

cli = typer.Typer()
container = LifespanContainer.for_app(app)


@cli.command()
def status() -> None:
    """Say where the application is."""
    print("https://example.com")


@cli.command()
@container.command
def add_user(name: str, session: SessionDep, *, quiet: bool = False) -> None:
    """Add a user."""
    try:
        session.execute("INSERT INTO users VALUES (?)", [name])
    except sqlite3.IntegrityError:
        print(f"{name} is there already")
        raise typer.Exit(3) from None
    if not quiet:
        print(f"added {name}")


@cli.command()
@container.command
def load_users(path: Path, session: SessionDep, model: ModelDep) -> None:
    """Add the users of a file, all of them or none."""
    with path.open() as lines:
        for name in map(str.strip, lines):
            if model.is_spam(name):
                raise ValueError(f"{name!r} is no user")
            session.execute("INSERT INTO users VALUES (?)", [name])
            print(f"added {name}", flush=True)


@cli.command()
@container.command
async def fetch_users(url: str, session: SessionDep, client: ClientDep) -> None:
    """Add the users that another application lists, all of them or none."""
    async with client.stream("GET", url) as response:
        async for name in response.raise_for_status().aiter_lines():
            session.execute("INSERT INTO users VALUES (?)", [name])
            print(f"added {name}", flush=True)


if __name__ == "__main__":
    cli()
