"""Clause 14: a value lives as long as a request may use it, whichever way it comes to it."""

import asyncio
import functools
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import GeneratorType
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi import Depends as FastAPIDepends
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    UninitializedLifespanDependency,
    get_container,
)
from tests.clients import Gate, Thing, client_of, listen, running, settle
from tests.refreshing import connect

pytestmark = pytest.mark.anyio
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Held:
    """An application with a model, and gates where its routes wait while that is refreshed."""

    def __init__(self, **options: Any) -> None:
        self.models: list[Thing] = []
        self.gate = Gate()
        self.answers: list[str] = []
        self.app = LifespanFastAPI(**options)

        async def get_model() -> AsyncIterator[Thing]:
            model = Thing(f"model {len(self.models) + 1}")
            self.models.append(model)
            yield model
            model.closed = True

        self.get_model = get_model
        self.uses_model = Depends(get_model, scope="lifespan")

        @self.app.get("/model")
        async def read_model(model: Annotated[Thing, self.uses_model]) -> str:
            return await self.wait(model)

    async def wait(self, model: Thing) -> str:
        """Use the model, before the gate and behind it."""
        before = str(model)
        await self.gate.wait()
        return f"{before}, {model}"

    async def refresh(self, **options: Any) -> None:
        await self.app.lifespan_container.refresh(self.get_model, **options)
        await settle()

    @property
    def alive(self) -> list[str]:
        return [model.name for model in self.models if not model.closed]

    @asynccontextmanager
    async def asking(
        self, ask: Callable[[httpx.AsyncClient], Awaitable[httpx.Response | None]]
    ) -> AsyncIterator[None]:
        """Run the application, and be in the middle of a request; see that it is answered."""
        with anyio.fail_after(20):
            async with running(self.app) as client, anyio.create_task_group() as tasks:

                async def send() -> None:
                    response = await ask(client)
                    if response is not None:
                        self.answers.append(response.text.strip('"'))

                tasks.start_soon(send)
                await self.gate.hold()
                yield
                self.gate.open()

    async def check_held(self, path: str, *, first: int = 1) -> None:
        """A request keeps the model that it has found, and no longer than it lasts."""
        async with self.asking(lambda client: client.get(path)):
            await self.refresh()
            await self.refresh()
            assert self.alive == [f"model {first}", "model 3"]
        assert self.answers == [f"model {first}, model {first}"]
        assert self.alive == []


# A request that is passed on with a copy of its scope


def by_a_mounted_alias(app: FastAPI) -> str:
    async def alias(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope, path="/model", root_path=""), receive, send)

    app.mount("/alias", alias)
    return "/alias/model"


def by_an_endpoint(app: FastAPI) -> str:
    class Forward(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(dict(scope, path="/model"), receive, send)

    @app.get("/forward")
    async def forward() -> Response:
        return Forward()

    return "/forward"


def by_two_endpoints(app: FastAPI) -> str:
    class Forward(Response):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(dict(scope, path=self.path), receive, send)

    app.get("/second", response_class=Response)(lambda: Forward("/model"))
    app.get("/first", response_class=Response)(lambda: Forward("/second"))
    return "/first"


def by_the_middleware_of_a_mounted_application(app: FastAPI) -> str:
    model_route = next(route for route in app.routes if getattr(route, "path", "") == "/model")
    router = APIRouter()
    router.add_api_route("/model", model_route.endpoint)  # type: ignore[attr-defined]

    class Copying:
        def __init__(self, inner: ASGIApp) -> None:
            self.inner = inner

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.inner(dict(scope), receive, send)

    mounted = FastAPI()
    mounted.include_router(router)
    mounted.add_middleware(Copying)
    app.mount("/mounted", mounted)
    return "/mounted/model"


@pytest.mark.parametrize(
    "pass_on",
    [
        by_a_mounted_alias,
        by_an_endpoint,
        by_two_endpoints,
        by_the_middleware_of_a_mounted_application,
    ],
)
async def test_what_a_request_is_passed_on_to_is_held(pass_on: Callable[[FastAPI], str]) -> None:
    held = Held()
    await held.check_held(pass_on(held.app))


async def test_what_a_websocket_is_passed_on_to_is_held() -> None:
    held = Held()

    @held.app.websocket("/ws/model")
    async def serve(websocket: WebSocket, model: Annotated[Thing, held.uses_model]) -> None:
        await websocket.accept()
        await websocket.send_text(await held.wait(model))

    async def alias(scope: Scope, receive: Receive, send: Send) -> None:
        await held.app(dict(scope, path="/ws/model", root_path=""), receive, send)

    held.app.mount("/alias", alias)

    async def ask(client: httpx.AsyncClient) -> None:
        await listen(held.app, "/alias/x", held.answers)

    async with held.asking(ask):
        await held.refresh()
        assert held.alive == ["model 1", "model 2"]
    assert held.answers == ["model 1, model 1"]


async def test_a_request_that_is_passed_on_late_gets_what_there_is() -> None:
    """The values of its own generation are gone: no route that it has been on needed them."""
    held = Held()
    before = Gate()

    class Forward(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await before.wait()
            await held.app(dict(scope, path="/model"), receive, send)

    @held.app.get("/late")
    async def forward() -> Response:
        return Forward()

    held.gate.open()
    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers.append((await client.get("/late")).json())

        tasks.start_soon(send)
        await before.hold()
        await held.refresh()
        assert held.alive == ["model 2"]
        before.open()
    assert held.answers == ["model 2, model 2"]


async def test_a_request_that_is_passed_on_from_a_former_generation_stays_in_it() -> None:
    held = Held()
    before = Gate()

    class Forward(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await before.wait()
            await held.app(dict(scope, path="/model"), receive, send)

    @held.app.get("/first")
    async def forward(model: Annotated[Thing, held.uses_model]) -> Response:
        return Forward()

    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers.append((await client.get("/first")).json())

        tasks.start_soon(send)
        await before.hold()
        await held.refresh()
        before.open()
        await held.gate.hold()
        await held.refresh()
        assert held.alive == ["model 1", "model 3"]
        held.gate.open()
    assert held.answers == ["model 1, model 1"]


@pytest.mark.parametrize("kind", [FastAPI, LifespanFastAPI])
async def test_a_request_that_sends_a_copy_ahead_gets_its_own_values(kind: type[FastAPI]) -> None:
    """The middleware of a mounted application asks another route first, and is refreshed then."""
    held = Held()
    between = Gate()
    mounted = kind()

    @mounted.get("/auth")
    async def authorize() -> None: ...

    @mounted.get("/model")
    async def read(model: Annotated[Thing, held.uses_model]) -> str:
        return await held.wait(model)

    class Authorizing:
        def __init__(self, inner: ASGIApp) -> None:
            self.inner = inner

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def ignore(message: Any) -> None: ...

            await self.inner(dict(scope, path="/mounted/auth"), receive, ignore)
            await between.wait()
            await self.inner(scope, receive, send)

    mounted.add_middleware(Authorizing)
    held.app.mount("/mounted", mounted)
    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers.append((await client.get("/mounted/model")).json())

        tasks.start_soon(send)
        await between.hold()
        await held.refresh()
        between.open()
        await held.gate.hold()
        await held.refresh()
        assert held.alive == ["model 1", "model 3"]
        held.gate.open()
    assert held.answers == ["model 1, model 1"]


async def test_a_request_that_comes_again_with_the_same_scope_holds_both() -> None:
    held = Held()
    inner = Gate()

    @held.app.get("/inner")
    async def wait(model: Annotated[Thing, held.uses_model]) -> str:
        await inner.wait()
        return str(model)

    class Forward(Response):
        def __init__(self, model: Thing) -> None:
            super().__init__()
            self.model = model

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def ignore(message: Any) -> None: ...

            scope["path"] = "/inner"
            await held.app(scope, receive, ignore)
            await held.wait(self.model)
            await Response(str(self.model))(scope, receive, send)

    @held.app.get("/outer")
    async def forward(model: Annotated[Thing, held.uses_model]) -> Response:
        return Forward(model)

    inner.open()
    async with held.asking(lambda client: client.get("/outer")):
        await held.refresh()
        assert held.alive == ["model 1", "model 2"]
    assert held.answers == ["model 1"]


async def test_a_request_that_is_sent_to_another_application_keeps_its_own_values() -> None:
    held, other = Held(), Held()

    class Forward(Response):
        def __init__(self, model: Thing) -> None:
            super().__init__()
            self.model = model

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["path"] = "/model"
            await other.app(scope, receive, send)
            held.answers.append(str(self.model))

    @held.app.get("/outer")
    async def forward(model: Annotated[Thing, held.uses_model]) -> Response:
        return Forward(model)

    held.gate = other.gate
    async with running(other.app), held.asking(lambda client: client.get("/outer")):
        await held.refresh()
        assert held.alive == ["model 1", "model 2"]
        await other.refresh()
        assert other.alive == ["model 1", "model 2"]
    assert held.answers == ["model 1", "model 1, model 1"]


def async_endpoint(held: Held, app: FastAPI) -> None:
    @app.get("/model")
    async def read(model: Annotated[Thing, held.uses_model]) -> str:
        return await held.wait(model)


def sync_endpoint_of_a_copy(held: Held, app: FastAPI) -> None:
    @app.get("/model")
    def read(model: Annotated[Thing, held.uses_model]) -> str:
        return anyio.from_thread.run(held.wait, model)


@pytest.mark.parametrize("declare", [async_endpoint, sync_endpoint_of_a_copy])
async def test_what_a_copy_comes_to_in_a_plain_mounted_application_is_held(
    declare: Callable[[Held, FastAPI], None],
) -> None:
    """No router of ours is told of it."""
    held = Held()
    mounted = FastAPI()
    declare(held, mounted)

    class Forward(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await mounted(dict(scope, path="/model", root_path=""), receive, send)

    @mounted.get("/forward")
    async def forward() -> Response:
        return Forward()

    held.app.mount("/mounted", mounted)
    await held.check_held("/mounted/forward")


# A container that is asked for by hand


def route_of_fastapi(held: Held) -> str:
    @held.app.get("/by-hand")
    async def by_hand(request: Request) -> str:
        return await held.wait((await get_container(request))[held.get_model])

    return "/by-hand"


def route_of_starlette(held: Held) -> str:
    async def by_hand(request: Request) -> JSONResponse:
        return JSONResponse(await held.wait((await get_container(request))[held.get_model]))

    held.app.router.routes.append(Route("/starlette", by_hand))
    return "/starlette"


def route_of_a_mounted_starlette(held: Held) -> str:
    async def by_hand(request: Request) -> JSONResponse:
        scope = dict(request.scope, app=held.app)
        return JSONResponse(await held.wait((await get_container(Request(scope)))[held.get_model]))

    held.app.mount("/mounted", Starlette(routes=[Mount("/a", routes=[Route("/b", by_hand)])]))
    return "/mounted/a/b"


BY_HAND = pytest.mark.parametrize(
    "route", [route_of_fastapi, route_of_starlette, route_of_a_mounted_starlette]
)


@BY_HAND
async def test_a_container_by_hand_holds_what_it_gives(route: Callable[[Held], str]) -> None:
    held = Held()
    await held.check_held(route(held))


async def test_a_container_by_hand_holds_from_the_moment_on_when_it_is_asked_for() -> None:
    held = Held()
    before, asked = Gate(), Gate()

    @held.app.get("/by-hand")
    async def by_hand(request: Request) -> list[str]:
        await before.wait()
        first = await get_container(request)
        found = [str(first[held.get_model])]
        await asked.wait()
        second = await get_container(request)
        found += [str(first[held.get_model]), str(second[held.get_model])]
        return found

    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers += (await client.get("/by-hand")).json()

        tasks.start_soon(send)
        await before.hold()
        await held.refresh()
        assert held.alive == ["model 2"]  # nobody knew that it would ask
        before.open()
        await asked.hold()
        await held.refresh()
        assert held.alive == ["model 2", "model 3"]
        asked.open()
    assert held.answers == ["model 2"] * 3


async def test_a_container_by_hand_gives_what_there_is_after_its_values_were_taken_away() -> None:
    held = Held()
    asked = [Gate(), Gate()]

    @held.app.get("/by-hand")
    async def by_hand(request: Request, model: Annotated[Thing, held.uses_model]) -> list[str]:
        found = []
        for gate in asked:
            container = await get_container(request)
            found.append(str(container[held.get_model]))
            await gate.wait()
        found.append(str((await get_container(request))[held.get_model]))
        return found

    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers += (await client.get("/by-hand")).json()

        tasks.start_soon(send)
        for number, gate in enumerate(asked):
            await gate.hold()
            draining = await held.app.lifespan_container.refresh(held.get_model, drain_timeout=0)
            await draining.wait()
            assert held.alive == [f"model {number + 2}"]
            gate.open()
    assert held.answers == ["model 1", "model 2", "model 3"]
    assert held.alive == []


async def test_a_container_that_is_declared_goes_on_giving_what_the_request_sees() -> None:
    held = Held()

    async def get_other() -> str:
        return "other"

    @held.app.get("/other")
    async def read_other(other: Annotated[str, Depends(get_other, scope="lifespan")]) -> str:
        return other

    @held.app.get("/declared")
    async def declared(
        request: Request, container: Annotated[LifespanContainer, FastAPIDepends(get_container)]
    ) -> list[str]:
        await held.gate.wait()
        again = await get_container(request)
        with pytest.raises(UninitializedLifespanDependency, match="has been stopped"):
            again[held.get_model]
        return [container[get_other], again[get_other]]

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/declared")

    async with held.asking(ask):
        draining = await held.app.lifespan_container.refresh(held.get_model, drain_timeout=0)
        await draining.wait()
    assert held.answers == ['["other","other"]']


async def test_after_a_request_has_asked_for_a_refresh_its_container_holds_nothing() -> None:
    held = Held()

    @held.app.get("/by-hand")
    async def by_hand(request: Request) -> list[str]:
        container = await get_container(request)
        found = [str(container[held.get_model])]
        await container.refresh(held.get_model)
        found.append(str(container[held.get_model]))
        await held.gate.wait()
        return [*found, str((await get_container(request))[held.get_model])]

    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            held.answers += (await client.get("/by-hand")).json()

        tasks.start_soon(send)
        await held.gate.hold()
        await settle()
        assert held.alive == ["model 2"]
        held.gate.open()
    assert held.answers == ["model 1", "model 2", "model 2"]


# A thread that outlives its request


class Worker:
    """What runs in a worker thread: it uses the model, waits, and uses it again."""

    def __init__(self) -> None:
        self.entered = anyio.Event()
        self.go_on = threading.Event()
        self.ended = anyio.Event()
        self.seen: list[str] = []

    def use(self, model: Thing) -> None:
        name = str(model)
        anyio.from_thread.run_sync(self.entered.set)
        self.go_on.wait(20)
        self.seen.append(f"{name}, {'closed' if model.closed else 'alive'}")
        anyio.from_thread.run_sync(self.ended.set)


def sync_endpoint(held: Held, worker: Worker) -> None:
    @held.app.get("/thread")
    def use(model: Annotated[Thing, held.uses_model]) -> None:
        worker.use(model)


def sync_endpoint_with_a_dependency(held: Held, worker: Worker) -> None:
    async def get_session(model: Annotated[Thing, held.uses_model]) -> Thing:
        return model

    @held.app.get("/thread")
    def use(session: Annotated[Thing, FastAPIDepends(get_session)]) -> None:
        worker.use(session)


def sync_dependency(held: Held, worker: Worker) -> None:
    def get_session(model: Annotated[Thing, held.uses_model]) -> None:
        worker.use(model)

    @held.app.get("/thread")
    async def use(session: Annotated[None, FastAPIDepends(get_session)]) -> None: ...


def sync_dependency_of_a_dependency(held: Held, worker: Worker) -> None:
    async def get_session(model: Annotated[Thing, held.uses_model]) -> Thing:
        return model

    def get_user(session: Annotated[Thing, FastAPIDepends(get_session)]) -> None:
        worker.use(session)

    @held.app.get("/thread")
    async def use(user: Annotated[None, FastAPIDepends(get_user)]) -> None: ...


def class_as_dependency(held: Held, worker: Worker) -> None:
    class Session:
        def __init__(self, model: Annotated[Thing, held.uses_model]) -> None:
            worker.use(model)

    @held.app.get("/thread")
    async def use(session: Annotated[Session, FastAPIDepends()]) -> None: ...


def sync_generator(held: Held, worker: Worker) -> None:
    def get_session(model: Annotated[Thing, held.uses_model]) -> Iterator[None]:
        worker.use(model)
        yield

    @held.app.get("/thread")
    async def use(session: Annotated[None, FastAPIDepends(get_session)]) -> None: ...


def sync_endpoint_with_the_container(held: Held, worker: Worker) -> None:
    @held.app.get("/thread")
    def use(container: Annotated[LifespanContainer, FastAPIDepends(get_container)]) -> None:
        worker.use(container[held.get_model])


def sync_dependency_with_the_container(held: Held, worker: Worker) -> None:
    def get_session(
        container: Annotated[LifespanContainer, FastAPIDepends(get_container)],
    ) -> None:
        worker.use(container[held.get_model])

    @held.app.get("/thread")
    async def use(session: Annotated[None, FastAPIDepends(get_session)]) -> None: ...


def included_sync_endpoint(held: Held, worker: Worker) -> None:
    router = APIRouter()

    @router.get("/thread")
    def use(model: Annotated[Thing, held.uses_model]) -> None:
        worker.use(model)

    held.app.include_router(router)


THREADS = pytest.mark.parametrize(
    "declare",
    [
        sync_endpoint,
        sync_endpoint_with_a_dependency,
        sync_dependency,
        sync_dependency_of_a_dependency,
        class_as_dependency,
        sync_generator,
        sync_endpoint_with_the_container,
        sync_dependency_with_the_container,
        included_sync_endpoint,
    ],
)


@asyncio_only
@THREADS
@pytest.mark.parametrize("refreshes_before", [False, True])
async def test_a_thread_that_outlives_its_request_keeps_what_it_uses(
    declare: Callable[[Held, Worker], None], refreshes_before: bool
) -> None:
    held, worker = Held(), Worker()
    declare(held, worker)
    async with running(held.app) as client:
        request = asyncio.create_task(client.get("/thread"))
        await worker.entered.wait()
        if refreshes_before:
            await held.refresh()
        request.cancel()  # as asyncio.wait_for does it
        with pytest.raises(asyncio.CancelledError):
            await request
        await held.refresh()
        assert held.alive == ["model 1", held.models[-1].name]
        worker.go_on.set()
        await worker.ended.wait()
        while len(held.alive) > 1:
            await anyio.lowlevel.checkpoint()
    assert worker.seen == ["model 1, alive"]
    assert held.alive == []


@asyncio_only
async def test_a_sync_generator_that_is_cut_off_keeps_what_it_uses_until_it_is_closed() -> None:
    """Python closes it, in the thread that has outlived the request."""
    held, worker = Held(), Worker()

    def get_session(model: Annotated[Thing, held.uses_model]) -> Iterator[None]:
        try:
            worker.use(model)
            yield
        finally:
            worker.seen.append("closed" if model.closed else "alive")

    @held.app.get("/thread")
    async def use(session: Annotated[None, FastAPIDepends(get_session)]) -> None: ...

    async with running(held.app) as client:
        request = asyncio.create_task(client.get("/thread"))
        await worker.entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await held.refresh()
        worker.go_on.set()
        while len(held.alive) > 1:
            gc.collect()
            await anyio.lowlevel.checkpoint()
    assert worker.seen == ["model 1, alive", "alive"]


@asyncio_only
async def test_a_shutdown_does_not_wait_for_a_thread() -> None:
    held, worker = Held(), Worker()
    sync_endpoint(held, worker)
    async with running(held.app) as client:
        request = asyncio.create_task(client.get("/thread"))
        await worker.entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert held.alive == []
    worker.go_on.set()
    await worker.ended.wait()
    assert worker.seen == ["model 1, closed"]


@asyncio_only
async def test_a_route_that_gives_up_its_endpoint_answers_and_the_thread_goes_on() -> None:
    """The request ends without an exception."""
    held, worker = Held(), Worker()
    entered = worker.entered

    class Impatient(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            handle = super().get_route_handler()

            async def give_up(request: Request) -> Response:
                task = asyncio.ensure_future(handle(request))
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return Response("too late", 504)

            return give_up

    held.app.router.route_class = Impatient
    sync_endpoint(held, worker)
    async with running(held.app) as client:
        assert (await client.get("/thread")).status_code == 504
        await held.refresh()
        assert held.alive == ["model 1", "model 2"]
        worker.go_on.set()
        await worker.ended.wait()
        while len(held.alive) > 1:
            await anyio.lowlevel.checkpoint()
    assert worker.seen == ["model 1, alive"]


@pytest.mark.parametrize("declare", [sync_endpoint_with_a_dependency, sync_dependency])
async def test_what_runs_in_a_thread_works_where_the_application_does_not_run(
    declare: Callable[[Held, Worker], None],
) -> None:
    held, worker = Held(), Worker()
    worker.go_on.set()
    declare(held, worker)
    async with running(held.app) as client:
        assert (await client.get("/thread")).status_code == 200
    async with client_of(held.app) as client:
        with pytest.raises(UninitializedLifespanDependency, match="not running"):
            await client.get("/thread")


async def test_a_sync_endpoint_needs_no_values_where_its_dependency_is_overridden() -> None:
    held = Held()

    async def get_session(model: Annotated[Thing, held.uses_model]) -> Thing:
        return model

    @held.app.get("/thread")
    def use(session: Annotated[Thing, FastAPIDepends(get_session)]) -> str:
        return str(session)

    async with running(held.app) as client:
        assert (await client.get("/thread")).json() == "model 1"
    held.app.dependency_overrides[get_session] = lambda: "fake"
    async with client_of(held.app) as client:
        assert (await client.get("/thread")).json() == "fake"


async def test_a_sync_endpoint_may_be_any_wrapper() -> None:
    held = Held()

    async def get_session(model: Annotated[Thing, held.uses_model]) -> str:
        return str(model)

    def read(session: Annotated[str, FastAPIDepends(get_session)], times: int = 1) -> str:
        return session * times

    @functools.wraps(functools.partial(read, times=2))
    def wrapped(session: str, times: int) -> str:
        return read(session, times)

    held.app.get("/wrapped")(wrapped)
    held.app.get("/partial")(functools.partial(read, times=2))
    async with running(held.app) as client:
        for path in ("/wrapped", "/partial"):
            assert (await client.get(path)).json() == "model 1model 1"


async def test_a_sync_generator_endpoint_that_is_not_read_to_its_end() -> None:
    held = Held()

    def get_session(model: Annotated[Thing, held.uses_model]) -> Iterator[Thing]:
        yield model

    @held.app.get("/model/name")
    async def read(session: Annotated[Thing, FastAPIDepends(get_session)]) -> str:
        return str(session)

    async with running(held.app) as client:
        assert (await client.get("/model/name")).json() == "model 1"
        route = next(one for one in held.app.routes if getattr(one, "path", "") == "/model/name")
        [dependency] = route.dependant.dependencies  # type: ignore[attr-defined]
        generators: list[Any] = []

        @held.app.get("/open")
        async def leave_open(request: Request) -> None:
            name = dependency.http_connection_param_name
            generator = dependency.call(**{name: request})
            generators.append(next(generator))
            generator.close()

        assert (await client.get("/open")).status_code == 200
    assert generators == held.models


async def test_a_value_that_is_about_to_be_stopped_is_given_to_nobody() -> None:
    """Its last holder has gone; what stops it has not had its turn yet."""
    held = Held()
    both = anyio.Event()
    waiting = 0

    @held.app.get("/holds")
    async def hold(model: Annotated[Thing, held.uses_model]) -> None:
        nonlocal waiting
        waiting += 1
        await both.wait()

    @held.app.get("/by-hand")
    async def by_hand(request: Request) -> str:
        nonlocal waiting
        waiting += 1
        await both.wait()
        return await held.wait((await get_container(request))[held.get_model])

    async with running(held.app) as client, anyio.create_task_group() as tasks:

        async def send(path: str) -> None:
            held.answers.append((await client.get(path)).text)

        for number, path in enumerate(("/holds", "/by-hand")):
            tasks.start_soon(send, path)
            while waiting <= number:
                await anyio.lowlevel.checkpoint()
        await held.refresh()
        both.set()  # both go on in the same turn
        await held.gate.hold()
        await settle()
        held.gate.open()
    assert held.answers[1] in ('"model 1, model 1"', '"model 2, model 2"')


@pytest.mark.parametrize("depends", [False, True])
async def test_what_a_sync_callable_returns_is_left_alone(depends: bool) -> None:
    """Also a generator, which is a value like others."""
    held = Held()
    kinds: list[type] = []

    def get_rows(model: Annotated[Thing, held.uses_model]) -> Iterator[int]:
        return (number for number in range(3))

    @held.app.get("/rows")
    def read(rows: Annotated[Any, FastAPIDepends(get_rows)]) -> Any:
        kinds.append(type(rows))
        return rows if depends else (number for number in range(3))

    async with running(held.app) as client:
        assert (await client.get("/rows")).json() == [0, 1, 2]
    assert kinds == [GeneratorType]


async def test_a_sync_generator_sees_the_exception_and_leaves_as_in_fastapi() -> None:
    held = Held()
    steps: list[str] = []

    def get_session(model: Annotated[Thing, held.uses_model]) -> Iterator[Thing]:
        try:
            yield model
        except KeyError as error:
            steps.append(f"raised {error}")
            raise HTTPException(418) from error
        finally:
            steps.append(f"left with {model}")

    @held.app.get("/works")
    async def works(session: Annotated[Thing, FastAPIDepends(get_session)]) -> str:
        return str(session)

    @held.app.get("/fails")
    async def fails(session: Annotated[Thing, FastAPIDepends(get_session)]) -> None:
        raise KeyError("oh")

    async with running(held.app) as client:
        assert (await client.get("/works")).json() == "model 1"
        assert (await client.get("/fails")).status_code == 418
    assert steps == ["left with model 1", "raised 'oh'", "left with model 1"]


@pytest.mark.parametrize("is_copy", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_is_asked_for_after_a_request_has_ended_is_refused(
    is_copy: bool, kind: str
) -> None:
    """Its values may be gone. FastAPI gives up the call of a thread that comes too late."""
    held = Held()
    key = "fastapi_lifespan_deps"
    requests: list[tuple[Request, Any]] = []

    def use(request: Request, model: Annotated[Thing, held.uses_model]) -> None:
        scope = dict(request.scope) if is_copy else request.scope
        requests.append((Request(scope), scope[key]))

    async def use_async(request: Request, model: Annotated[Thing, held.uses_model]) -> None:
        use(request, model)

    held.app.get("/late")(use if kind == "sync" else use_async)
    async with running(held.app) as client:
        await client.get("/late")
        route = next(one for one in held.app.routes if getattr(one, "path", "") == "/late")
        dependant: Any = route.dependant  # type: ignore[attr-defined]
        [(request, pin)] = requests
        request.scope[key] = pin  # as it was
        names = dependant.request_param_name, dependant.http_connection_param_name
        values = {name: request for name in names if name is not None}
        if kind == "async" and not is_copy:
            await dependant.call(**values)  # it has the values that are there
            return
        with pytest.raises(LifespanDependencyError, match="GET /late has ended"):
            await anyio.to_thread.run_sync(lambda: dependant.call(**values))


# A WebSocket's own refusal


async def test_a_websocket_keeps_its_own_503_while_another_value_is_withdrawn() -> None:
    held = Held()

    async def refuse() -> None:
        raise HTTPException(503, "busy", headers={"X-Reason": "mine"})

    @held.app.websocket("/own")
    async def own(websocket: WebSocket, refused: Annotated[None, FastAPIDepends(refuse)]) -> None:
        raise AssertionError("it was refused")

    @held.app.websocket("/ours")
    async def ours(websocket: WebSocket, model: Annotated[Thing, held.uses_model]) -> None:
        raise AssertionError("it has no value")

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/model")

    async with held.asking(ask), anyio.create_task_group() as tasks:
        before = await connect(held.app, "/own")

        async def refresh() -> None:
            await held.refresh(policy="resource_preserving")

        tasks.start_soon(refresh)
        await settle()
        assert await connect(held.app, "/own") == before
        assert before[0]["status"] == 503
        assert (b"x-reason", b"mine") in before[0]["headers"]
        closed = await connect(held.app, "/ours")
        assert [message["type"] for message in closed] == ["websocket.accept", "websocket.close"]
        assert closed[1]["code"] == 1013
        held.gate.open()


async def test_a_websocket_keeps_a_503_that_it_makes_of_ours() -> None:
    held = Held()

    async def use(request: WebSocket) -> None:
        try:
            (await get_container(request))[held.get_model]
        except HTTPException as error:
            raise HTTPException(503, "mine") from error

    @held.app.websocket("/own")
    async def own(websocket: WebSocket, used: Annotated[None, FastAPIDepends(use)]) -> None:
        raise AssertionError("it was refused")

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/model")

    async with held.asking(ask), anyio.create_task_group() as tasks:

        async def refresh() -> None:
            await held.refresh(policy="resource_preserving")

        tasks.start_soon(refresh)
        await settle()
        messages = await connect(held.app, "/own")
        assert messages[0]["type"] == "websocket.http.response.start"
        assert messages[0]["status"] == 503
        held.gate.open()
