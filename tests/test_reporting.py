"""Clause 6: whatever is done to report an error, it is raised as it is."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, HTTPException, Request
from fastapi import Depends as FastAPIDepends
from fastapi.responses import JSONResponse

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from tests.clients import running

pytestmark = pytest.mark.anyio


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    key: str = "db.url"


class OddNotes(Exception):
    __notes__ = "no list"  # type: ignore[assignment]


class Slotted(Exception):
    __slots__ = ("__notes__",)


class Broken(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    def add_note(self, note: str) -> None:
        raise ValueError("no note")


ERRORS = pytest.mark.parametrize("error", [Frozen(), OddNotes(), Slotted(), Broken(), OSError()])
KINDS = pytest.mark.parametrize("kind", ["async", "sync"])


class Failing:
    """A provider that fails at a step, and so does what depends on it."""

    def __init__(self, error: Exception, kind: str) -> None:
        self.error = error
        self.step = ""

        async def get_async() -> AsyncIterator[str]:
            self.reach("start")
            yield "value"
            self.reach("stop")

        def get_sync() -> Iterator[str]:
            self.reach("start")
            yield "value"
            self.reach("stop")

        self.get: Any = get_async if kind == "async" else get_sync
        self.app = LifespanFastAPI()

        @self.app.get("/")
        async def read(value: Annotated[str, Depends(self.get, scope="lifespan")]) -> str:
            return value

    def reach(self, step: str) -> None:
        if step == self.step:
            raise self.error


@ERRORS
@KINDS
@pytest.mark.parametrize("is_gone", [False, True], ids=["", "no current directory"])
async def test_a_failed_start_and_a_failed_refresh_are_raised_as_they_are(
    error: Exception, kind: str, is_gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_gone:
        monkeypatch.chdir(tmp_path)
        os.rmdir(tmp_path)
        with pytest.raises(OSError):
            os.getcwd()
    failing = Failing(error, kind)
    async with running(failing.app) as client:
        failing.step = "start"
        with pytest.raises(type(error)) as raised:
            await failing.app.router.lifespan_container.refresh(failing.get)  # type: ignore[attr-defined]
        assert raised.value is error
        assert (await client.get("/")).json() == "value"
    with pytest.raises(type(error)) as raised:
        async with running(failing.app):
            pass
    assert raised.value is error


@ERRORS
@KINDS
async def test_a_failed_stop_is_raised_as_it_is(error: Exception, kind: str) -> None:
    failing = Failing(error, kind)
    failing.step = "stop"
    with pytest.raises(type(error)) as raised:
        async with running(failing.app):
            pass
    assert raised.value is error


@ERRORS
async def test_a_failed_start_that_a_failed_stop_follows(error: Exception) -> None:
    failing = Failing(error, "async")

    async def get_second(first: Annotated[str, Depends(failing.get, scope="lifespan")]) -> None:
        failing.step = "stop"
        raise error

    failing.app.get("/second", dependencies=[Depends(get_second, scope="lifespan")])(lambda: None)
    with pytest.raises(type(error)) as raised:
        async with running(failing.app):
            pass
    assert raised.value is error


@ERRORS
async def test_a_hook_that_fails_is_raised_as_it_is(error: Exception) -> None:
    failing = Failing(error, "async")
    router = APIRouter()

    def fail() -> None:
        raise error

    router.add_event_handler("startup", fail)
    failing.app.include_router(router)
    with pytest.raises(type(error)) as raised:
        async with running(failing.app):
            pass
    assert raised.value is error


@pytest.mark.parametrize("error", [OddNotes(), Slotted(), OSError()])
@KINDS
async def test_what_an_endpoint_raises_reaches_its_handler(error: Exception, kind: str) -> None:
    failing = Failing(error, kind)
    seen: list[Exception] = []

    def get_session(
        value: Annotated[str, Depends(failing.get, scope="lifespan")],
    ) -> Iterator[str]:
        try:
            yield value
        except Exception as raised:
            seen.append(raised)
            raise HTTPException(418) from raised

    @failing.app.get("/endpoint")
    def fail(value: Annotated[str, Depends(failing.get, scope="lifespan")]) -> None:
        raise error

    @failing.app.get("/session")
    def fail_with_a_session(session: Annotated[str, FastAPIDepends(get_session)]) -> None:
        raise error

    @failing.app.exception_handler(type(error))
    async def handle(request: Request, raised: Exception) -> JSONResponse:
        seen.append(raised)
        return JSONResponse(None, 418)

    async with running(failing.app) as client:
        assert (await client.get("/endpoint")).status_code == 418
        assert (await client.get("/session")).status_code == 418
    assert all(one is error for one in seen)


@ERRORS
async def test_what_a_lifespan_raises_at_its_end_is_raised_as_it_is(error: Exception) -> None:
    class Ending:
        """Not by contextlib, which loses what is frozen."""

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc_info: object) -> None:
            raise error

    failing = Failing(OSError(), "async")
    failing.app.router.lifespan_context = lambda app: Ending()
    with pytest.raises(type(error)) as raised:
        async with running(failing.app):
            pass
    assert raised.value is error


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_shutdown_that_is_cancelled_is_cancelled() -> None:
    failing = Failing(OSError(), "async")
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.sleep(60)

    async def wait_too() -> None:
        await wait()

    for hook in (wait, wait_too):
        failing.app.router.add_event_handler("shutdown", hook)

    async def run() -> None:
        async with running(failing.app):
            pass

    task = asyncio.create_task(run())
    for _ in range(2):
        await waiting.wait()
        waiting.clear()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
