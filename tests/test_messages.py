"""Messages say what was meant, where it stands, and what to write instead."""

import asyncio
import functools
import os
import pickle
import traceback
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any, NewType, Optional

import fastapi
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import fastapi_lifespan_deps
from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanNotRunning,
    UninitializedLifespanDependency,
    enable_lifespan_scope,
    lifespan_container,
)
from fastapi_lifespan_deps.exceptions import location_of
from tests.clients import running


async def get_pool() -> AsyncIterator[int]:
    yield 1


async def load() -> int:
    return 1


def generate() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [get_pool, load, generate])
def test_a_function_that_was_called_is_named(function: Any) -> None:
    with pytest.raises(InvalidLifespanDependency) as raised:
        Depends(function(), scope="lifespan")
    name = function.__name__
    assert str(raised.value) == (
        f'`Depends({name}(), scope="lifespan")` needs the function itself, and you called '
        f'`{name}()`. Write `Depends({name}, scope="lifespan")`.'
    )


@pytest.mark.parametrize(
    ("scope", "meant"),
    [("lifespam", "lifespan"), ("Lifespan", "lifespan"), ("requests", "request"), ("app", None)],
)
def test_a_scope_that_is_nearly_right_is_guessed(scope: Any, meant: str | None) -> None:
    with pytest.raises(InvalidDependencyScope) as raised:
        Depends(get_pool, scope=scope)
    assert (f'Did you mean "{meant}"?' in str(raised.value)) is (meant is not None)
    assert ("Did you mean" in str(raised.value)) is (meant is not None)


class Adapter:
    pass


@pytest.mark.parametrize(
    "kind",
    [Adapter | None, Optional[Adapter], NewType("Other", Adapter)],  # noqa: UP045
    ids=str,
)
def test_a_type_that_makes_nothing_is_refused_where_it_is_read(kind: Any) -> None:
    app = LifespanFastAPI()

    async def read(value: Any) -> None: ...

    read.__annotations__["value"] = Annotated[kind, Depends(scope="lifespan")]

    with pytest.raises(InvalidLifespanDependency, match="makes nothing"):
        app.get("/")(read)


@pytest.mark.parametrize("function", [get_pool, load, generate])
def test_a_cache_around_what_can_be_used_once_is_refused(function: Any) -> None:
    with pytest.raises(InvalidLifespanDependency, match="Leave `lru_cache` out"):
        Depends(functools.lru_cache(function), scope="lifespan")
    Depends(functools.lru_cache(lambda: 1), scope="lifespan")


def test_errors_are_named_as_they_are_imported() -> None:
    for name in fastapi_lifespan_deps.__all__:
        error = getattr(fastapi_lifespan_deps, name)
        if isinstance(error, type) and issubclass(error, Exception):
            assert error.__module__ == "fastapi_lifespan_deps"
    error = UninitializedLifespanDependency(get_pool, "it is gone", "Wait.")
    assert type(pickle.loads(pickle.dumps(error))) is UninitializedLifespanDependency


def test_the_frames_of_depends_are_hidden_from_pytest() -> None:
    with pytest.raises(InvalidLifespanDependency) as raised:
        Depends(5, scope="lifespan")  # type: ignore[arg-type]
    frames = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    package = os.path.dirname(fastapi_lifespan_deps.__file__)
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(package + os.sep)]
    assert ours
    assert all(frame.f_locals.get("__tracebackhide__") for frame in ours)


def test_a_class_is_placed_by_file_and_line() -> None:
    assert location_of(Adapter).startswith(f"tests{os.sep}test_messages.py:")
    assert location_of(Adapter()) == location_of(Adapter)


@pytest.mark.anyio
@pytest.mark.parametrize("app", [LifespanFastAPI(), enable_lifespan_scope(FastAPI())])
async def test_the_container_of_any_application_that_knows_the_scope(app: FastAPI) -> None:
    app.get("/", dependencies=[Depends(get_pool, scope="lifespan")])(lambda: None)
    with pytest.raises(LifespanNotRunning):
        lifespan_container(app)
    async with running(app):
        assert lifespan_container(app)[get_pool] == 1


def test_a_plain_application_has_no_container() -> None:
    with pytest.raises(LifespanDependencyError, match="is a plain FastAPI, which does not know"):
        lifespan_container(FastAPI())


def test_a_test_client_without_with_is_told_in_one_sentence() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(pool: Annotated[int, Depends(get_pool, scope="lifespan")]) -> None: ...

    with pytest.raises(UninitializedLifespanDependency) as caught:
        TestClient(app).get("/")
    assert str(caught.value).endswith(
        "the application is not running. A TestClient starts it when it is entered: "
        "write `with TestClient(app) as client:`."
    )


def notes_of_the_start(provider: Any) -> str:
    app = LifespanFastAPI(dependencies=[Depends(provider, scope="lifespan")])
    with pytest.raises(RuntimeError) as caught, TestClient(app):
        pass
    return "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_never_yields_is_told_so(is_async: bool) -> None:
    enabled = False

    def generator() -> Iterator[int]:
        if enabled:
            yield 1

    async def asyncgen() -> AsyncIterator[int]:
        if enabled:
            yield 1

    notes = notes_of_the_start(asyncgen if is_async else generator)
    assert "failed to start. It came to its end without a `yield`" in notes
    assert "`None` if need be" in notes


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_uses_another_which_never_yields_is_not(is_async: bool) -> None:
    @contextmanager
    def never() -> Iterator[None]:
        yield from ()

    def generator() -> Iterator[None]:
        with never():
            yield

    async def asyncgen() -> AsyncIterator[None]:
        with never():
            yield

    notes = notes_of_the_start(asyncgen if is_async else generator)
    assert notes.endswith("failed to start")


def test_what_needs_an_event_loop_in_a_def_is_told_that_it_runs_in_a_thread() -> None:
    def get_client() -> object:
        return asyncio.get_running_loop()

    async def get_client_async() -> object:
        raise RuntimeError("this event loop is full")

    notes = notes_of_the_start(get_client)
    assert "It is no `async def`, so it is called in a worker thread" in notes
    assert notes_of_the_start(get_client_async).endswith("failed to start")


def test_an_option_that_is_nearly_right_is_told() -> None:
    with pytest.raises(InvalidLifespanDependency, match="Did you mean `refresh_every`"):
        Depends(get_pool, scope="lifespan", refresh_evry=3)


def test_an_annotation_is_no_dependency() -> None:
    annotated: Any = TokenDep
    with pytest.raises(InvalidLifespanDependency, match="and that is an annotation"):
        Depends(annotated, scope="lifespan")


def test_a_hook_is_told_that_it_runs_outside_of_requests() -> None:
    async def warm(request: Request, pool: TokenDep) -> None: ...

    async def announce(app: FastAPI, pool: TokenDep) -> None: ...

    hooks: list[tuple[Any, str]] = [(warm, "request"), (announce, "app")]
    for hook, parameter in hooks:
        app = LifespanFastAPI()
        app.router.on_startup.append(hook)
        with pytest.raises(DependencyScopeError) as caught, TestClient(app):
            pass
        message = str(caught.value)
        assert "runs when the application starts or stops, and not in a request" in message
        assert f"so it cannot take `{parameter}`" in message
        assert message.endswith("or give it a default.")


# Doubts: what is legal, and hardly meant


def get_token() -> str:
    return "token"


class Token: ...


TokenDep = Annotated[str, Depends(get_pool, scope="lifespan")]


def warned(app: FastAPI) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with TestClient(app) as client:
            client.get("/")
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("listed", [True, False])
def test_a_stock_declaration_with_a_scope_that_does_not_exist_is_doubted(listed: bool) -> None:
    typo: Any = "lifspan"
    app = LifespanFastAPI()
    stock = fastapi.Depends(get_token, scope=typo)

    async def session(token: Annotated[str, stock]) -> str:
        return token

    depends = stock if listed else fastapi.Depends(session)
    app.get("/", dependencies=[depends])(lambda: None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    app.router.lifespan_context = lifespan
    (doubt,) = warned(app)
    assert "GET / declares `get_token` (" in doubt
    assert "test_messages.py:" in doubt
    assert 'Did you mean "lifespan"?' in doubt


def test_an_override_that_can_override_nothing_is_doubted() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(token: TokenDep, made: Annotated[Token, fastapi.Depends()]) -> None: ...

    @app.get("/2")
    async def read_shared(made: Annotated[Adapter, Depends(scope="lifespan")]) -> None: ...

    def fake() -> str:
        return "fake"

    app.dependency_overrides |= {get_pool: fake, Token: Token, Adapter: Adapter}
    assert warned(app) == []
    stock: Any = fastapi.Security(get_token)  # up to 0.121.2 FastAPI's own have no hash
    wrong: dict[Any, Any] = {TokenDep: fake, Annotated[Token, "a note"]: fake, int: fake}
    with suppress(TypeError):
        wrong[Annotated[Token, stock]] = fake
    app.dependency_overrides |= wrong
    annotation = "overrides nothing: its key is an annotation. Use what the annotation declares:"
    told = {
        f"dependency_overrides[Annotated[Token, ...]] {annotation} `Token`.",
        f"dependency_overrides[Annotated[str, ...]] {annotation} `get_pool`.",
        "dependency_overrides[int] overrides nothing: nothing declares that class. "
        "Use the very function or class that is passed to `Depends`.",
    }
    if len(wrong) == 4:
        told.add(f"dependency_overrides[Annotated[Token, ...]] {annotation} `get_token`.")
    assert set(warned(app)) == told


def test_what_another_override_takes_may_be_overridden() -> None:
    class Config: ...

    class FakeConfig(Config): ...

    def get_settings(config: Annotated[Config, fastapi.Depends()]) -> str:
        return type(config).__name__

    app = LifespanFastAPI()

    @app.get("/")
    async def read(token: Annotated[str, fastapi.Depends(get_token)], pool: TokenDep) -> str:
        return token

    def get_late(config: Annotated[Config, Depends(scope="lifespan")]) -> None: ...

    app.dependency_overrides |= {get_token: get_settings, Config: FakeConfig, get_pool: get_late}
    assert warned(app) == []


def test_what_is_added_while_the_application_starts_may_be_overridden() -> None:
    def read(token: Annotated[Token, fastapi.Depends()]) -> None: ...

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.get("/")(read)
        yield

    app = LifespanFastAPI(lifespan=lifespan, dependencies=[Depends(get_pool, scope="lifespan")])
    app.dependency_overrides[Token] = Token
    assert warned(app) == []


def test_a_doubt_is_told_once_for_all_routes() -> None:
    typo: Any = "lifspan"
    app = LifespanFastAPI(dependencies=[fastapi.Depends(get_token, scope=typo)])
    app.get("/")(lambda: None)
    app.get("/2")(lambda: None)
    assert len(warned(app)) == 1


class Lazy:
    """It stands for something that is not there yet."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("outside of its context")

    def __call__(self) -> None: ...


def test_an_odd_key_of_an_override_is_nobodys_trouble() -> None:
    app = LifespanFastAPI(dependencies=[Depends(get_pool, scope="lifespan")])
    app.get("/")(lambda: None)
    app.dependency_overrides[Lazy()] = get_token
    assert warned(app) == []
