"""Clauses 1, 4, 9 and 10: what other libraries do to routes, routers and declarations.

Small stand-ins for their ways of working; `scripts/ecosystem` runs their own tests.
"""

import copy
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from fastapi.params import Depends as DependsClass
from fastapi.testclient import TestClient
from starlette.routing import Router

from fastapi_lifespan_deps import (
    Depends,
    LifespanEvent,
    LifespanFastAPI,
    enable_lifespan_scope,
    lifespan_container,
)

pytestmark = pytest.mark.anyio


class Client:
    made = 0

    def __init__(self) -> None:
        Client.made += 1
        self.number = Client.made


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Client.made = 0


async def get_client() -> AsyncIterator[Client]:
    yield Client()


def lifespan(**options: Any) -> DependsClass:
    declaration: DependsClass = Depends(get_client, scope="lifespan", **options)
    return declaration


def endpoint(declaration: DependsClass) -> Any:
    async def read(client: Any) -> int:
        return client.number  # type: ignore[no-any-return]

    read.__annotations__["client"] = Annotated[Client, declaration]
    return read


# K13: wrapped and rebuilt, as Cadwyn does it for each version of an API.


class CallableWrapper:
    """Stands for a callable, and equals it."""

    def __init__(self, original: Any) -> None:
        self._original_callable = original

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._original_callable(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self._original_callable == other  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(self._original_callable)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original_callable)


class WrapperOfIt(CallableWrapper):
    def __init__(self, original: Any) -> None:
        super().__init__(original)
        functools.update_wrapper(self, original, updated=())


class WrapperOfItsCall(CallableWrapper):
    def __init__(self, original: Any) -> None:
        super().__init__(original)
        functools.update_wrapper(self, original.__call__, updated=())


def by_function(original: Any) -> Any:
    @functools.wraps(original)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await original(*args, **kwargs)

    return wrapper


def assigned(declaration: DependsClass, wrapper: Any) -> DependsClass:
    """A copy that is given the wrapper."""
    made = copy.copy(declaration)
    object.__setattr__(made, "dependency", wrapper)
    return made


def rebuilt(declaration: DependsClass, wrapper: Any) -> DependsClass:
    scope: Any = declaration.scope
    return DependsClass(wrapper, use_cache=declaration.use_cache, scope=scope)


def rebuilt_without_scope(declaration: DependsClass, wrapper: Any) -> DependsClass:
    return DependsClass(wrapper, use_cache=declaration.use_cache)


@pytest.mark.parametrize(
    "wrap", [by_function, WrapperOfIt, WrapperOfItsCall, CallableWrapper, copy.copy, copy.deepcopy]
)
@pytest.mark.parametrize("rebuild", [assigned, rebuilt, rebuilt_without_scope])
@pytest.mark.parametrize("overrides", [False, True])
def test_k13_a_declaration_that_was_rebuilt_is_the_same_declaration(
    wrap: Callable[[Any], Any], rebuild: Callable[..., DependsClass], overrides: bool
) -> None:
    app = LifespanFastAPI()
    declaration = lifespan()
    again = rebuild(declaration, wrap(declaration.dependency))

    app.get("/")(endpoint(declaration))
    app.get("/again")(endpoint(again))
    app.get("/listed", dependencies=[again])(lambda: "listed")

    if overrides:
        app.dependency_overrides[get_client] = lambda: Client()
    with TestClient(app) as client:
        for path in ("/", "/again", "/again"):
            assert client.get(path).json() == 1
        assert client.get("/listed").json() == "listed"
    assert Client.made == 1


def test_k13_a_rebuilt_stock_declaration_is_one_too() -> None:
    app = LifespanFastAPI()
    declaration = fastapi.Depends(get_client, scope="lifespan")  # type: ignore[arg-type]
    for path in ("/1", "/2"):
        app.get(path)(endpoint(rebuilt(declaration, declaration.dependency)))
    with TestClient(app) as client:
        assert [client.get(path).json() for path in ("/1", "/2")] == [1, 1]


class OwnRouter(APIRouter):
    """What a class may assign in the place of the router that FastAPI has made."""


class Versioned(LifespanFastAPI):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.router = OwnRouter(dependency_overrides_provider=self)


class Careless(LifespanFastAPI):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.router = OwnRouter()


@pytest.mark.parametrize("kind", [Versioned, Careless])
def test_k13_a_class_that_assigns_a_router_keeps_the_scope(kind: type[LifespanFastAPI]) -> None:
    events: list[LifespanEvent] = []
    app = kind(lifespan_start="concurrent", on_lifespan_event=events.append)

    @app.get("/")
    async def read(client: Annotated[Client, lifespan()]) -> int:
        return client.number

    assert isinstance(app.router, OwnRouter)
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(2)] == [1, 1]
    app.dependency_overrides[get_client] = lambda: Client()
    with TestClient(app) as client:
        assert client.get("/").json() == 2
    assert {event.kind for event in events} >= {"started", "stopped"}


async def test_k13_an_application_with_a_router_of_its_own_can_be_given_the_scope() -> None:
    app = FastAPI()
    app.router = OwnRouter()

    @app.get("/")
    async def read(client: Annotated[Client, lifespan()]) -> int:
        return client.number

    enable_lifespan_scope(app)
    async with app.router.lifespan_context(app):
        assert lifespan_container(app)[get_client].number == 1


def test_k13_what_is_no_router_of_fastapis_is_told_to_lose_the_scope() -> None:
    app = LifespanFastAPI()
    with pytest.warns(UserWarning, match="is now a Router, and no APIRouter"):
        app.router = Router()  # type: ignore[assignment]
    with TestClient(app) as client:
        assert client.get("/").status_code == 404


# K14: dependencies that are put into a route's dependant, as titiler does it.


def add_dependencies(route: Any, dependencies: Sequence[Any]) -> None:
    """Solved first, but listed last."""
    for depends in dependencies:
        solved = get_parameterless_sub_dependant(depends=depends, path=route.path_format)
        route.dependant.dependencies.insert(0, solved)
    route.dependencies.extend(dependencies)


def must_be_bob(request: Request) -> None:
    if request.headers.get("user") != "bob":
        raise HTTPException(401)


audited: list[str] = []


def audit() -> None:
    audited.append("audit")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("depends", [lifespan, lambda: lifespan(use_cache=False)])
def test_k14_what_was_inserted_is_told_apart_by_identity(
    listed: bool, depends: Callable[[], Any]
) -> None:
    app = LifespanFastAPI(dependencies=[depends()])

    @app.get("/", dependencies=[fastapi.Depends(audit)])
    def read(client: Annotated[Client, lifespan()]) -> int:
        return client.number

    route: Any = app.routes[-1]
    add_dependencies(route, [fastapi.Depends(must_be_bob), fastapi.Depends(audit)])
    if not listed:
        del route.dependencies[-2:]
    audited.clear()
    with TestClient(app) as client:
        assert client.get("/").status_code == 401
        audited.clear()
        assert client.get("/", headers={"user": "bob"}).status_code == 200
    assert audited == ["audit"]
    assert Client.made == (1 if depends is lifespan else 2)


@pytest.mark.parametrize("stock", [True, False])
def test_k14_a_lifespan_dependency_may_be_inserted(stock: bool) -> None:
    app = LifespanFastAPI()

    @app.get("/", dependencies=[fastapi.Depends(must_be_bob)])
    def read() -> None: ...

    declaration = fastapi.Depends(get_client, scope="lifespan") if stock else lifespan()  # type: ignore[arg-type]
    add_dependencies(app.routes[-1], [declaration])
    with TestClient(app) as client:
        assert client.get("/").status_code == 401
        assert client.get("/", headers={"user": "bob"}).status_code == 200
    assert Client.made == 1


# K14: an endpoint that is looked at again, as wireup does it when the application starts.


def inject_at_start(app: FastAPI) -> list[Any]:
    """Wrap each endpoint that was not wrapped; give what it saw."""
    seen = []
    for route in app.routes:
        dependant = getattr(route, "dependant", None)
        call = getattr(dependant, "call", None)
        if call is not None and hasattr(call, "__theirs__"):
            seen.append((call.__theirs__, inspect.iscoroutinefunction(call)))
    return seen


@pytest.mark.parametrize("is_async", [True, False])
def test_k14_an_endpoint_keeps_what_others_left_on_it_and_its_kind(is_async: bool) -> None:
    app = LifespanFastAPI()

    async def read(client: Annotated[Client, lifespan()]) -> int:
        return client.number

    def read_in_thread(client: Annotated[Client, lifespan()]) -> int:
        return client.number

    endpoint: Any = read if is_async else read_in_thread
    endpoint.__theirs__ = {"injected": True}
    app.get("/")(endpoint)
    with TestClient(app) as client:
        assert client.get("/").json() == 1
        assert inject_at_start(app) == [({"injected": True}, is_async)]
