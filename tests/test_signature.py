"""Clause 4: what a lifespan dependency may take, what not, and when the error is raised."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import fastapi
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    FastAPI,
    File,
    Form,
    Header,
    Path,
    Query,
    Request,
    Response,
    Security,
    UploadFile,
    WebSocket,
)
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer, SecurityScopes
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings
from starlette.applications import Starlette
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.requests import HTTPConnection

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    LifespanFastAPI,
)
from tests import postponed

if TYPE_CHECKING:
    from decimal import Decimal


class Engine:
    pass


def get_engine() -> Engine:
    return Engine()


def get_user() -> str:
    return "ada"


SharedEngine = Annotated[Engine, Depends(get_engine, scope="lifespan")]


class Item(BaseModel):
    name: str


class Settings(BaseSettings):
    token: str
    retries: int = 3


class OtherMarker:
    """What another library may put into `Annotated`."""


def taking(annotation: Any, *default: Any) -> Callable[..., Any]:
    """A dependency with one parameter, which it gives back."""

    def get_value(culprit: Any) -> Any:
        return culprit

    get_value.__annotations__["culprit"] = annotation
    get_value.__defaults__ = default or None
    return get_value


def values_of(*providers: Callable[..., Any]) -> list[Any]:
    """The values that a running application has for lifespan dependencies."""
    values: list[Any] = []
    app = LifespanFastAPI()
    for number, provider in enumerate(providers):

        def read(value: Any) -> None:
            values.append(value)

        read.__annotations__["value"] = Annotated[Any, Depends(provider, scope="lifespan")]
        app.get(f"/{number}")(read)
    with TestClient(app) as client:
        for number in range(len(providers)):
            assert client.get(f"/{number}").status_code == 200
    return values


def value_of(provider: Callable[..., Any]) -> Any:
    (value,) = values_of(provider)
    return value


# What it may take


@pytest.mark.parametrize(
    "provider",
    [
        taking(Annotated[Engine, Depends(get_engine, scope="lifespan")]),
        taking(Engine, Depends(get_engine, scope="lifespan")),
        taking(Annotated[Engine, Depends(scope="lifespan")]),
        taking(Engine, Depends(scope="lifespan")),
        taking(Annotated[Engine, Depends(get_engine, scope="lifespan", use_cache=False)]),
        taking(Annotated[Engine, OtherMarker(), Depends(get_engine, scope="lifespan")]),
        taking(Annotated[Engine, fastapi.Depends(get_engine, scope="lifespan")]),  # type: ignore[arg-type]
        taking(Annotated[Request, Depends(get_engine, scope="lifespan")]),
    ],
)
def test_it_may_take_other_lifespan_dependencies(provider: Callable[..., Any]) -> None:
    assert type(value_of(provider)) is Engine


def test_dependencies_are_shared_at_any_depth() -> None:
    def get_left(engine: SharedEngine) -> Engine:
        return engine

    def get_right(engine: SharedEngine, *, default: int = 1) -> Engine:
        return engine

    def get_pair(
        left: Annotated[Engine, Depends(get_left, scope="lifespan")],
        right: Annotated[Engine, Depends(get_right, scope="lifespan")],
    ) -> tuple[Engine, Engine]:
        return left, right

    left, right = value_of(get_pair)

    assert left is right


@pytest.mark.parametrize(
    ("provider", "value"),
    [
        (taking(int, 3), 3),
        (taking(inspect.Parameter.empty, 3), 3),
        (taking(Annotated[int, "a note"], 3), 3),
        (taking(Annotated[Engine, OtherMarker()], 3), 3),
        (taking(Annotated[int, Field(gt=2)], 3), 3),
        (taking(Item, Item(name="a")), Item(name="a")),
        (taking(Item | None, None), None),
        (taking("Unknown", 3), 3),
    ],
)
def test_a_parameter_with_a_plain_default_keeps_it(
    provider: Callable[..., Any], value: object
) -> None:
    assert value_of(provider) == value


def test_parameters_that_collect_the_rest_stay_empty() -> None:
    def get_value(*args: int, keyword: int = 2, **kwargs: int) -> Any:
        return args, keyword, kwargs

    assert value_of(get_value) == ((), 2, {})


def test_default_factories_of_a_dataclass_are_defaults() -> None:
    @dataclasses.dataclass
    class Config:
        engine: Annotated[Engine, Depends(get_engine, scope="lifespan")]
        tags: list[str] = dataclasses.field(default_factory=list)

    config = value_of(Config)

    assert type(config.engine) is Engine
    assert config.tags == []


def test_what_a_partial_fills_in_is_not_asked_for() -> None:
    assert value_of(functools.partial(taking(str), culprit="x")) == "x"
    assert value_of(functools.partial(taking(Request), "x")) == "x"


@pytest.mark.parametrize("annotation", [FastAPI, Starlette, LifespanFastAPI])
def test_it_may_take_the_application(annotation: type) -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        value: Annotated[object, Depends(taking(annotation), scope="lifespan")],
        late: Annotated[object, Depends(taking(annotation, None), scope="lifespan")],
    ) -> list[bool]:
        return [value is app, late is app]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, True]


@pytest.mark.parametrize(
    "provider",
    [
        Settings,
        taking(Annotated[Settings, Depends(scope="lifespan")]),
        taking(Annotated[Settings, Depends(Settings, scope="lifespan")]),
        taking(Settings, Depends(scope="lifespan")),
        functools.partial(Settings),
        functools.partial(Settings, retries=3),
    ],
    ids=["itself", "inferred", "given", "default", "partial", "partial with a value"],
)
def test_a_settings_class_fills_its_required_fields_itself(
    provider: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("RETRIES", "3")

    assert value_of(provider).model_dump() == {"token": "secret", "retries": 3}


def test_a_settings_class_that_is_not_filled_fails_the_start_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOKEN", raising=False)

    with pytest.raises(ValidationError, match="token"):
        value_of(Settings)


# What it may not take

CULPRITS = {
    "Request": (Request,),
    "Request with a default": (Request, None),
    "WebSocket": (WebSocket,),
    "HTTPConnection": (HTTPConnection,),
    "Response": (Response,),
    "JSONResponse": (JSONResponse,),
    "BackgroundTasks": (BackgroundTasks,),
    "Starlette's BackgroundTasks": (StarletteBackgroundTasks,),
    "SecurityScopes": (SecurityScopes,),
    "Request in Annotated": (Annotated[Request, "a note"],),
    "a query parameter": (str,),
    "a query parameter that may be None": (str | None,),
    "no annotation": (inspect.Parameter.empty,),
    "Query": (Annotated[str, Query()],),
    "Query with a default": (Annotated[str, Query()], "x"),
    "Query as default": (str, Query("x")),
    "Path": (Annotated[str, Path()],),
    "Header": (Annotated[str, Header()],),
    "Header as default": (str, Header("x")),
    "Cookie": (Annotated[str, Cookie()],),
    "Cookie as default": (str, Cookie("x")),
    "Form": (Annotated[str, Form()],),
    "Form as default": (str, Form("x")),
    "File": (Annotated[bytes, File()],),
    "File as default": (bytes, File(b"x")),
    "UploadFile": (UploadFile,),
    "Body": (Annotated[str, Body()],),
    "Body as default": (str, Body("x")),
    "Field as default": (str, Field("x")),
    "a model": (Item,),
    "a list of models": (list[Item],),
    "another library's marker": (Annotated[Engine, OtherMarker()],),
    "a dependency of a request": (Annotated[str, Depends(get_user)],),
    "one with scope request": (Annotated[str, Depends(get_user, scope="request")],),
    "one with scope function": (str, Depends(get_user, scope="function")),
    "FastAPI's own": (Annotated[str, fastapi.Depends(get_user)],),
    "an inferred one": (Annotated[Engine, Depends()],),
    "an inferred one as default": (Engine, fastapi.Depends()),
    "Security": (Annotated[str, Security(get_user, scopes=["read"])],),
    "a security scheme": (Annotated[str, Security(HTTPBearer())],),
}


@pytest.mark.parametrize("culprit", CULPRITS.values(), ids=CULPRITS.keys())
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_whatever_belongs_to_a_request_is_an_error_at_the_line_of_the_route(
    culprit: tuple[Any, ...], depth: int
) -> None:
    provider = outermost = taking(*culprit)
    for _ in range(depth - 1):
        outermost = taking(Annotated[Any, Depends(outermost, scope="lifespan")])
    app = LifespanFastAPI()

    def read(value: Annotated[Any, Depends(outermost, scope="lifespan")]) -> None: ...

    with pytest.raises(DependencyScopeError) as caught:
        app.get("/")(read)

    error = caught.value
    assert isinstance(error, fastapi.exceptions.DependencyScopeError)
    assert error.provider is provider
    assert error.parameter == "culprit"
    assert len(error.path) == depth + 1
    assert error.path[0].call is outermost
    assert error.path[-2].call is provider
    assert "culprit" in error.path[-1].label
    assert "so it cannot take `culprit`, " in str(error)


@pytest.mark.parametrize("kind", ["function", "class", "generator", "instance", "partial"])
def test_every_kind_of_dependency_is_read(kind: str) -> None:
    def function(request: Request) -> None: ...

    async def generator(request: Request) -> Any:
        yield request

    class Class:
        def __init__(self, request: Request) -> None: ...

    class Instance:
        def __call__(self, request: Request) -> None: ...

    providers: dict[str, Callable[..., Any]] = {
        "function": function,
        "class": Class,
        "generator": generator,
        "instance": Instance(),
        "partial": functools.partial(function),
    }

    with pytest.raises(DependencyScopeError) as caught:
        value_of(providers[kind])

    assert caught.value.provider is providers[kind]
    assert caught.value.parameter == "request"


BAD = Depends(taking(Request), scope="lifespan")


def read_nothing() -> None: ...


async def listen(websocket: WebSocket) -> None: ...


def read_bad(value: Annotated[Any, BAD]) -> None: ...


async def listen_to_bad(websocket: WebSocket, value: Annotated[Any, BAD]) -> None: ...


def get_bad(value: Annotated[Any, BAD]) -> None: ...


def read_through(value: Annotated[Any, Depends(get_bad)]) -> None: ...


@pytest.mark.parametrize("where", ["app", "router"])
@pytest.mark.parametrize(
    ("verb", "endpoint", "here"),
    [
        ("get", read_bad, []),
        ("get", read_through, []),
        ("get", read_nothing, [BAD]),
        ("get", read_nothing, [Depends(get_bad)]),
        ("websocket", listen_to_bad, []),
        ("websocket", listen, [BAD]),
    ],
)
def test_the_line_of_the_route_raises(
    where: str, verb: str, endpoint: Callable[..., Any], here: list[Any]
) -> None:
    routes = LifespanFastAPI() if where == "app" else APIRouter()
    decorator = getattr(routes, verb)("/", dependencies=here)

    with pytest.raises(DependencyScopeError):
        decorator(endpoint)


@pytest.mark.parametrize("create", [LifespanFastAPI, FastAPI, APIRouter])
def test_the_first_route_under_a_list_of_dependencies_raises(create: Callable[..., Any]) -> None:
    """Of an application or a router; a plain `FastAPI` raises as well."""
    decorator = create(dependencies=[BAD]).get("/")

    with pytest.raises(DependencyScopeError):
        decorator(read_nothing)


@pytest.mark.parametrize("app_or_router", [LifespanFastAPI, APIRouter])
@pytest.mark.parametrize("verb", ["get", "websocket"])
def test_a_list_that_is_given_to_an_include_raises_before_the_application_serves(
    app_or_router: Callable[..., Any], verb: str
) -> None:
    """At the include itself up to FastAPI 0.136; later releases read it at the start."""
    router = APIRouter()
    getattr(router, verb)("/")({"get": read_nothing, "websocket": listen}[verb])
    app = LifespanFastAPI()

    with pytest.raises(DependencyScopeError):
        if app_or_router is APIRouter:
            outer = APIRouter()
            outer.include_router(router, dependencies=[BAD])
            app.include_router(outer, prefix="/outer")
        else:
            app.include_router(router, dependencies=[BAD])
        with TestClient(app):
            pass


def test_what_is_read_at_the_start_names_the_route() -> None:
    """FastAPI's own `Depends` accepts it at the line of the route."""
    app = LifespanFastAPI()
    stock: Any = fastapi.Depends

    @app.get("/users")
    def read_users(value: Annotated[Any, stock(taking(Request), scope="lifespan")]) -> None: ...

    with pytest.raises(DependencyScopeError) as caught, TestClient(app):
        pass

    assert [step.label for step in caught.value.path[:2]] == ["GET /users", "value"]
    assert caught.value.path[0].call is read_users


def test_a_graph_with_many_ways_is_read_in_few_steps() -> None:
    """Each layer takes the one below twice: there are 2 ** 12 ways down."""
    reads = []

    class Layer:
        def __init__(self, *below: Callable[..., Any]) -> None:
            self.below = [Depends(layer, scope="lifespan") for layer in below]

        @property
        def __signature__(self) -> inspect.Signature:
            reads.append(self)
            kind = inspect.Parameter.KEYWORD_ONLY
            return inspect.Signature(
                [inspect.Parameter(f"p{i}", kind, default=d) for i, d in enumerate(self.below)]
            )

        def __call__(self, **below: object) -> int:
            return 1 + len(below)

    top = Layer()
    for _ in range(12):
        top = Layer(top, top)

    assert value_of(top) == 3
    assert len(reads) < 500


def test_a_positional_only_parameter_fails_the_start_as_it_fails_requests_in_fastapi() -> None:
    def get_value(app: FastAPI, /) -> None: ...

    with pytest.raises(TypeError, match="positional-only"):
        value_of(get_value)


def test_a_name_for_type_checkers_among_evaluated_annotations() -> None:
    def get_value(engine: SharedEngine, more: "Missing | None" = None) -> Engine:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        return engine

    assert isinstance(value_of(get_value), Engine)


# Postponed annotations


def test_every_parameter_of_a_dependency_is_understood() -> None:
    shared, values = values_of(postponed.get_engine, postponed.get_model)

    engine, inferred, by_default, plain, app = values
    assert engine is by_default is shared
    assert type(inferred) is postponed.Engine
    assert inferred is not shared
    assert plain is None
    assert type(app) is LifespanFastAPI


@pytest.mark.parametrize(
    "provider",
    [
        postponed.get_scaled,
        functools.partial(postponed.get_scaled),
        postponed.wrapped(postponed.get_scaled),
        postponed.wrapped(functools.partial(postponed.get_scaled)),
        postponed.Reader(),
        postponed.Reader().read,
        functools.partial(postponed.Reader()),
    ],
    ids=["function", "partial", "wraps", "wraps of a partial", "instance", "method", "both"],
)
def test_a_name_for_type_checkers_does_not_hide_the_other_parameters(
    provider: Callable[..., Any],
) -> None:
    engine, value = values_of(postponed.get_engine, provider)

    assert value is engine


@pytest.mark.parametrize("provider", [postponed.Model, functools.partial(postponed.Model)])
def test_a_name_for_type_checkers_does_not_hide_the_other_parameters_of_a_class(
    provider: Callable[..., Any],
) -> None:
    engine, model = values_of(postponed.get_engine, provider)

    assert model.engine is engine


def test_a_local_class_works_where_the_dependency_is_given_as_default() -> None:
    local_class, get_local = postponed.local()

    assert type(value_of(get_local)) is local_class


def test_an_endpoint_may_have_postponed_annotations() -> None:
    app = LifespanFastAPI()
    app.get("/")(postponed.read_engines)

    with TestClient(app) as client:
        assert client.get("/").json() == [True, True, False]


@pytest.mark.parametrize(
    "provider", [postponed.get_request, postponed.get_decimal, postponed.NeedsRequest]
)
def test_what_belongs_to_a_request_is_an_error_all_the_same(provider: Callable[..., Any]) -> None:
    with pytest.raises(DependencyScopeError) as caught:
        value_of(provider)

    assert caught.value.provider is provider


@pytest.mark.parametrize(
    ("provider", "labels", "calls"),
    [
        (postponed.get_itself, ["get_itself", "itself"], [postponed.get_itself] * 2),
        (
            postponed.get_chicken,
            ["get_chicken", "egg", "chicken"],
            [postponed.get_chicken, postponed.get_egg, postponed.get_chicken],
        ),
        (
            postponed.get_farm,
            ["egg", "chicken", "egg"],
            [postponed.get_egg, postponed.get_chicken, postponed.get_egg],
        ),
        (
            postponed.Left,
            ["Left", "right", "left"],
            [postponed.Left, postponed.Right, postponed.Left],
        ),
        (
            postponed.get_stock_circle,
            ["get_stock_circle", "circle"],
            [postponed.get_stock_circle] * 2,
        ),
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


# Annotations that Python 3.14 evaluates when somebody asks for them. A function of a module that
# postpones them by an import is in postponed.py.

deferred = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="Python evaluates annotations where they stand before 3.14"
)


@deferred
@pytest.mark.parametrize("kind", ["function", "class", "instance", "method", "partial", "wraps"])
def test_a_deferred_name_for_type_checkers_does_not_hide_the_other_parameters(kind: str) -> None:
    def function(engine: SharedEngine, scale: Decimal | None = None) -> Engine:
        return engine

    class Class:
        def __init__(self, engine: SharedEngine, scale: Decimal | None = None) -> None:
            self.engine = engine

    class Instance:
        def __call__(self, engine: SharedEngine, scale: Decimal | None = None) -> Engine:
            return engine

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    providers: dict[str, Callable[..., Any]] = {
        "function": function,
        "class": Class,
        "instance": Instance(),
        "method": Instance().__call__,
        "partial": functools.partial(function),
        "wraps": wrapper,
    }

    value = value_of(providers[kind])

    assert type(value.engine if kind == "class" else value) is Engine


@deferred
def test_a_name_for_type_checkers_may_be_anywhere_in_an_annotation() -> None:
    def get_value(
        annotated: Annotated[Decimal, Depends(get_engine, scope="lifespan")],
        inside: Annotated[list[Decimal], Depends(get_engine, scope="lifespan")],
        by_default: Decimal = Depends(get_engine, scope="lifespan"),
        attribute: Decimal.missing | None = None,  # type: ignore[name-defined]  # pyright: ignore[reportAttributeAccessIssue]
        quoted: "Decimal | None" = None,
        *,
        app: FastAPI,
    ) -> Decimal:
        values: Any = [annotated, inside, by_default, attribute, quoted, app]
        return values  # type: ignore[no-any-return]

    engine, *others, attribute, quoted, app = value_of(get_value)

    assert type(engine) is Engine
    assert others == [engine, engine]
    assert attribute is quoted is None
    assert type(app) is LifespanFastAPI


@deferred
def test_a_name_for_type_checkers_in_an_endpoint() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        engine: SharedEngine,
        annotated: Annotated[Decimal, Depends(get_engine, scope="lifespan")],
        by_default: Decimal = Depends(get_engine, scope="lifespan"),
    ) -> list[bool]:
        others: list[object] = [annotated, by_default]
        return [engine is other for other in others]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, True]


@deferred
def test_a_name_for_type_checkers_where_a_value_is_needed_is_an_error() -> None:
    def get_value(engine: SharedEngine, scale: Decimal) -> None: ...

    with pytest.raises(DependencyScopeError, match="scale: Decimal") as caught:
        value_of(get_value)

    assert caught.value.provider is get_value


@deferred
@pytest.mark.parametrize("where", ["dependency", "endpoint"])
def test_a_dependency_that_does_not_exist_is_an_error_at_the_line_of_the_route(where: str) -> None:
    def get_plain(
        engine: Annotated[Engine, Depends(get_missing, scope="lifespan")],  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    ) -> None: ...

    def get_limited(
        engine: Annotated[Engine, Depends(get_missing, scope="lifespan", start_timeout=9)],  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    ) -> None: ...

    for function in (get_plain, get_limited):

        def read(value: Annotated[Any, Depends(function, scope="lifespan")]) -> None: ...

        with pytest.raises(TypeError, match="get_missing"):
            LifespanFastAPI().get("/")(read if where == "dependency" else function)


@deferred
def test_a_dataclass_may_name_dependencies_that_come_later() -> None:
    @dataclasses.dataclass
    class Config:
        plain: Annotated[Engine, Depends(get_later, scope="lifespan")]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        limited: Annotated[Engine, Depends(get_later, scope="lifespan", start_timeout=9)]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    async def get_later() -> Engine:
        return Engine()

    config = value_of(Config)

    assert type(config.plain) is Engine
    assert config.limited is config.plain
