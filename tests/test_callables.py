"""Clause 12: every kind of callable, in every form, is started once and stopped once."""

import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Annotated, Any, Self

import anyio
import anyio.to_thread
import pytest
from fastapi import WebSocket
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from fastapi_lifespan_deps._compat import Kind, kind_of


class Value:
    """What the dependencies here give. It knows the threads in which it was made and closed."""

    made: list["Value"]  # one list per test

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.closed_in: list[int] = []
        Value.made.append(self)

    def close(self) -> None:
        self.closed_in.append(threading.get_ident())


@dataclass
class DataValue(Value):
    retries: int = 3
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()


class ContextValue(Value):
    """Made, but not entered, as in FastAPI."""

    def __enter__(self) -> Self:
        raise AssertionError("entered")

    def __exit__(self, *exc_info: object) -> None: ...

    async def __aenter__(self) -> Self:
        raise AssertionError("entered")

    async def __aexit__(self, *exc_info: object) -> None: ...


@pytest.fixture(autouse=True)
def _no_values_yet() -> None:
    Value.made = []
    get_cached.cache_clear()


# The parameters are for what some forms pass, `self` or others. Code after
# `yield` stands without `finally`.


def get(_: object = None, __: object = None) -> Value:
    return Value()


async def get_async(_: object = None, __: object = None) -> Value:
    return Value()


def generate(_: object = None, __: object = None) -> Iterator[Value]:
    value = Value()
    yield value
    value.close()


async def generate_async(_: object = None, __: object = None) -> AsyncIterator[Value]:
    value = Value()
    yield value
    value.close()


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def logged_async(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if isawaitable(result) else result

    return wrapper


@functools.lru_cache
def get_cached() -> Value:
    return Value()


def owner(**attributes: Any) -> Any:
    """A class with these attributes."""
    return type("Owner", (), attributes)


KINDS: list[Callable[..., Any]] = [
    get,
    get_async,
    generate,
    generate_async,
    contextmanager(generate),
    asynccontextmanager(generate_async),
]
KIND_NAMES = ["sync", "async", "generator", "asyncgen", "contextmanager", "asynccontextmanager"]
ASYNC = {"async", "asyncgen", "asynccontextmanager"}
HAVE_EXIT = {"generator", "asyncgen", "contextmanager", "asynccontextmanager"}

FORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "function": lambda function: function,
    "method": lambda function: owner(get=function)().get,
    "classmethod": lambda function: owner(get=classmethod(function)).get,
    "staticmethod": lambda function: owner(get=staticmethod(function)).get,
    "instance": lambda function: owner(__call__=function)(),
    "partial": lambda function: functools.partial(function, "an argument"),
    "partial of a partial": lambda function: functools.partial(functools.partial(function, 1), 2),
    "partial of a method": lambda function: functools.partial(owner(get=function)().get),
    "partial of an instance": lambda function: functools.partial(owner(__call__=function)()),
    "wraps": logged,
    "wraps of a method": lambda function: logged(owner(get=function)().get),
    "wraps of a partial": lambda function: logged(functools.partial(function, 1)),
    "method that is wrapped": lambda function: owner(get=logged(function))().get,
    "instance that is wrapped": lambda function: owner(__call__=logged(function))(),
}
LOOKS_THROUGH = kind_of(logged(get_async)) is Kind.COROUTINE
FORMS_OF_KINDS = [
    pytest.param(form(kind), name, id=f"{name} {form_name}")
    for form_name, form in FORMS.items()
    for kind, name in zip(KINDS, KIND_NAMES, strict=True)
    # before 0.123.5 FastAPI does not look at what is wrapped, and gives the generator itself
    if LOOKS_THROUGH
    or not ("wrap" in form_name or form_name == "partial of an instance")
    or not name.endswith(("generator", "asyncgen"))
]
OTHERS = [
    pytest.param(Value, "sync", id="class"),
    pytest.param(None, "sync", id="inferred class"),
    pytest.param(DataValue, "sync", id="dataclass"),
    pytest.param(ContextValue, "sync", id="class of context managers"),
    pytest.param(functools.partial(DataValue, retries=4), "sync", id="partial of a class"),
    pytest.param(lambda: Value(), "sync", id="lambda"),
    pytest.param(get_cached, "sync", id="lru_cache"),
    pytest.param(logged_async(get_async), "async", id="async wraps"),
    pytest.param(logged_async(get), "async", id="async wraps of a sync function"),
    pytest.param(lambda: get_async(), "async", id="lambda that returns a coroutine"),
    pytest.param(functools.partial(lambda: get_async()), "async", id="partial of such a lambda"),
]


@pytest.mark.parametrize(("provider", "kind"), [*FORMS_OF_KINDS, *OTHERS])
def test_it_is_started_once_shared_and_stopped_once(
    provider: Callable[..., Any] | None, kind: str, anyio_backend: str
) -> None:
    app = LifespanFastAPI()
    loop_threads = []
    given: list[Value] = []
    Shared = Annotated[Value, Depends(provider, scope="lifespan")]

    def read(value: Any) -> None:
        given.append(value)

    async def read_async(value: Any) -> None:
        loop_threads.append(threading.get_ident())
        given.append(value)

    async def listen(websocket: WebSocket, value: Any) -> None:
        given.append(value)
        await websocket.accept()

    for function in (read, read_async, listen):
        function.__annotations__["value"] = Shared
    app.get("/sync")(read)
    app.get("/async")(read_async)
    app.websocket("/")(listen)

    with TestClient(app, backend=anyio_backend) as client:  # type: ignore[arg-type]
        (value,) = Value.made
        for _ in range(2):
            assert client.get("/sync").status_code == 200
            assert client.get("/async").status_code == 200
            with client.websocket_connect("/"):
                pass
        assert value.closed_in == []

    assert Value.made == [value]
    assert [item is value for item in given] == [True] * 6
    assert len(value.closed_in) == (kind in HAVE_EXIT)
    # a synchronous one runs in a worker thread, an asynchronous one in the event loop
    for thread in (value.thread, *value.closed_in):
        assert (thread in loop_threads) == (kind in ASYNC)


@pytest.mark.parametrize("wrapper", [dict, list, object, threading.Lock, int])
def test_what_is_built_in_may_be_a_dependency(wrapper: Callable[[], Any]) -> None:
    app = LifespanFastAPI()
    given = []

    @app.get("/")
    async def read(value: Annotated[Any, Depends(wrapper, scope="lifespan")]) -> None:
        given.append(value)

    with TestClient(app) as client:
        client.get("/")
        client.get("/")

    assert type(given[0]) is type(wrapper())
    assert given[0] is given[1]


@pytest.mark.parametrize("kind", [get, generate, contextmanager(generate), Value])
def test_each_run_calls_it_again(kind: Callable[[], Any]) -> None:
    app = LifespanFastAPI(dependencies=[Depends(kind, scope="lifespan")])
    app.get("/")(lambda: None)

    for runs in (1, 2):
        with TestClient(app):
            assert len(Value.made) == runs


def test_two_methods_of_two_objects_are_two_dependencies() -> None:
    class Factory:
        def get(self) -> Value:
            return Value()

    one, other = Factory(), Factory()
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        a: Annotated[Value, Depends(one.get, scope="lifespan")],
        b: Annotated[Value, Depends(one.get, scope="lifespan")],
        c: Annotated[Value, Depends(other.get, scope="lifespan")],
    ) -> list[bool]:
        return [a is b, a is c]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, False]


def test_an_exception_in_the_body_of_an_endpoint_does_not_reach_it() -> None:
    """It is not a dependency of a request: one request's failure is not its business."""
    thrown = []

    def get_value() -> Iterator[int]:
        try:
            yield 1
        except BaseException as error:
            thrown.append(error)
            raise

    app = LifespanFastAPI()

    @app.get("/")
    def read(value: Annotated[int, Depends(get_value, scope="lifespan")]) -> None:
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500
        assert client.get("/").status_code == 500
    assert thrown == []


@pytest.mark.parametrize("kind", ["generator", "asyncgen"])
@pytest.mark.parametrize("yields", [0, 2])
def test_a_generator_that_does_not_yield_once_is_an_error(kind: str, yields: int) -> None:
    def generator() -> Iterator[int]:
        yield from range(yields)

    async def asyncgen() -> AsyncIterator[int]:
        for number in range(yields):
            yield number

    provider = {"generator": generator, "asyncgen": asyncgen}[kind]
    app = LifespanFastAPI(dependencies=[Depends(provider, scope="lifespan")])
    app.get("/")(lambda: None)

    with pytest.raises(RuntimeError, match=r"generator didn't (yield|stop)"), TestClient(app):
        pass


@pytest.mark.anyio
async def test_a_synchronous_one_does_not_block_the_event_loop() -> None:
    """At its start and at its stop it waits for what the event loop does meanwhile."""
    waiting, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def get_value() -> Iterator[None]:
        waiting.release()
        assert go_on.acquire(timeout=10)
        yield
        waiting.release()
        assert go_on.acquire(timeout=10)

    app = LifespanFastAPI(dependencies=[Depends(get_value, scope="lifespan")])
    app.get("/")(lambda: None)

    async def let_it_go_on() -> None:
        for _ in range(2):
            await anyio.to_thread.run_sync(waiting.acquire)
            go_on.release()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_it_go_on)
            async with app.router.lifespan_context(app):
                pass


async def answer() -> int:
    return 42


def test_a_synchronous_one_may_run_an_event_loop_of_its_own(anyio_backend: str) -> None:
    """As in a request: in its thread no event loop runs."""

    def get_value() -> Iterator[int]:
        value = anyio.run(answer)
        token = number.set(value)
        yield value
        number.reset(token)  # in the context in which it was set
        assert anyio.run(answer) == 42

    app = LifespanFastAPI()

    @app.get("/")
    async def read(value: Annotated[int, Depends(get_value, scope="lifespan")]) -> int:
        return value

    with TestClient(app, backend=anyio_backend) as client:  # type: ignore[arg-type]
        assert client.get("/").json() == 42


number: ContextVar[int] = ContextVar("number")
