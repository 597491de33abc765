"""docs/faq.md: real questions, answered in brief, and each answer is shown by tests."""

import re
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import FastAPI, WebSocket, params
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI, get_container
from tests.processes import ROOT

PAGE = ROOT / "docs/faq.md"
LINK = re.compile(r"\]\(([^)]+)\)")

# What shows that the answer holds.
SHOWN_BY = {
    "Where do I put what the whole application shares?": [
        "test_docs::test_first_steps",
        "test_faq_page::test_lru_cache_does_not_work_for_async_functions",
        "test_faq_page::test_lru_cache_may_call_it_several_times",
    ],
    "How do I get `app.state` with types?": ["typing/container.py"],
    "Can middleware use it, or an exception handler?": [
        "test_docs::test_container_outside_of_routes",
    ],
    "Can a startup hook, or the lifespan function, take dependencies?": [
        "test_docs::test_lifespan_function",
        "test_hooks::test_a_hook_gets_the_instance_that_requests_get_and_overrides_apply_to_it",
        "test_faq_page::test_fastapi_passes_the_declaration_to_a_hook",
    ],
    "My test doesn't start anything. Why?": [
        "test_docs::test_errors",  # errors/without_with.py
        "test_docs::test_testing",
    ],
    "I override the database, and the real one is still connected. Why?": [
        "test_overrides::test_the_original_never_runs",
        "test_overrides::test_what_depends_on_it_is_rebuilt_at_every_depth",
    ],
    '"attached to a different loop", "Event loop is closed": where does that come from?': [
        "test_never_silent::test_another_event_loop",
        "test_docs::test_testing",  # testing/test_two_clients.py
    ],
    "Do the workers of a server share the value?": [
        "test_servers::test_each_worker_starts_and_stops_once_in_reverse_order_before_it_exits",
    ],
    "Can I load the model before the workers fork, with `gunicorn --preload`?": [
        "test_model_serving_deploy::test_each_worker_loads_and_releases_the_model_once",
    ],
    "How do I load a new model without a restart?": ["test_faq_page::test_a_lifetime"],
    "Why don't the hooks of a mounted application run?": [
        "test_merged_lifespan::test_the_lifespan_and_the_hooks_of_a_mounted_application_do_not_run",
        "test_docs::test_mounted",
        "test_docs::test_mounted_lifespan",
    ],
    "May I have hooks and a lifespan function?": ["test_hooks::test_each_hook_runs_exactly_once"],
    "Can a router have a lifespan?": ["test_docs::test_included_routers"],
    "Can I use `Depends` outside of an endpoint?": ["test_docs::test_outside_requests_call"],
    "May a background task use the pool?": [
        "test_docs::test_background_tasks",
        "test_docs::test_background_task_keeps_a_replacement_alive",
    ],
    "Does `fastapi.Depends` know the lifespan scope?": [
        "test_stock_depends::test_parameters_of_both_kinds_share_one_instance",
        "test_faq_page::test_fastapi_runs_it_for_every_request",
    ],
    "Can the first request start it, instead of the application?": [
        "test_never_silent::test_a_route_that_is_added_while_serving",
    ],
}


def answers() -> dict[str, str]:
    _, *sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    return {text.split("\n", 1)[0]: text for text in sections}


def test_each_answer_is_shown_by_tests() -> None:
    assert [*answers()] == [*SHOWN_BY]
    for tests in SHOWN_BY.values():
        for test in tests:
            file, _, name = test.partition("::")
            path = ROOT / "tests" / (file if file.endswith(".py") else f"{file}.py")
            assert f"def {name}" in path.read_text()


@pytest.mark.parametrize("question", SHOWN_BY)
def test_each_question_was_asked_and_each_answer_leads_on(question: str) -> None:
    answer, _, asked = answers()[question].rpartition("\n\nAsked in ")
    assert all(
        re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+", link)
        for link in LINK.findall(asked)
    )
    assert LINK.findall(asked)
    pages = [Path(link.partition("#")[0]) for link in LINK.findall(answer)]
    assert pages
    assert all((ROOT / "docs" / page).exists() for page in pages)


def test_lru_cache_does_not_work_for_async_functions() -> None:
    app = FastAPI()

    @lru_cache
    def get_pool() -> object:
        async def open_pool() -> str:
            return "pool"

        return open_pool()

    @app.get("/")
    async def read_root(pool: Annotated[object, fastapi.Depends(get_pool)]) -> str:
        return await pool  # type: ignore[misc, no-any-return]

    with TestClient(app) as client:
        assert client.get("/").json() == "pool"
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            client.get("/")


def test_lru_cache_may_call_it_several_times() -> None:
    """Two requests at once: each call waits until the other one has begun, too."""
    app = FastAPI()
    both = threading.Barrier(2, timeout=60)

    @lru_cache
    def get_pool() -> int:
        return both.wait()

    @app.get("/")
    def read_root(pool: Annotated[int, fastapi.Depends(get_pool)]) -> int:
        return pool

    with TestClient(app) as client, ThreadPoolExecutor(2) as threads:
        answers = threads.map(lambda _: client.get("/").json(), range(2))
        assert sorted(answers) == [0, 1]


@pytest.mark.filterwarnings(
    "ignore:The on_startup and on_shutdown parameters are deprecated:DeprecationWarning"
)
def test_fastapi_passes_the_declaration_to_a_hook() -> None:
    given: list[object] = []

    def get_settings() -> str:
        raise AssertionError("called")

    async def look(settings: str = fastapi.Depends(get_settings)) -> None:
        given.append(settings)

    with TestClient(FastAPI(on_startup=[look])):
        [settings] = given
        assert isinstance(settings, params.Depends)


def test_fastapi_runs_it_for_every_request() -> None:
    calls: list[int] = []
    stock: Any = fastapi.Depends
    app = FastAPI()

    def get_pool() -> int:
        calls.append(len(calls))
        return len(calls)

    @app.get("/")
    async def read_root(
        pool: Annotated[int, stock(get_pool, scope="lifespan")],
    ) -> int:
        return pool

    with TestClient(app) as client:
        assert calls == []
        assert [client.get("/").json() for _ in range(2)] == [1, 2]


def test_a_lifetime() -> None:
    """What docs_src/lifetime.svg draws."""
    log: list[str] = []
    stopped = threading.Event()
    numbers = iter((1, 2))

    async def get_pool() -> AsyncIterator[str]:
        log.append("pool up")
        yield "pool"
        log.append("pool down")

    async def get_model(
        pool: Annotated[str, Depends(get_pool, scope="lifespan")],
    ) -> AsyncIterator[str]:
        name = f"model {next(numbers)}"
        log.append(f"{name} up with {pool}")
        yield name
        log.append(f"{name} down")
        stopped.set()

    a_model = Depends(get_model, scope="lifespan")
    app = LifespanFastAPI()

    @app.get("/")
    async def read_root(model: Annotated[str, a_model]) -> str:
        return model

    @app.websocket("/")
    async def talk(socket: WebSocket, model: Annotated[str, a_model]) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            await socket.send_text(model)

    @app.post("/refresh")
    async def refresh(
        container: Annotated[LifespanContainer, fastapi.Depends(get_container)],
    ) -> None:
        await container.refresh(get_model)

    with TestClient(app) as client:
        assert log == ["pool up", "model 1 up with pool"]
        with client.websocket_connect("/") as socket:
            assert client.get("/").json() == "model 1"
            client.post("/refresh")
            assert client.get("/").json() == "model 2"
            socket.send_text("Which one?")
            assert socket.receive_text() == "model 1"
            assert log[2:] == ["model 2 up with pool"]
        assert stopped.wait(60)
        assert log[3:] == ["model 1 down"]
    assert log[4:] == ["model 2 down", "pool down"]
