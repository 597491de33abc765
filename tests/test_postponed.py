"""Clause 4: postponed annotations, imports for type checkers, and circles that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import fastapi
import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    LifespanFastAPI,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from decimal import Decimal


class Engine:
    pass


def get_engine() -> Iterator[Engine]:
    yield Engine()


EngineDep = Annotated[Engine, Depends(get_engine, scope="lifespan")]


async def get_model(
    engine: EngineDep,
    inferred: Annotated[Engine, Depends(scope="lifespan")],
    by_default: Decimal = Depends(get_engine, scope="lifespan"),
    plain: Decimal | None = None,
    *,
    app: fastapi.FastAPI,
) -> AsyncIterator[list[Any]]:
    yield [engine, inferred, by_default, plain, app]


class Model:
    def __init__(self, engine: EngineDep, scale: Decimal | None = None) -> None:
        self.engine = engine


class Reader:
    def read(self, engine: EngineDep, scale: Decimal | None = None) -> Engine:
        return engine

    def __call__(self, engine: EngineDep, scale: Decimal | None = None) -> Engine:
        return engine


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def get_scaled(engine: EngineDep, scale: Decimal | None = None) -> Engine:
    return engine


def values_of(*providers: Callable[..., Any]) -> list[Any]:
    """The values that a running application has for lifespan dependencies."""
    app = LifespanFastAPI()
    values: list[Any] = []
    for provider in providers:

        def read(value: Any) -> None:
            values.append(value)

        read.__annotations__["value"] = Annotated[Any, Depends(provider, scope="lifespan")]
        app.get(f"/{len(app.routes)}")(read)
    with TestClient(app) as client:
        for route in app.routes[-len(providers) :]:
            assert client.get(getattr(route, "path", "")).status_code == 200
    return values


def test_every_parameter_of_a_dependency_is_understood() -> None:
    shared, values = values_of(get_engine, get_model)

    engine, inferred, by_default, plain, app = values
    assert engine is by_default is shared
    assert type(inferred) is Engine
    assert inferred is not shared
    assert plain is None
    assert type(app) is LifespanFastAPI


@pytest.mark.parametrize(
    "provider",
    [
        get_scaled,
        functools.partial(get_scaled),
        wrapped(get_scaled),
        wrapped(functools.partial(get_scaled)),
        Reader(),
        Reader().read,
        functools.partial(Reader()),
    ],
    ids=["function", "partial", "wraps", "wraps of a partial", "instance", "method", "both"],
)
def test_a_name_for_type_checkers_does_not_hide_the_other_parameters(
    provider: Callable[..., Any],
) -> None:
    engine, value = values_of(get_engine, provider)

    assert value is engine


@pytest.mark.parametrize("provider", [Model, functools.partial(Model)])
def test_a_name_for_type_checkers_does_not_hide_the_other_parameters_of_a_class(
    provider: Callable[..., Any],
) -> None:
    engine, model = values_of(get_engine, provider)

    assert model.engine is engine


def test_a_local_class_works_where_the_dependency_is_given_as_default() -> None:
    class Local:
        pass

    def get_local(value: Local = Depends(Local, scope="lifespan")) -> Local:
        return value

    (value,) = values_of(get_local)

    assert type(value) is Local


def test_an_endpoint_may_have_postponed_annotations() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        engine: EngineDep,
        again: Annotated[Engine, Depends(get_engine, scope="lifespan")],
        inferred: Annotated[Engine, Depends(scope="lifespan")],
        by_default: Decimal = Depends(get_engine, scope="lifespan"),
    ) -> list[bool]:
        others: list[object] = [again, by_default, inferred]
        return [engine is other for other in others]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, True, False]


def get_request(request: Request) -> None: ...


def get_decimal(value: Decimal) -> None: ...


class NeedsRequest:
    def __init__(self, value: Request, scale: Decimal | None = None) -> None: ...


@pytest.mark.parametrize("provider", [get_request, get_decimal, NeedsRequest])
def test_what_belongs_to_a_request_is_an_error_all_the_same(provider: Callable[..., Any]) -> None:
    with pytest.raises(DependencyScopeError) as caught:
        values_of(provider)

    assert caught.value.provider is provider


# Circles


def get_chicken(
    egg: Annotated[object, Depends(get_egg, scope="lifespan")],  # pyright: ignore[reportUndefinedVariable]
) -> None: ...


def get_egg(chicken: Annotated[object, Depends(get_chicken, scope="lifespan")]) -> None: ...


def get_itself(
    itself: Annotated[object, Depends(get_itself, scope="lifespan")],  # pyright: ignore[reportUndefinedVariable]
) -> None: ...


def get_farm(egg: Annotated[object, Depends(get_egg, scope="lifespan")]) -> None: ...


class Left:
    def __init__(self, right: Annotated[Right, Depends(scope="lifespan")]) -> None: ...


class Right:
    def __init__(self, left: Annotated[Left, Depends(Left, scope="lifespan")]) -> None: ...


stock: Any = fastapi.Depends


def get_stock_circle(
    circle: Annotated[object, stock(get_stock_circle, scope="lifespan")],  # pyright: ignore[reportUndefinedVariable]
) -> None: ...


@pytest.mark.parametrize(
    ("provider", "labels", "calls"),
    [
        (get_itself, ["get_itself", "itself"], [get_itself] * 2),
        (get_chicken, ["get_chicken", "egg", "chicken"], [get_chicken, get_egg, get_chicken]),
        (get_farm, ["egg", "chicken", "egg"], [get_egg, get_chicken, get_egg]),
        (Left, ["Left", "right", "left"], [Left, Right, Left]),
        (get_stock_circle, ["get_stock_circle", "circle"], [get_stock_circle] * 2),
    ],
)
def test_a_circle_is_an_error_at_the_line_of_the_route(
    provider: Callable[..., Any], labels: list[str], calls: list[Callable[..., Any]]
) -> None:
    decorator = LifespanFastAPI().get("/", dependencies=[Depends(provider, scope="lifespan")])

    with pytest.raises(DependencyCycleError) as caught:
        decorator(lambda: None)

    assert [step.label for step in caught.value.path] == labels
    assert [step.call for step in caught.value.path] == calls
