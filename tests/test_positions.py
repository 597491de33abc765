"""Wherever in the signature a value stands, it comes to its own parameter."""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI

Model = Annotated[str, Depends(lambda: "model", scope="lifespan")]
Pool = Annotated[str, Depends(lambda: "pool", scope="lifespan")]


async def first(model: Model, pool: Pool, q: str) -> str:
    return f"{model} {pool} {q}"


async def last(q: str, model: Model, pool: Pool) -> str:
    return f"{model} {pool} {q}"


async def around(model: Model, q: str, pool: Pool) -> str:
    return f"{model} {pool} {q}"


async def keyword_only(*, model: Model, q: str, pool: Pool) -> str:
    return f"{model} {pool} {q}"


async def with_a_default(model: Model = "none", pool: Pool = "none", q: str = "none") -> str:
    return f"{model} {pool} {q}"


@functools.wraps(first)
async def wrapped(*args: Any, **values: Any) -> str:
    assert not args
    return await first(**values)


@functools.wraps(first)
async def wrapped_by_other_names(pool: str, model: str, **values: Any) -> str:
    return await first(model, pool, **values)


def unrelated() -> None:
    pass


class Class:
    def __init__(self, model: Model, pool: Pool, q: str) -> None:
        self.text = f"{model} {pool} {q}"

    async def method(self, model: Model, pool: Pool, q: str) -> str:
        return f"{model} {pool} {q}"

    async def __call__(self, model: Model, pool: Pool, q: str) -> str:
        return f"{model} {pool} {q}"


CALLABLES: list[Callable[..., Any]] = [
    first,
    last,
    around,
    keyword_only,
    with_a_default,
    wrapped,
    wrapped_by_other_names,
    Class("", "", "").method,
    Class("", "", ""),
    functools.partial(first),
]


@pytest.mark.parametrize("call", CALLABLES, ids=lambda call: getattr(call, "__name__", "other"))
@pytest.mark.parametrize("is_endpoint", [True, False])
@pytest.mark.parametrize("is_overridden", [True, False])
def test_each_parameter_is_given_its_own_value(
    call: Callable[..., Any], is_endpoint: bool, is_overridden: bool
) -> None:
    if is_endpoint and isinstance(call, Class):
        pytest.skip("older releases of FastAPI do not await such an endpoint")
    app = LifespanFastAPI()
    if is_overridden:
        app.dependency_overrides[unrelated] = unrelated
    if is_endpoint:
        app.get("/")(call)
    else:

        @app.get("/")
        async def read(text: Annotated[Any, Depends(call)]) -> Any:
            return text

    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/?q=x").json() == "model pool x"


def test_a_class_is_given_values_by_name() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(made: Annotated[Class, Depends()]) -> str:
        return made.text

    with TestClient(app) as client:
        assert client.get("/?q=x").json() == "model pool x"
