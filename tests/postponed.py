"""Dependencies whose annotations are strings, some of them with names for type checkers alone.

They need a module of their own: the import below is for all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import fastapi
from fastapi import Request

from fastapi_lifespan_deps import Depends

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


def read_engines(
    engine: EngineDep,
    again: Annotated[Engine, Depends(get_engine, scope="lifespan")],
    inferred: Annotated[Engine, Depends(scope="lifespan")],
    by_default: Decimal = Depends(get_engine, scope="lifespan"),
) -> list[bool]:
    others: list[object] = [again, by_default, inferred]
    return [engine is other for other in others]


class Model:
    def __init__(self, engine: EngineDep, scale: Decimal | None = None) -> None:
        self.engine = engine


class Reader:
    def read(self, engine: EngineDep, scale: Decimal | None = None) -> Engine:
        return engine

    def __call__(self, engine: EngineDep, scale: Decimal | None = None) -> Engine:
        return engine


def get_scaled(engine: EngineDep, scale: Decimal | None = None) -> Engine:
    return engine


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def local() -> tuple[type, Callable[..., Any]]:
    """A class that only this function knows, and a dependency that gives one."""

    class Local:
        pass

    def get_local(value: Local = Depends(Local, scope="lifespan")) -> Local:
        return value

    return Local, get_local


# What belongs to a request


def get_request(request: Request) -> None: ...


def get_decimal(value: Decimal) -> None: ...


class NeedsRequest:
    def __init__(self, value: Request, scale: Decimal | None = None) -> None: ...


# Circles, which only such annotations can make


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
