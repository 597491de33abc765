"""Clause 9: what is wrong with an override, or odd about an object, hurts only what needs it."""

import functools
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from unittest.mock import MagicMock, Mock

import anyio
import pytest
from fastapi import Depends as FastAPIDepends
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from fastapi_lifespan_deps.exceptions import location_of, name_of
from tests.clients import Gate, running

pytestmark = pytest.mark.anyio


class Signature:
    __signature__ = 5

    def __call__(self) -> int:
        return 1


class Hash:
    def __hash__(self) -> int:
        raise ValueError("no hash")

    def __call__(self) -> int:
        return 1


class Equality:
    """As arrays are: they compare, but not to one truth value."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    def __call__(self) -> int:
        return 1


class Annotations:
    @property
    def __annotations__(self) -> Any:  # type: ignore[override]
        raise ValueError("no annotations")

    @property
    def __signature__(self) -> Any:
        raise ValueError("no signature")

    def __call__(self) -> int:
        return 1


class Everything:
    """It has every attribute, and each leads to another one."""

    def __getattr__(self, name: str) -> Any:
        return Everything()

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        return 1


class Itself:
    """It says that it wraps itself."""

    def __init__(self) -> None:
        self.__wrapped__ = self

    def __call__(self) -> int:
        return 1


class Raising:
    """It answers every question by an exception."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self) -> int:
        return 1


ODD = [Signature, Hash, Equality, Annotations, Everything, Itself, Raising, lambda: "no callable"]


class Application:
    """One that has two values, on routes of their own."""

    def __init__(self) -> None:
        async def get_model() -> AsyncIterator[int]:
            yield 1

        async def get_other() -> AsyncIterator[int]:
            yield 2

        async def get_user() -> int:
            return 3

        self.get_model, self.get_user = get_model, get_user
        self.gate = Gate()
        self.app = LifespanFastAPI()

        async def wait() -> None:
            await self.gate.wait()

        @self.app.get("/model")
        async def read_model(model: Annotated[int, Depends(get_model, scope="lifespan")]) -> int:
            return 1

        @self.app.get("/other")
        async def read_other(other: Annotated[int, Depends(get_other, scope="lifespan")]) -> int:
            return other

        @self.app.get("/user")
        async def read_user(
            waited: Annotated[None, FastAPIDepends(wait)],
            user: Annotated[int, FastAPIDepends(get_user)],
        ) -> int:
            return 3


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("when", ["first", "after another"])
async def test_an_odd_override_of_a_value_hurts_no_other(
    make: Callable[[], Any], when: str
) -> None:
    application = Application()
    overrides: dict[Any, Any] = application.app.dependency_overrides
    async with running(application.app, raises=False) as client:
        if when == "after another":
            overrides[application.get_model] = lambda: 5
            assert (await client.get("/model")).status_code == 200
        overrides[application.get_model] = make()
        for _ in range(2):
            assert (await client.get("/other")).json() == 2
        container = application.app.router.lifespan_container  # type: ignore[attr-defined]
        for one in (provider for _, provider in [("other", get_provider(application.app))]):
            await container.refresh(one)
        overrides[application.get_model] = make()  # another one
        assert (await client.get("/other")).json() == 2
        overrides.clear()
        assert (await client.get("/model")).json() == 1


def get_provider(app: FastAPI) -> Any:
    """What the route /other declares."""
    live = app.router.lifespan_runs.only.live  # type: ignore[attr-defined]
    return next(node.provider for node in live.instances if node.provider.__name__ == "get_other")


@pytest.mark.parametrize("make", ODD)
async def test_an_odd_override_for_requests_hurts_no_other(make: Callable[[], Any]) -> None:
    application = Application()
    overrides: dict[Any, Any] = application.app.dependency_overrides
    async with running(application.app, raises=False) as client:
        overrides[application.get_user] = make()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/user")
            await application.gate.hold()
            container = application.app.router.lifespan_container  # type: ignore[attr-defined]
            await container.refresh(application.get_model)  # it is looked up what the request holds
            assert (await client.get("/model")).json() == 1
            application.gate.open()


async def test_a_fake_that_declares_nonsense_hurts_no_other() -> None:
    application = Application()

    def fake(
        value: Annotated["Missing", Depends(scope="lifespan")],  # type: ignore[name-defined]  # noqa: F821
    ) -> None: ...

    async with running(application.app, raises=False) as client:
        application.app.dependency_overrides[application.get_user] = fake
        assert (await client.get("/other")).json() == 2


@pytest.mark.parametrize(
    "make",
    [
        MagicMock,
        Mock,
        Everything,
        lambda: MagicMock(spec=StaticFiles),
        lambda: MagicMock(spec=FastAPI),
        lambda: MagicMock(spec=LifespanFastAPI),
    ],
    ids=["MagicMock", "Mock", "Everything", "StaticFiles", "FastAPI", "LifespanFastAPI"],
)
async def test_an_application_with_a_mock_mounted_in_it_starts(make: Callable[[], Any]) -> None:
    application = Application()
    application.app.mount("/mock", make())
    async with running(application.app) as client:
        assert (await client.get("/other")).json() == 2


async def test_middleware_that_leads_to_itself_ends_the_walk() -> None:
    class Circle:
        def __init__(self) -> None:
            self.app = self

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    application = Application()
    application.app.mount("/circle", Circle())
    async with running(application.app) as client:
        assert (await client.get("/other")).json() == 2


@pytest.mark.parametrize("make", ODD)
def test_any_object_has_a_name_and_a_place(make: Callable[[], Any]) -> None:
    odd = make()
    assert name_of(odd)
    assert location_of(odd)


class Secretive(functools.partial[int]):
    """A partial that does not want to be looked into."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise AssertionError("nobody may look")
        return super().__getattribute__(name)

    def __call__(self) -> int:
        return super().__call__() + 100


def test_k4_a_dependency_that_cannot_be_looked_into_is_called_as_ever() -> None:
    app = LifespanFastAPI(dependencies=[Depends(object, scope="lifespan")])
    secretive = Secretive(lambda: 7)

    @app.get("/")
    async def read(number: Annotated[int, FastAPIDepends(secretive)]) -> int:
        return number

    with TestClient(app) as client:
        assert client.get("/").json() == 107
