"""Clause 1 and binding: whatever the callable is, it takes its values and stays what it was."""

import functools
import gc
import inspect
import json
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from fastapi_lifespan_deps import Depends, LifespanFastAPI, UninitializedLifespanDependency
from fastapi_lifespan_deps._compat import kind_of

started: list[str] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    started.clear()


def get_value() -> str:
    started.append("value")
    return f"value {len(started)}"


ValueDep = Depends(get_value, scope="lifespan")
Value = Annotated[str, ValueDep]
Own = Annotated[str, Depends(get_value, scope="lifespan", use_cache=False)]


def get_unrelated() -> None:
    pass


def get(app: FastAPI, path: str, *, overrides: bool = False, **options: Any) -> Any:
    """The answer of `app`, the same in a second run; with unrelated overrides in force, or not."""
    answers = []
    for _ in range(2):
        started.clear()
        if overrides:
            app.dependency_overrides[get_unrelated] = lambda: None
        with TestClient(app) as client:
            response = client.get(path, **options)
            assert response.status_code == 200, response.text
            answers.append(response.json())
            assert client.get(path, **options).json() == answers[-1]
            assert len(started) == 1
    assert answers[0] == answers[1]
    return answers[0]


@pytest.fixture(params=[False, True], ids=["", "overrides"])
def overrides(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# Parameter names.

NAMES = [
    "self",
    "connection",
    "request",
    "kwargs",
    "values",
    "call",
    "site",
    "generation",
    "lifespan_connection",
    "lifespan_connection_",
    "value",
]


def function_with(name: str, kind: str) -> Callable[..., Any]:
    """A function with a parameter `name`, and a lifespan dependency of another name."""
    other = "other" if name == "value" else "value"
    parameters = {
        "a query parameter": f"{other}: Value, {name}: str = 'query'",
        "the lifespan dependency": f"{name}: Value, {other}: str = 'query'",
        "a request dependency": f"{other}: Value, {name}: Annotated[str, Depends(get_query)]",
    }[kind]
    source = f"def function({parameters}): return [{other}, {name}]"
    names: dict[str, Any] = {
        "Value": Value,
        "Annotated": Annotated,
        "Depends": Depends,
        "get_query": lambda: "query",
    }
    exec(source, names)
    function: Callable[..., Any] = names["function"]
    return function


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kind", ["a query parameter", "the lifespan dependency", "a request dependency"]
)
def test_a_parameter_may_have_any_name(name: str, kind: str, overrides: bool) -> None:
    function = function_with(name, kind)
    app = LifespanFastAPI()
    app.add_api_route("/endpoint", function)

    @app.get("/dependency")
    def read(answer: Annotated[Any, Depends(function)]) -> Any:
        return answer

    expected = ["value 1", "query"]
    for path in ("/endpoint", "/dependency"):
        assert sorted(get(app, path, overrides=overrides)) == sorted(expected)


def test_parameters_that_take_the_connection_keep_it(overrides: bool) -> None:
    async def get_method(connection: HTTPConnection, value: Value) -> str:
        return f"{connection.scope['method']} {value}"

    def get_path(request: Request, lifespan_connection: HTTPConnection, value: Value) -> str:
        assert lifespan_connection.url == request.url
        return f"{request.url.path} {value}"

    app = LifespanFastAPI()

    @app.get("/connection")
    def read_connection(
        conn: HTTPConnection,
        value: Value,
        method: Annotated[str, Depends(get_method)],
        path: Annotated[str, Depends(get_path)],
    ) -> list[str]:
        return [conn.url.path, value, method, path]

    @app.get("/request")
    def read_request(request: Request, response: Response, value: Value) -> list[str]:
        return [request.url.path, value]

    for path, more in [("/connection", ["GET value 1", "/connection value 1"]), ("/request", [])]:
        assert get(app, path, overrides=overrides) == [path, "value 1", *more]


def test_a_websocket_endpoint_may_take_the_connection_too(overrides: bool) -> None:
    app, router = LifespanFastAPI(), APIRouter()

    @app.websocket("/ws")
    @router.websocket("/ws")
    async def talk(websocket: WebSocket, connection: HTTPConnection, value: Value) -> None:
        assert connection is websocket
        await websocket.accept()
        await websocket.send_text(value)
        await websocket.close()

    app.include_router(router, prefix="/included")
    if overrides:
        app.dependency_overrides[get_unrelated] = lambda: None
    with TestClient(app) as client:
        for path in ("/ws", "/included/ws"):
            with client.websocket_connect(path) as websocket:
                assert websocket.receive_text() == "value 1"


# Wherever in the signature a value stands, it comes to its own parameter.

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


class TakesBoth:
    def __init__(self, model: Model, pool: Pool, q: str) -> None:
        self.text = f"{model} {pool} {q}"

    async def method(self, model: Model, pool: Pool, q: str) -> str:
        return f"{model} {pool} {q}"

    async def __call__(self, model: Model, pool: Pool, q: str) -> str:
        return f"{model} {pool} {q}"


POSITIONS: list[Callable[..., Any]] = [
    first,
    last,
    around,
    keyword_only,
    with_a_default,
    wrapped,
    wrapped_by_other_names,
    TakesBoth("", "", "").method,
    TakesBoth("", "", ""),
    functools.partial(first),
]


@pytest.mark.parametrize("call", POSITIONS, ids=lambda call: getattr(call, "__name__", "other"))
@pytest.mark.parametrize("is_endpoint", [True, False])
def test_each_parameter_is_given_its_own_value(
    call: Callable[..., Any], is_endpoint: bool, overrides: bool
) -> None:
    if is_endpoint and isinstance(call, TakesBoth):
        pytest.skip("older releases of FastAPI do not await such an endpoint")
    if not (is_endpoint or kind_of(call).is_async):
        pytest.skip("older releases of FastAPI do not await such a dependency")
    app = LifespanFastAPI()
    if overrides:
        app.dependency_overrides[get_unrelated] = lambda: None
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
    async def read(made: Annotated[TakesBoth, Depends()]) -> str:
        return made.text

    with TestClient(app) as client:
        assert client.get("/?q=x").json() == "model pool x"


# Kinds of callables.


def sync_function(value: Value, q: int = 1) -> str:
    return f"{value} {q}"


async def async_function(value: Value, q: int = 1) -> str:
    return f"{value} {q}"


def generator(value: Value, q: int = 1) -> Iterator[str]:
    yield f"{value} {q}"


async def async_generator(value: Value, q: int = 1) -> AsyncIterator[str]:
    yield f"{value} {q}"


class Class:
    def __init__(self, value: Value, q: int = 1) -> None:
        self.answer = f"{value} {q}"

    def __str__(self) -> str:
        return self.answer


class Callables:
    def __call__(self, value: Value, q: int = 1) -> str:
        return f"{value} {q}"

    def method(self, value: Value, q: int = 1) -> str:
        return f"{value} {q}"

    async def async_method(self, value: Value, q: int = 1) -> str:
        return f"{value} {q}"

    @classmethod
    def class_method(cls, value: Value, q: int = 1) -> str:
        return f"{value} {q}"

    @staticmethod
    def static_method(value: Value, q: int = 1) -> str:
        return f"{value} {q}"


class AsyncCallable:
    async def __call__(self, value: Value, q: int = 1) -> str:
        return f"{value} {q}"


class GeneratorCallable:
    def __call__(self, value: Value, q: int = 1) -> Iterator[str]:
        yield f"{value} {q}"


class AsyncGeneratorCallable:
    async def __call__(self, value: Value, q: int = 1) -> AsyncIterator[str]:
        yield f"{value} {q}"


def with_more(value: Value, more: int, q: int = 1) -> str:
    assert more == 2
    return f"{value} {q}"


def with_any(*args: Any, value: Value, q: int = 1, **kwargs: Any) -> str:
    return f"{value} {q}"


def with_default(q: int = 1, value: str = ValueDep) -> str:
    return f"{value} {q}"


def decorated(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        return function(*args, **kwargs)

    return wrapper


CALLABLES = {
    "function": sync_function,
    "async function": async_function,
    "class": Class,
    "instance": Callables(),
    "method": Callables().method,
    "async method": Callables().async_method,
    "class method": Callables.class_method,
    "static method": Callables.static_method,
    "partial": functools.partial(with_more, more=2),
    "default value": with_default,
    "decorated": decorated(sync_function),
}
GENERATORS = {
    "generator": generator,
    "async generator": async_generator,
    "generator instance": GeneratorCallable(),
    "async generator instance": AsyncGeneratorCallable(),
}


@pytest.mark.parametrize("call", [*CALLABLES.values(), *GENERATORS.values(), AsyncCallable()])
def test_a_request_dependency_of_any_kind_takes_values(
    call: Callable[..., Any], overrides: bool
) -> None:
    app, router = LifespanFastAPI(), APIRouter()

    @app.get("/")
    @router.get("/")
    def read(answer: Annotated[object, Depends(call)]) -> str:
        return str(answer)

    app.include_router(router, prefix="/included")
    for path in ("/", "/included/"):
        assert get(app, path, overrides=overrides) == "value 1 1"
        assert get(app, path, overrides=overrides, params={"q": 2}) == "value 1 2"


@pytest.mark.parametrize("call", CALLABLES.values(), ids=CALLABLES.keys())
def test_an_endpoint_of_any_kind_takes_values(call: Callable[..., Any], overrides: bool) -> None:
    app, router = LifespanFastAPI(), APIRouter()
    for part in (app, router):
        part.add_api_route("/", call, name="read", response_model=None)
    app.include_router(router, prefix="/included")
    for path in ("/", "/included/"):
        answer = get(app, path, overrides=overrides, params={"q": 2})
        assert answer == ({"answer": "value 1 2"} if call is Class else "value 1 2")


def test_a_request_dependency_with_var_arguments_takes_values(overrides: bool) -> None:
    """FastAPI fills `*args` and `**kwargs` like parameters of these names."""

    def get_answer(q: int = 1, *, value: Value, **kwargs: Any) -> str:
        assert kwargs == {"kwargs": "3"}
        return f"{value} {q}"

    app = LifespanFastAPI()

    @app.get("/")
    def read(answer: Annotated[str, Depends(get_answer)]) -> str:
        return answer

    assert get(app, "/?kwargs=3", overrides=overrides) == "value 1 1"


def test_a_function_scoped_generator_takes_values() -> None:
    events: list[str] = []

    def get_answer(value: Value) -> Iterator[str]:
        yield value
        events.append(f"after {value}")

    app = LifespanFastAPI()

    @app.get("/")
    def read(answer: Annotated[str, Depends(get_answer, scope="function")]) -> str:
        return answer

    assert get(app, "/") == "value 1"
    assert events == ["after value 1"] * 4


def test_a_security_scheme_takes_values_and_stays_one(overrides: bool) -> None:
    class Bearer(HTTPBearer):
        async def __call__(  # type: ignore[override]
            self, request: Request, value: Value
        ) -> str:
            found = await super().__call__(request)
            assert found is not None
            return f"{found.credentials} {value}"

    app = LifespanFastAPI()

    @app.get("/")
    def read(user: Annotated[str, Security(Bearer(), scopes=["a"])]) -> str:
        return user

    before = app.openapi()
    assert [*before["paths"]["/"]["get"]["security"][0]] == ["Bearer"]
    headers = {"Authorization": "Bearer jo"}
    assert get(app, "/", overrides=overrides, headers=headers) == "jo value 1"
    app.openapi_schema = None
    assert app.openapi() == before


# Endpoints that stream, fail or validate.

EventSourceResponse: Any = getattr(fastapi.routing, "EventSourceResponse", None)
has_streams = pytest.mark.skipif(
    EventSourceResponse is None,
    reason="FastAPI streams from generator endpoints in newer releases",
)


def stream_response(app: FastAPI) -> None:
    @app.get("/")
    def read(value: Value) -> StreamingResponse:
        return StreamingResponse(json.dumps(part) for part in [value])


def stream_jsonl(app: FastAPI) -> None:
    @app.get("/")
    def read(value: Value) -> Iterable[str]:
        yield value


def stream_jsonl_async(app: FastAPI) -> None:
    @app.get("/")
    async def read(value: Value) -> AsyncIterable[str]:
        yield value


def stream_events(app: FastAPI) -> None:
    @app.get("/", response_class=EventSourceResponse)
    def read(value: Value) -> Iterable[str]:
        yield value


def stream_events_async(app: FastAPI) -> None:
    @app.get("/", response_class=EventSourceResponse)
    async def read(value: Value) -> AsyncIterable[str]:
        yield value


def stream_raw(app: FastAPI) -> None:
    @app.get("/", response_class=StreamingResponse)
    async def read(value: Value) -> AsyncIterable[str]:
        yield json.dumps(value)


@pytest.mark.parametrize(
    "add",
    [
        stream_response,
        *(
            pytest.param(add, marks=has_streams)
            for add in (
                stream_jsonl,
                stream_jsonl_async,
                stream_events,
                stream_events_async,
                stream_raw,
            )
        ),
    ],
)
def test_a_streaming_endpoint_takes_values(add: Callable[[FastAPI], None]) -> None:
    app = LifespanFastAPI()
    add(app)
    with TestClient(app) as client:
        for _ in range(2):
            text = client.get("/").text.strip().removeprefix("data: ")
            assert json.loads(text) == "value 1"


def test_what_an_endpoint_raises_comes_through() -> None:
    app = LifespanFastAPI()

    @app.get("/http")
    def read_http(value: Value) -> None:
        raise HTTPException(418, value)

    @app.get("/error")
    async def read_error(value: Value) -> None:
        raise LookupError(value)

    with TestClient(app) as client:
        response = client.get("/http")
        assert (response.status_code, response.json()) == (418, {"detail": "value 1"})
        with pytest.raises(LookupError, match="value 1"):
            client.get("/error")


def method_endpoint() -> Callable[..., Any]:
    class Api:
        def read(self, q: int, value: Value = "") -> None:
            pass

    return Api().read


def class_endpoint() -> Callable[..., Any]:
    class Read:
        def __init__(self, q: int, value: Value = "") -> None:
            pass

    return Read


def function_endpoint() -> Callable[..., Any]:
    def read(q: int, value: Value = "") -> None:
        pass

    return read


def decorated_endpoint() -> Callable[..., Any]:
    @decorated
    def read(q: int, value: Value = "") -> str:
        return ""

    return read


def partial_endpoint() -> Callable[..., Any]:
    return functools.partial(with_more, more=2)


@pytest.mark.skipif(
    "endpoint_ctx" not in RequestValidationError.__init__.__annotations__,
    reason="validation errors name the endpoint in newer releases",
)
@pytest.mark.parametrize(
    "endpoint",
    [function_endpoint, method_endpoint, class_endpoint, decorated_endpoint, partial_endpoint],
)
@pytest.mark.parametrize("included", [False, True], ids=["app", "included"])
def test_a_validation_error_names_the_endpoint(
    endpoint: Callable[[], Callable[..., Any]], included: bool
) -> None:
    """FastAPI finds nothing to name for a partial, and neither do we."""
    call = endpoint()
    app, router = LifespanFastAPI(), APIRouter()
    part = router if included else app
    part.add_api_route("/", call, name="read", response_model=None)
    app.include_router(router)
    found: list[tuple[Any, ...]] = []

    @app.exception_handler(RequestValidationError)
    async def handle(request: Request, error: RequestValidationError) -> Response:
        found.append((error.endpoint_file, error.endpoint_line, error.endpoint_function))
        return Response(status_code=422)

    with TestClient(app) as client:
        assert client.get("/", params={"q": "no number"}).status_code == 422
    if isinstance(call, functools.partial):
        assert found == [(None, None, None)]
    else:
        assert found == [(__file__, inspect.getsourcelines(call)[1], call.__name__)]


# What the application says about itself.


def add_routes(
    app: FastAPI, read: Callable[..., Any], get_user: Callable[..., Any], listed: list[Any]
) -> None:
    router = APIRouter(dependencies=listed)
    for part in (app, router):
        part.add_api_route("/items/{item}", read)
        part.add_api_route("/items/{item}", read, methods=["POST"])
    app.include_router(router, prefix="/included", dependencies=[Depends(get_user)])


def add_plain_routes(app: FastAPI) -> None:
    def get_user(q: int, request: Request) -> int:
        return q

    def read(item: int, user: Annotated[int, Depends(get_user)], limit: int = 3) -> dict[str, int]:
        """Read an item."""
        return {}

    add_routes(app, read, get_user, [])


def add_routes_with_values(app: FastAPI) -> None:
    def get_user(q: int, value: Value, request: Request) -> int:
        return q

    def read(
        item: int,
        value: Value,
        user: Annotated[int, Depends(get_user)],
        other: str = ValueDep,
        limit: int = 3,
    ) -> dict[str, int]:
        """Read an item."""
        return {}

    add_routes(app, read, get_user, [ValueDep])


def test_the_openapi_schema_is_that_of_the_same_routes_without_lifespan_parameters() -> None:
    plain, app = FastAPI(), LifespanFastAPI()
    add_plain_routes(plain)
    add_routes_with_values(app)
    expected = plain.openapi()
    assert app.openapi() == expected
    for _ in range(2):
        with TestClient(app) as client:
            app.openapi_schema = None
            assert client.get("/openapi.json").json() == expected
    app.openapi_schema = None
    assert app.openapi() == expected


# Overrides and FastAPI's cache still find what was bound.


def test_a_request_dependency_is_still_called_once_per_request(overrides: bool) -> None:
    calls: list[str] = []

    def get_user(value: Value) -> str:
        calls.append(value)
        return value

    def get_rights(user: Annotated[str, Depends(get_user)], value: Value) -> str:
        return f"rights of {user}"

    app = LifespanFastAPI(dependencies=[Depends(get_user)])

    @app.get("/")
    def read(
        rights: Annotated[str, Depends(get_rights)],
        user: Annotated[str, Depends(get_user)],
        again: Annotated[str, Depends(get_user)],
    ) -> list[str]:
        return [rights, user, again]

    assert get(app, "/", overrides=overrides) == ["rights of value 1", "value 1", "value 1"]
    assert len(calls) == 4  # two runs of two requests


@pytest.mark.parametrize("annotation", [str, Any])
def test_applications_that_share_nested_dependencies_keep_their_own_values(
    annotation: Any, overrides: bool
) -> None:
    """Equal `Annotated[...]` are one object in Python, and what was bound equals the original."""

    def get_inner(value: Value, own: Own) -> str:
        return f"{value}, {own}"

    def get_outer(
        inner: Annotated[annotation, Depends(get_inner)],  # pyright: ignore[reportInvalidTypeForm]
    ) -> str:
        return str(inner)

    def read(answer: Annotated[str, Depends(get_outer)]) -> str:
        return answer

    apps = [LifespanFastAPI(), LifespanFastAPI()]
    for app in apps:
        app.add_api_route("/", read)
        if overrides:
            app.dependency_overrides[get_unrelated] = lambda: None
    with TestClient(apps[0]) as one, TestClient(apps[1]) as two:
        assert one.get("/").json() == "value 1, value 2"
        assert two.get("/").json() == "value 3, value 4"
        apps[1].dependency_overrides[get_value] = lambda: "fake"
        assert one.get("/").json() == "value 1, value 2"
        assert two.get("/").json() == "fake, fake"


def test_use_cache_false_of_a_request_dependency_calls_it_each_time() -> None:
    calls: list[str] = []

    def get_user(value: Value) -> int:
        calls.append(value)
        return len(calls)

    app = LifespanFastAPI()

    @app.get("/")
    def read(
        one: Annotated[int, Depends(get_user, use_cache=False)],
        two: Annotated[int, Depends(get_user, use_cache=False)],
    ) -> list[int]:
        return [one, two]

    with TestClient(app) as client:
        assert client.get("/").json() == [1, 2]


class Users:
    def get(self, value: Value) -> str:
        return f"user {value}"


users = Users()


@pytest.mark.parametrize(
    "call", [sync_function, async_generator, Class, AsyncCallable(), users.get]
)
@pytest.mark.parametrize("when", ["before start", "while running", "before the second run"])
def test_an_override_of_a_bound_request_dependency_is_found(
    call: Callable[..., Any], when: str
) -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(answer: Annotated[object, Depends(call)]) -> str:
        return str(answer)

    def override() -> None:
        original = users.get if call == users.get else call  # a bound method equals another
        app.dependency_overrides[original] = lambda: "fake"

    if when == "before start":
        override()
    with TestClient(app) as client:
        if when == "while running":
            assert client.get("/").json().startswith(("value 1", "user value 1"))
            override()
        if when != "before the second run":
            assert client.get("/").json() == "fake"
    override()
    with TestClient(app) as client:
        assert client.get("/").json() == "fake"


def test_an_overridden_dependency_that_alone_takes_values_comes_back_with_them() -> None:
    """Clause 9: there is nothing to start while the override is in force, but later there is."""
    app = LifespanFastAPI()

    @app.get("/")
    def read(answer: Annotated[str, Depends(sync_function)]) -> str:
        return answer

    app.dependency_overrides[sync_function] = lambda: "fake"
    with TestClient(app) as client:
        assert client.get("/").json() == "fake"
        app.dependency_overrides.clear()
        assert client.get("/").json() == "value 1 1"


def test_an_overriding_dependency_may_itself_be_bound_elsewhere() -> None:
    def get_user(value: Value) -> str:
        return "user"

    def get_admin(value: Value) -> str:
        return f"admin {value}"

    app = LifespanFastAPI()

    @app.get("/user")
    def read_user(user: Annotated[str, Depends(get_user)]) -> str:
        return user

    @app.get("/admin")
    def read_admin(admin: Annotated[str, Depends(get_admin)]) -> str:
        return admin

    app.dependency_overrides[get_user] = get_admin
    assert get(app, "/user") == get(app, "/admin") == "admin value 1"


# Several runs, and routes that come late.


def test_a_second_run_binds_nothing_again() -> None:
    def get_user(value: Value) -> str:
        return value

    app = LifespanFastAPI()

    @app.get("/")
    def read(value: Value, user: Annotated[str, Depends(get_user)]) -> list[str]:
        return [value, user]

    route = app.router.routes[-1]
    bound = []
    for _ in range(2):
        started.clear()
        with TestClient(app) as client:
            dependant = route.dependant  # type: ignore[attr-defined]
            bound.append((dependant.call, [child.call for child in dependant.dependencies]))
            assert client.get("/").json() == ["value 1", "value 1"]
    (endpoint, (user,)), again = bound
    assert (endpoint, [user]) == again
    assert again[0] is endpoint
    assert again[1][0] is user
    assert endpoint.__wrapped__ is read
    assert user.__wrapped__ is get_user
    assert user == get_user
    assert user != read


def test_a_bound_route_says_so_when_the_application_is_not_running() -> None:
    def get_user(value: Value) -> str:
        return value

    app = LifespanFastAPI()

    @app.get("/value")
    def read(value: Value) -> str:
        return value

    @app.get("/user")
    async def read_user(user: Annotated[str, Depends(get_user)]) -> str:
        return user

    with TestClient(app):
        pass
    for path in ("/value", "/user"):
        with pytest.raises(UninitializedLifespanDependency, match="is not running"):
            TestClient(app).get(path)


@pytest.mark.skipif(
    hasattr(fastapi.routing, "iter_route_contexts"), reason="0.137.2 and later serve late routes"
)
def test_a_late_route_of_an_included_router_is_not_found() -> None:
    app, router = LifespanFastAPI(), APIRouter()
    router.add_api_route("/early", sync_function)
    app.include_router(router)
    with TestClient(app) as client:
        router.add_api_route("/late", sync_function)
        assert client.get("/early").json() == "value 1 1"
        assert client.get("/late").status_code == 404


@pytest.mark.skipif(
    not hasattr(fastapi.routing, "iter_route_contexts"),
    reason="up to 0.136.3 a late route of an included router is not found",
)
def test_a_late_route_of_an_included_router_leaves_the_others_working() -> None:
    def get_own(value: Own) -> str:
        return value

    app, router = LifespanFastAPI(), APIRouter(dependencies=[ValueDep])
    router.add_api_route("/early", sync_function)

    @router.get("/user")
    def read_user(user: Annotated[str, Depends(async_function)]) -> str:
        return user

    @router.get("/own")
    def read_own(value: Own) -> str:
        return value

    @router.get("/own-user")
    def read_own_user(user: Annotated[str, Depends(get_own)]) -> str:
        return user

    @router.websocket("/ws")
    async def talk(websocket: WebSocket, value: Value) -> None:
        await websocket.accept()
        await websocket.send_text(f"{value} 1")
        await websocket.close()

    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/own").status_code == client.get("/own-user").status_code == 200
        count = len(started)

        @router.get("/late")
        def read_late(value: Value, user: Annotated[str, Depends(async_function)]) -> str:
            return f"{value} 1"

        for path in ("/early", "/user", "/late"):
            assert client.get(path).json() == "value 1 1"
        with client.websocket_connect("/ws") as websocket:
            assert websocket.receive_text() == "value 1 1"
        for path in ("/own", "/own-user"):
            with pytest.raises(UninitializedLifespanDependency) as caught:
                client.get(path)
            assert caught.value.provider is get_value
            for part in ("get_value", "use_cache=False", "added while the application served"):
                assert part in str(caught.value)
        assert len(started) == count
    with TestClient(app) as client:  # a new run binds them again
        assert client.get("/own").status_code == client.get("/own-user").status_code == 200


def test_a_dependency_that_takes_no_stranger_for_equal_is_still_found_by_overrides() -> None:
    """It is left unbound, since nothing else would equal it."""

    class GetUser:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, GetUser)

        def __hash__(self) -> int:
            return 1

        async def __call__(self, value: Value) -> str:
            return f"user of {value}"

    app = LifespanFastAPI()

    @app.get("/")
    def read(user: Annotated[str, Depends(GetUser())]) -> str:
        return user

    with TestClient(app) as client:
        assert client.get("/").json() == "user of value 1"
        app.dependency_overrides[GetUser()] = lambda: "fake"
        assert client.get("/").json() == "fake"


def test_an_application_is_not_kept_by_what_fastapi_remembers_of_its_callables() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(answer: Annotated[str, Depends(sync_function)]) -> str:
        return answer

    with TestClient(app) as client:
        client.get("/")
    reference = weakref.ref(app)
    del app, client, read
    gc.collect()
    assert reference() is None
