"""What `container[provider]` is, for each kind of provider."""

import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from fastapi_lifespan_deps import LifespanContainer


class Service:
    pass


class ServiceProtocol(Protocol):
    def serve(self) -> None: ...


@dataclass
class Config:
    retries: int = 3


def get_service(retries: int = 3) -> Service:
    return Service()


def get_protocol() -> ServiceProtocol:
    raise NotImplementedError


def get_optional() -> Service | None:
    return None


def get_any() -> Any:
    return None


def get_list() -> list[int]:
    return []


def get_iterable() -> Iterable[int]:
    return []


def get_callable() -> Callable[[], int]:
    raise NotImplementedError


async def get_service_async() -> Service:
    return Service()


async def get_list_async() -> list[int]:
    return []


def get_awaitable() -> Awaitable[Service]:
    return get_service_async()


def iterate() -> Iterator[Service]:
    yield Service()


def generate(retries: int = 3) -> Generator[Service, None, None]:
    yield Service()


async def iterate_async() -> AsyncIterator[Service]:
    yield Service()


async def generate_async() -> AsyncGenerator[Service, None]:
    yield Service()


@contextmanager
def manage() -> Iterator[Service]:
    yield Service()


@asynccontextmanager
async def manage_async() -> AsyncIterator[Service]:
    yield Service()


class Factory:
    def __call__(self) -> Service:
        return Service()

    def get(self) -> Service:
        return Service()

    async def generate(self) -> AsyncIterator[Service]:
        yield Service()

    @classmethod
    def create(cls) -> Service:
        return Service()


class AsyncFactory:
    async def __call__(self) -> Service:
        return Service()


def check(container: LifespanContainer) -> None:
    assert_type(container[Service], Service)
    assert_type(container[Config], Config)
    assert_type(container[get_service], Service)
    assert_type(container[get_protocol], ServiceProtocol)
    assert_type(container[get_optional], Service | None)
    assert_type(container[get_any], Any)
    assert_type(container[get_list], list[int])
    assert_type(container[get_iterable], Iterable[int])
    assert_type(container[get_callable], Callable[[], int])
    assert_type(container[get_service_async], Service)
    assert_type(container[get_list_async], list[int])
    assert_type(container[get_awaitable], Service)
    assert_type(container[iterate], Service)
    assert_type(container[generate], Service)
    assert_type(container[iterate_async], Service)
    assert_type(container[generate_async], Service)
    assert_type(container[manage], Service)
    assert_type(container[manage_async], Service)
    assert_type(container[Factory()], Service)
    assert_type(container[Factory().get], Service)
    assert_type(container[Factory().generate], Service)
    assert_type(container[Factory.create], Service)
    assert_type(container[AsyncFactory()], Service)
    assert_type(container[functools.partial(get_service, 3)], Service)
    assert_type(container[functools.partial(generate, 3)], Service)
    assert_type(container[lambda: Service()], Service)

    assert_type(get_service in container, bool)
    assert_type(container.get(get_service), Service | None)
    assert_type(container.get(iterate_async), Service | None)
    assert_type(container.get(Service, None), Service | None)
    assert_type(container.get(get_service, 3), Service | int)

    container[3]  # type: ignore[call-overload]
