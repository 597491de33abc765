"""Values are freed when they are dropped: by their reference count, without the collector."""

import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)
from tests.clients import running, settle

pytestmark = pytest.mark.anyio


class Model:
    def __init__(self, *parts: "Model") -> None:
        self.parts = parts


class Followed:
    """Makes models, and knows which of them are alive."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Model]] = []

    def make(self, *parts: Model) -> Model:
        model = Model(*parts)
        self.models.append(weakref.ref(model))
        return model

    @property
    def alive(self) -> int:
        return sum(model() is not None for model in self.models)

    async def fall_to(self, number: int) -> None:
        """Wait until so many are left: the last one may have to wait for a worker thread."""
        with anyio.fail_after(10):
            while self.alive > number:
                await anyio.to_thread.run_sync(int)
        assert self.alive == number


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps log records, and with them the tracebacks."""
    monkeypatch.setattr(logging.getLogger("fastapi_lifespan_deps"), "disabled", True)


def plain(followed: Followed) -> Callable[..., Any]:
    return lambda: followed.make()


def coroutine(followed: Followed) -> Callable[..., Any]:
    async def provide() -> Model:
        return followed.make()

    return provide


def generator(followed: Followed) -> Callable[..., Any]:
    def provide() -> Iterator[Model]:
        yield followed.make()

    return provide


def async_generator(followed: Followed) -> Callable[..., Any]:
    async def provide() -> AsyncIterator[Model]:
        model = followed.make()
        yield model

    return provide


KINDS = pytest.mark.parametrize("kind", [plain, coroutine, generator, async_generator])


class Example:
    """An application in which a service holds a model, and requests use both."""

    def __init__(self, kind: Callable[[Followed], Callable[..., Any]] = async_generator) -> None:
        self.followed = followed = Followed()
        self.get_model = get_model = kind(followed)

        def get_service(model: Annotated[Model, Depends(get_model, scope="lifespan")]) -> Model:
            return followed.make(model)

        async def get_session(
            service: Annotated[Model, Depends(get_service, scope="lifespan")],
        ) -> AsyncIterator[Model]:
            yield service

        self.get_service = get_service
        # of each thread that watches, coverage would remember something to the end
        self.app = app = LifespanFastAPI(slow_after=None)

        @app.get("/")
        async def read(
            model: Annotated[Model, Depends(get_model, scope="lifespan")],
            session: Annotated[Model, Depends(get_session)],
            container: Annotated[LifespanContainer, Depends(get_container)],
        ) -> bool:
            return container[get_service] is session and session.parts == (model,)

        @app.get("/other")
        async def read_other() -> str:
            return "fine"

    @property
    def overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        return self.app.dependency_overrides


@KINDS
async def test_after_shutdown(kind: Callable[[Followed], Callable[..., Any]]) -> None:
    example = Example(kind)
    for _ in range(2):
        async with running(example.app) as client:
            for _ in range(3):
                assert (await client.get("/")).json() is True
            assert example.followed.alive == 2
        await settle()
        await example.followed.fall_to(0)


@KINDS
async def test_after_a_fake_and_its_dependents_were_dropped(
    kind: Callable[[Followed], Callable[..., Any]],
) -> None:
    example = Example()
    async with running(example.app) as client:
        await client.get("/")
        for _ in range(3):
            example.overrides[example.get_model] = kind(example.followed)
            assert (await client.get("/")).json() is True
            assert example.followed.alive == 4
            example.overrides.clear()
            assert (await client.get("/")).json() is True
            await settle()
            await example.followed.fall_to(2)
    await settle()
    await example.followed.fall_to(0)


async def test_what_only_a_dropped_fake_refers_to() -> None:
    """The fake itself goes too, and with it what a lambda has closed over."""
    example = Example()

    def giving(model: Model) -> Callable[[], Model]:
        return lambda: model

    async with running(example.app) as client:
        for _ in range(3):
            example.overrides[example.get_model] = giving(example.followed.make())
            assert (await client.get("/")).json() is True
            await settle()
            await example.followed.fall_to(4)
        example.overrides.clear()
        await client.get("/")
        await settle()
        await example.followed.fall_to(2)


async def test_after_an_override_of_a_request_scoped_dependency_was_dropped() -> None:
    example = Example()

    async def session() -> None: ...

    @example.app.get("/session")
    async def read(session: Annotated[None, Depends(session)]) -> None: ...

    async with running(example.app) as client:
        get_extra = plain(example.followed)

        async def fake(extra: Annotated[Model, Depends(get_extra, scope="lifespan")]) -> None: ...

        for _ in range(3):
            example.overrides[session] = fake
            await client.get("/session")
            assert example.followed.alive == 3
            example.overrides.clear()
            await client.get("/session")
            await settle()
            await example.followed.fall_to(2)


async def test_switches_leave_no_objects_behind() -> None:
    example = Example()

    async def switch(client: Any) -> None:
        for _ in range(20):
            example.overrides[example.get_model] = plain(example.followed)
            assert (await client.get("/")).json() is True
            example.overrides.clear()
            assert (await client.get("/")).json() is True
        await settle()
        example.followed.models.clear()
        gc.collect()

    async with running(example.app) as client:
        await switch(client)
        before = len(gc.get_objects())
        await switch(client)
        assert len(gc.get_objects()) - before < 40


async def test_after_requests_that_failed() -> None:
    example = Example()

    @example.app.get("/fails")
    async def fail(
        model: Annotated[Model, Depends(example.get_model, scope="lifespan")],
        service: Annotated[Model, Depends(example.get_service, scope="lifespan")],
    ) -> None:
        raise ValueError("the request fails")

    async with running(example.app, raises=False) as client:
        example.overrides[example.get_model] = plain(example.followed)
        assert (await client.get("/fails")).status_code == 500
        example.overrides.clear()
        assert (await client.get("/")).json() is True
        await settle()
        gc.collect()  # FastAPI and Starlette leave cycles behind for a failed request
        await example.followed.fall_to(2)
    await settle()
    gc.collect()
    await example.followed.fall_to(0)


async def test_after_a_fake_that_failed(no_log: None) -> None:
    """What the fake had been given is not held by what it raised."""
    example = Example()

    def fails(
        part: Annotated[Model, Depends(plain(example.followed), scope="lifespan")],
    ) -> Model:
        raise ValueError("the fake fails")

    async with running(example.app) as client:
        example.overrides[example.get_model] = fails
        await client.get("/other")
        example.overrides.clear()
        assert (await client.get("/")).json() is True
        await settle()
        await example.followed.fall_to(2)
    await settle()
    await example.followed.fall_to(0)


async def test_after_a_startup_that_failed() -> None:
    example = Example()

    def fails(service: Annotated[Model, Depends(example.get_service, scope="lifespan")]) -> None:
        raise ValueError("the startup fails")

    @example.app.get("/fails")
    async def read(value: Annotated[None, Depends(fails, scope="lifespan")]) -> None: ...

    async def start() -> None:
        try:
            async with example.app.router.lifespan_context(example.app):
                raise AssertionError("it started")
        except ValueError:
            pass

    await start()
    await settle()
    gc.collect()  # frames of contextlib and asyncio refer to the exception that they raise
    assert len(example.followed.models) == 2
    await example.followed.fall_to(0)


async def test_after_a_stop_that_failed() -> None:
    example = Example()

    async def fails(
        service: Annotated[Model, Depends(example.get_service, scope="lifespan")],
    ) -> AsyncIterator[None]:
        yield
        raise ValueError("the stop fails")

    @example.app.get("/fails")
    async def read(value: Annotated[None, Depends(fails, scope="lifespan")]) -> None: ...

    async def run() -> None:
        try:
            async with example.app.router.lifespan_context(example.app):
                pass
        except ValueError:
            pass

    await run()
    await settle()
    await anyio.to_thread.run_sync(int)  # a worker thread may not have got to forgetting its job
    gc.collect()  # frames of contextlib and asyncio refer to the exception that they raise
    assert len(example.followed.models) == 2
    await example.followed.fall_to(0)


async def test_a_request_that_was_refused_holds_nothing() -> None:
    example = Example()
    async with running(example.app) as client:
        kept: list[UninitializedLifespanDependency] = []

        def fails() -> Model:
            raise ValueError("no")

        example.overrides[example.get_model] = fails
        for _ in range(3):
            with pytest.raises(UninitializedLifespanDependency) as caught:
                await client.get("/")
            kept.append(caught.value.with_traceback(None))
            del caught
        example.overrides.clear()
        await client.get("/")
    await settle()
    assert len(kept) == 3
    await example.followed.fall_to(0)


async def test_what_has_died_and_is_back(no_log: None) -> None:
    """Its error is raised at the end, and tells in a note where it was raised."""
    followed, dies = Followed(), list[anyio.Event]()

    async def get_model() -> AsyncIterator[Model]:
        async def die_when_told() -> None:
            await dies[-1].wait()
            raise ValueError("the model is broken")

        model = followed.make()
        dies.append(anyio.Event())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die_when_told)
            yield model
            tasks.cancel_scope.cancel()

    with pytest.raises(ExceptionGroup) as raised:
        async with LifespanContainer(get_model, slow_after=None) as view:
            for _ in range(3):
                dies[-1].set()
                await settle()
                await view.refresh(get_model)
                await settle()
                gc.collect()  # tasks of asyncio and trio refer to what they have raised
                await followed.fall_to(1)
    assert len(raised.value.exceptions) == 3
    for error in raised.value.exceptions:
        note = error.__notes__[-1]
        assert note.startswith("It was raised while the application served:\n")
        assert "in die_when_told" in note
        assert "ValueError: the model is broken" in note


async def test_what_has_failed_to_stop_while_others_serve(no_log: None) -> None:
    followed = Followed()

    async def get_model() -> AsyncIterator[Model]:
        model = followed.make()
        yield model
        raise ValueError(f"{type(model).__name__} cannot be left")

    with pytest.raises(ExceptionGroup) as raised:
        async with LifespanContainer(get_model, slow_after=None) as view:
            for _ in range(3):
                await (await view.refresh(get_model)).wait()
                await settle()
                gc.collect()
                await followed.fall_to(1)
    *earlier, last = raised.value.exceptions
    assert all("in get_model" in error.__notes__[-1] for error in earlier)
    assert last.__traceback__ is not None  # of the end itself nothing is kept for long
