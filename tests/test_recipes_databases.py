"""docs/recipes/databases.md: SQLAlchemy and asyncpg on a real PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks

pytest.importorskip("asyncpg")
pytest.importorskip("sqlalchemy")
import asyncpg
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from docs_src.recipes.databases import main, pool, rotating
from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    LifespanTimeout,
    lifespan_graph,
)
from tests.clients import PATIENCE, Gate, running
from tests.processes import ROOT
from tests.services import postgresql_server

pytestmark = [pytest.mark.server, pytest.mark.anyio]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # asyncpg's


@pytest.fixture
async def admin(server: str) -> AsyncIterator[Any]:
    """A connection beside those of the application."""
    connection = await asyncpg.connect(server)
    yield connection
    await connection.close()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    url = server.replace("postgresql:", "postgresql+asyncpg:")
    monkeypatch.setenv("DATABASE_URL", url)
    return url


async def connections(admin: Any) -> int:
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return count


async def no_connections(admin: Any) -> None:
    """Wait until the server has seen all others go."""
    with anyio.fail_after(PATIENCE):
        while await connections(admin):
            await anyio.lowlevel.checkpoint()


async def tables() -> AsyncEngine:
    engine = main.app.lifespan_container[main.get_engine]
    async with engine.begin() as connection:
        await connection.run_sync(main.Base.metadata.drop_all)
        await connection.run_sync(main.Base.metadata.create_all)
    return engine


async def test_a_session_commits_before_the_response(url: str, admin: Any) -> None:
    async with running(main.app) as client:
        await tables()
        user = (await client.post("/users", params={"name": "Ada"})).json()
        assert (await client.get(f"/users/{user}")).json() == "Ada"
        assert (await client.get("/users/0")).status_code == 404
        assert (await client.post("/users", params={"name": "R2D2"})).status_code == 422
        with pytest.raises(IntegrityError):
            await client.post("/users", params={"name": "Ada"})
        assert await admin.fetchval("SELECT count(*) FROM users") == 1
    await no_connections(admin)


async def test_a_commit_that_fails_fails_the_request(url: str, admin: Any) -> None:
    """A constraint that is checked at the commit is the judge of that."""
    async with running(main.app, raises=False) as client:
        await tables()
        await admin.execute("ALTER TABLE users DROP CONSTRAINT users_name_key")
        await admin.execute(
            "ALTER TABLE users ADD CONSTRAINT once UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
        )
        assert (await client.post("/users", params={"name": "Ada"})).status_code == 200
        assert (await client.post("/users", params={"name": "Ada"})).status_code == 500
        assert await admin.fetchval("SELECT count(*) FROM users") == 1


async def test_objects_can_be_read_after_the_commit(url: str, admin: Any) -> None:
    app, read = LifespanFastAPI(), []

    async def look(user: main.User) -> None:
        read.append((user.name, await admin.fetchval("SELECT name FROM users")))

    @app.post("/users")
    async def create_user(session: main.SessionDep, tasks: BackgroundTasks) -> None:
        session.add(user := main.User(name="Ada"))
        tasks.add_task(look, user)

    async with running(main.app):
        await tables()
    async with running(app) as client:
        await client.post("/users")
    assert read == [("Ada", "Ada")]


async def test_connections_that_the_server_has_ended_are_replaced(url: str, admin: Any) -> None:
    async with running(main.app) as client:
        await tables()
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        await no_connections(admin)
        assert (await client.get("/users/1")).status_code == 404


async def test_without_a_database_there_is_no_start(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = make_url(url).set(port=1)
    monkeypatch.setenv("DATABASE_URL", nowhere.render_as_string(hide_password=False))
    with pytest.raises(OSError, match="1"):
        async with running(main.app):
            raise AssertionError("started")


def test_the_tests_that_are_shown(url: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "docs_src/recipes/databases/test_users.py"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout


async def test_other_errors_of_the_database_stay_what_they_are(
    admin: Any, password_file: Path
) -> None:
    async def read_nothing(engine: rotating.EngineDep) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT * FROM nothing"))

    app = rotating.app
    app.get("/nothing")(read_nothing)
    async with running(app) as client:
        engine = app.lifespan_container[rotating.get_engine]
        with pytest.raises(ProgrammingError):
            await client.get("/nothing")
        assert app.lifespan_container[rotating.get_engine] is engine


async def test_asyncpg(server: str, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", server)
    async with running(pool.app) as client:
        assert await connections(admin) == 2
        assert (await client.get("/sum", params={"a": 2, "b": 3})).json() == 5
    await no_connections(admin)


async def test_a_connection_that_is_kept_holds_up_the_stop_for_a_time(
    server: str, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", server)
    limited = Depends(pool.get_pool, scope="lifespan", stop_timeout=0.1)
    with pytest.raises(LifespanTimeout):
        async with LifespanContainer(limited) as container:
            await container[pool.get_pool].acquire()
            assert await connections(admin) == 2
    await no_connections(admin)


# Credentials that change


async def test_the_password_of_asyncpg_may_be_a_function(admin: Any, password_file: Path) -> None:
    reader = os.environ["DATABASE_URL"].replace("+asyncpg", "")
    password = password_file.read_text
    async with asyncpg.create_pool(reader, password=password, min_size=1, max_size=2) as both:
        await rotate(admin, password_file)
        async with both.acquire(), both.acquire() as fresh:
            assert await fresh.fetchval("SELECT 1") == 1


async def test_an_unknown_role_is_refused_with_the_same_code(server: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError) as refusal:
        await asyncpg.connect(server, user="nobody")
    assert refusal.value.sqlstate == rotating.INVALID_PASSWORD


@pytest.fixture
async def password_file(
    url: str, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A role of its own, with the password `first`."""
    await admin.execute("DROP ROLE IF EXISTS reader")
    await admin.execute("CREATE ROLE reader LOGIN PASSWORD 'first'")
    file = tmp_path / "password"
    file.write_text("first")
    reader = make_url(url).set(username="reader", password=None)
    monkeypatch.setenv("DATABASE_URL", str(reader))
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(file))
    return file


async def rotate(admin: Any, file: Path) -> None:
    await admin.execute("ALTER ROLE reader PASSWORD 'second'")
    await anyio.Path(file).write_text("second")


async def use_up(engine: AsyncEngine) -> None:
    """Let the next one who asks need a new connection."""
    await engine.dispose()


async def test_a_refused_password_is_read_again(admin: Any, password_file: Path) -> None:
    app = rotating.app
    async with running(app) as client:
        engine = app.lifespan_container[rotating.get_engine]
        await rotate(admin, password_file)
        assert (await client.get("/now")).status_code == 200  # open connections stay
        await use_up(engine)
        refused = await client.get("/now")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert app.lifespan_container[rotating.get_engine] is not engine
        assert (await client.get("/now")).status_code == 200


async def test_a_password_that_is_not_there_yet(
    admin: Any, password_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server knows it before the file does."""
    app = rotating.app
    async with running(app) as client:
        engine = app.lifespan_container[rotating.get_engine]
        await admin.execute("ALTER ROLE reader PASSWORD 'second'")
        await use_up(engine)
        assert (await client.get("/now")).status_code == 503
        assert app.lifespan_container[rotating.get_engine] is engine
        assert "takes no password that we have" in caplog.text
        await rotate(admin, password_file)
        assert (await client.get("/now")).status_code == 503
        assert (await client.get("/now")).status_code == 200


async def test_requests_in_flight_keep_the_old_engine(admin: Any, password_file: Path) -> None:
    gate, seen = Gate(), []
    app = LifespanFastAPI()
    app.include_router(rotating.app.router)

    @app.get("/report")
    async def report(engine: rotating.EngineDep) -> None:
        async with engine.connect() as connection:
            await gate.wait()
            seen.append((engine, await connection.scalar(text("SELECT 1"))))

    async with running(app) as client, anyio.create_task_group() as tasks:
        old = app.lifespan_container[rotating.get_engine]
        tasks.start_soon(client.get, "/report")
        await gate.hold()
        await rotate(admin, password_file)
        draining = await app.lifespan_container.refresh(rotating.get_engine)
        assert (await client.get("/now")).status_code == 200
        gate.open()
        with anyio.fail_after(PATIENCE):
            await draining.wait()
        assert seen == [(old, 1)]
    await no_connections(admin)


def test_the_password_is_read_every_ten_minutes() -> None:
    [node] = [n for n in lifespan_graph(rotating.app).nodes if n.provider is rotating.get_engine]
    assert node.options["refresh_every"] == 600
