"""Clause 12: what a callable is, FastAPI says: the same value and clean-up as stock in a request.

Every kind of function in every kind of wrapper, in each place that takes one: as the provider of a
lifespan dependency, as a request's dependency that takes a lifespan value, as an endpoint, and as
a hook.
"""

import functools
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any, NamedTuple

import asyncer
import fastapi
import pytest
from asgiref.sync import sync_to_async
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI, enable_lifespan_scope
from fastapi_lifespan_deps._compat import Kind, kind_of

# What a call that is not awaited leaves behind, in stock FastAPI and here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def _leave_nothing_unawaited() -> Iterator[None]:
    yield
    gc.collect()


async def get_engine() -> str:
    return "engine"


class Case(NamedTuple):
    """One run of the same application: with stock FastAPI, or with ours."""

    app: FastAPI
    engine: Any  # how the functions get the engine
    log: list[str]


def stock() -> Case:
    return Case(FastAPI(), Annotated[str, fastapi.Depends(get_engine)], [])


def ours() -> Case:
    return Case(LifespanFastAPI(), Annotated[str, Depends(get_engine, scope="lifespan")], [])


def functions(engine_type: Any, log: list[str]) -> dict[str, Function]:
    def function(engine: object) -> object:
        log.append("called")
        return engine

    async def coroutine(engine: object) -> object:
        log.append("called")
        return engine

    def generator(engine: object) -> Iterator[object]:
        yield engine
        log.append("closed")

    async def async_generator(engine: object) -> AsyncIterator[object]:
        yield engine
        log.append("closed")

    found: tuple[Function, ...] = (function, coroutine, generator, async_generator)
    for one in found:
        one.__annotations__["engine"] = engine_type
    return {one.__name__: one for one in found}


async def result_of(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def by_function(call: Function, log: list[str]) -> Function:
    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return wrapper


def by_coroutine(call: Function, log: list[str]) -> Function:
    @functools.wraps(call)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await result_of(call(*args, **kwargs))

    return wrapper


def by_generator(call: Function, log: list[str]) -> Function:
    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
        result = call(*args, **kwargs)
        if isinstance(result, Iterator):
            yield from result
        else:
            yield result
        log.append("wrapper closed")

    return wrapper


def by_async_generator(call: Function, log: list[str]) -> Function:
    @functools.wraps(call)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        result = call(*args, **kwargs)
        if isinstance(result, AsyncIterator):
            async for item in result:
                yield item
        else:
            yield await result_of(result)
        log.append("wrapper closed")

    return wrapper


def by_object(call: Function, log: list[str]) -> Function:
    class Wrapper:
        def __init__(self) -> None:
            functools.update_wrapper(self, call)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

    return Wrapper()


def by_async_object(call: Function, log: list[str]) -> Function:
    class Wrapper:
        def __init__(self) -> None:
            functools.update_wrapper(self, call)

        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return await result_of(call(*args, **kwargs))

    return Wrapper()


def in_object(call: Function, log: list[str]) -> Function:
    """An object whose `__call__` it is, so that it takes a `self`."""

    @functools.wraps(call)
    def method(self: object, **kwargs: Any) -> Any:
        return call(**kwargs)

    parameters = list(inspect.signature(call).parameters.values())
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    return type("Object", (), {"__call__": method})()  # type: ignore[no-any-return]


def as_method(call: Function, log: list[str]) -> Function:
    owner = type("Owner", (), {"get": staticmethod(call), "__call__": None})
    return owner.get  # type: ignore[attr-defined, no-any-return]


def by_class(call: Function, log: list[str]) -> Function:
    """A class decorator: what it makes of the function is a class."""

    @functools.wraps(call, updated=())
    class Wrapper:
        def __init__(self, **kwargs: Any) -> None:
            self.result = call(**kwargs)

        def __str__(self) -> str:
            return f"made with {type(self.result).__name__}"

    return Wrapper


def by_proxy(call: Function, log: list[str]) -> Function:
    """An object that looks like a function, and wants its arguments by name."""

    class Proxy:
        __code__ = property(lambda self: call.__code__)
        __signature__ = property(lambda self: inspect.signature(call))

        def __init__(self) -> None:
            functools.update_wrapper(self, call)

        def __call__(self, **kwargs: Any) -> Any:
            return call(**kwargs)

    return Proxy()


def wraps_itself(call: Function, log: list[str]) -> Function:
    def wrapper(**kwargs: Any) -> Any:
        return call(**kwargs)

    wrapper.__wrapped__ = wrapper  # type: ignore[attr-defined]
    return wrapper


WRAPPERS: dict[str, Callable[[Function, list[str]], Function]] = {
    "nothing": lambda call, log: call,
    "function": by_function,
    "coroutine": by_coroutine,
    "generator": by_generator,
    "async generator": by_async_generator,
    "partial": lambda call, log: functools.partial(call),
    "partial of a wrapper": lambda call, log: functools.partial(by_coroutine(call, log)),
    "wrapper of a partial": lambda call, log: by_function(functools.partial(call), log),
    "async wrapper of a partial": lambda call, log: by_coroutine(functools.partial(call), log),
    "two wrappers": lambda call, log: by_function(by_coroutine(call, log), log),
    "two wrappers the other way round": lambda call, log: by_coroutine(by_function(call, log), log),
    "asyncer": lambda call, log: asyncer.asyncify(call),
    "asgiref": lambda call, log: sync_to_async(call),
    "object": by_object,
    "async object": by_async_object,
    "object of it": in_object,
    "partial of an object": lambda call, log: functools.partial(by_async_object(call, log)),
    "static method": as_method,
    "class": by_class,
    "proxy": by_proxy,
    "itself": wraps_itself,
}
COMBINATIONS = [(one, other) for one in functions(str, []) for other in WRAPPERS]
COMBINATIONS.remove(("coroutine", "asgiref"))  # which refuses it
combinations = pytest.mark.parametrize(("function", "wrapper"), COMBINATIONS)


def described(value: object) -> str:
    return value if isinstance(value, str) else f"a {type(value).__name__}"


def outcome(case: Case, answer: Callable[[TestClient], Any]) -> tuple[str, list[str]]:
    """What comes of it: the value, or that there is an error; and what was called and closed."""
    try:
        with TestClient(case.app) as client:
            response = answer(client)
            found = f"{response.status_code} {response.text}"
            if response.status_code == 422:  # it wants `kwargs` of the request
                found = "an error"
    except Exception:
        found = "an error"
    return found, case.log


def wrapped(case: Case, function: str, wrapper: str, engine: Any = None) -> Function:
    call = functions(engine or case.engine, case.log)[function]
    return WRAPPERS[wrapper](call, case.log)


def as_dependency(case: Case, call: Function, declare: Callable[[Any], Any]) -> Any:
    """An endpoint with a dependency, and its answer."""
    try:

        @case.app.get("/")
        async def read(value: Annotated[Any, declare(call)]) -> str:
            return value if isinstance(value, str) else str(value).split(" at ")[0]

    except Exception:
        return "an error", case.log
    return outcome(case, lambda client: client.get("/"))


def lifespan(call: Function) -> Any:
    return Depends(call, scope="lifespan")


@combinations
def test_k1_a_provider_gives_what_it_gives_in_a_request(function: str, wrapper: str) -> None:
    before, after = stock(), ours()
    expected = as_dependency(before, wrapped(before, function, wrapper), fastapi.Depends)
    call = wrapped(after, function, wrapper)
    given = as_dependency(after, call, lifespan)
    if "coroutine object" in expected[0] and kind_of(call) is Kind.FUNCTION:
        assert "coroutine object" not in given[0]  # it is of no use to many
    else:
        assert given == expected


@combinations
@pytest.mark.parametrize("overrides", [False, True])
def test_k1_a_dependency_of_a_request_is_called_as_ever(
    function: str, wrapper: str, overrides: bool
) -> None:
    results = []
    for case in (stock(), ours()):
        if overrides:  # FastAPI builds dependants again for each request then
            case.app.dependency_overrides[len] = len
        call = wrapped(case, function, wrapper)
        results.append(as_dependency(case, call, fastapi.Depends))
    assert results[0] == results[1]


@combinations
@pytest.mark.parametrize("included", [False, True])
def test_k1_an_endpoint_is_called_as_ever(function: str, wrapper: str, included: bool) -> None:
    results = []
    for case in (stock(), ours()):
        router = APIRouter()
        try:
            (router if included else case.app).add_api_route(
                "/", wrapped(case, function, wrapper), response_model=None, name="read"
            )
            case.app.include_router(router)
        except Exception:
            results.append(("an error", case.log))
        else:
            results.append(outcome(case, lambda client: client.get("/")))
    assert results[0] == results[1]


@combinations
def test_k1_a_hook_is_called_as_ever(function: str, wrapper: str) -> None:
    """What takes nothing, so that stock FastAPI can call it; and with a value of ours."""
    results, is_readable = [], False
    for case, engine in ((stock(), str), (ours(), str), (ours(), None)):
        call = wrapped(case, function, wrapper, engine)
        hook = functools.partial(call, engine="engine") if engine else call
        with suppress(ValueError):  # from Python 3.13 on it isn't for a class that wraps one
            is_readable = "engine" in inspect.signature(call).parameters
        try:
            case.app.router.on_startup.append(hook)
            case.app.get("/")(lambda: "started")
        except Exception:
            results.append(("an error", case.log))
        else:
            results.append(outcome(case, lambda client: client.get("/")))
    assert results[0] == results[1]
    if is_readable:
        assert results[0] == results[2]


@pytest.mark.parametrize("decorate", [contextmanager, asynccontextmanager])
def test_clause_12_a_context_manager_is_entered_and_left(decorate: Callable[..., Any]) -> None:
    case = ours()
    is_async = decorate is asynccontextmanager
    call = wrapped(case, "async_generator" if is_async else "generator", "nothing")
    result = as_dependency(case, decorate(call), lifespan)
    assert result == ('200 "engine"', ["closed"])


def test_k1_a_bound_endpoint_is_of_the_kind_that_it_was() -> None:
    """Other libraries look at it again, and at what they have left there."""
    app = FastAPI()

    @app.get("/")
    async def read(engine: Annotated[str, Depends(get_engine, scope="lifespan")]) -> str:
        return engine

    read.mark = "theirs"  # type: ignore[attr-defined]
    enable_lifespan_scope(app)
    with TestClient(app) as client:
        call: Any = app.routes[-1].dependant.call  # type: ignore[attr-defined]
        assert client.get("/").json() == "engine"
    assert call is not read
    assert inspect.iscoroutinefunction(call)
    assert inspect.unwrap(call) is read
    assert (call.mark, call.__name__, call == read) == ("theirs", "read", True)
