"""Errors are part of the interface: what they say, what they carry, what they are."""

import functools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Query, Request, Response
from fastapi import exceptions as fastapi_exceptions
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    Depends,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    LifespanFastAPI,
    UninitializedLifespanDependency,
)
from fastapi_lifespan_deps.exceptions import Step, draw_path, location_of, name_of


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as they are seen from the current directory."""
    monkeypatch.chdir(Path(__file__).parent)


def get_engine(q: str) -> None: ...


def get_pool(engine: Annotated[None, Depends(get_engine, scope="lifespan")]) -> Iterator[None]:
    yield


def get_request(request: Request) -> None: ...


def get_nothing() -> None: ...


def override_nothing(itself: Annotated[None, Depends(get_nothing, scope="lifespan")]) -> None: ...


class Connect:
    def __call__(self) -> None: ...

    def connect(self) -> None: ...

    @classmethod
    def create(cls) -> None: ...


@dataclass(frozen=True)
class Login:
    password: str

    def __call__(self, request: Request) -> None: ...


@contextmanager
def open_file() -> Iterator[None]:
    yield


@functools.wraps(get_engine)
def wrapper(*args: Any) -> None: ...


def line(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno


def declare(provider: Callable[..., Any]) -> None:
    """Declare a lifespan dependency in a route."""
    decorator = LifespanFastAPI().get("/", dependencies=[Depends(provider, scope="lifespan")])
    decorator(get_nothing)


def override_closes_a_circle() -> None:
    app = LifespanFastAPI()

    @app.get("/items")
    def read(value: Annotated[None, Depends(get_nothing, scope="lifespan")]) -> None: ...

    app.dependency_overrides[get_nothing] = override_nothing
    with TestClient(app):
        pass


def request_to(app: FastAPI) -> None:
    @app.get("/")
    def read(value: Annotated[None, Depends(get_nothing, scope="lifespan")]) -> None: ...

    TestClient(app).get("/")


RAISED: list[tuple[type[LifespanDependencyError], Callable[[], Any]]] = [
    (InvalidDependencyScope, lambda: Depends(get_nothing, scope="session")),  # type: ignore[arg-type]
    (InvalidLifespanDependency, lambda: Depends(42, scope="lifespan")),  # type: ignore[arg-type]
    (DependencyScopeError, lambda: declare(get_pool)),
    (DependencyCycleError, override_closes_a_circle),
    (UninitializedLifespanDependency, lambda: request_to(LifespanFastAPI())),
]


@pytest.mark.parametrize(("kind", "fail"), RAISED)
def test_every_error_has_the_base_and_is_one_of_fastapi(
    kind: type[LifespanDependencyError], fail: Callable[[], None]
) -> None:
    with pytest.raises(LifespanDependencyError) as caught:
        fail()

    assert type(caught.value) is kind
    assert isinstance(caught.value, fastapi_exceptions.FastAPIError)


@pytest.mark.parametrize(("kind", "fail"), RAISED)
def test_every_error_survives_pickling(
    kind: type[LifespanDependencyError], fail: Callable[[], None]
) -> None:
    """Ray Serve and multiprocessing bring errors from another process so."""
    with pytest.raises(kind) as caught:
        fail()

    copy = pickle.loads(pickle.dumps(caught.value))

    assert type(copy) is kind
    assert str(copy) == str(caught.value)
    assert vars(copy) == vars(caught.value)


def test_a_dependency_scope_error_is_one_of_fastapi() -> None:
    with pytest.raises(fastapi_exceptions.DependencyScopeError):
        declare(get_engine)


# Whole messages


def test_the_message_of_an_unknown_scope() -> None:
    with pytest.raises(InvalidDependencyScope) as caught:
        Depends(get_nothing, scope="session")  # type: ignore[arg-type]

    assert str(caught.value) == (
        "'session' is not a scope of a dependency. "
        'Use "function", "request", "lifespan", or leave the scope out.'
    )
    assert caught.value.scope == "session"


@pytest.mark.parametrize(
    ("dependency", "options", "message"),
    [
        (
            42,
            {},
            '`Depends(42, scope="lifespan")` needs a callable. '
            "Pass the function or the class itself, without calling it.",
        ),
        (
            get_nothing,
            {"max_concurrency": 1},
            '`Depends(get_nothing, scope="lifespan")` does not take `max_concurrency`. '
            "That option is for requests: leave it out.",
        ),
    ],
)
def test_the_message_of_what_cannot_be_a_dependency(
    dependency: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidLifespanDependency) as caught:
        Depends(dependency, scope="lifespan", **options)

    assert str(caught.value) == message
    assert caught.value.dependency is dependency


def test_the_message_of_what_belongs_to_a_request() -> None:
    with pytest.raises(DependencyScopeError) as caught:
        declare(get_pool)

    pool, engine = (f"test_errors.py:{line(function)}" for function in (get_pool, get_engine))
    assert str(caught.value) == (
        "`get_engine` is started once, with the application, before any request,\n"
        "so it cannot take `q`, which is a parameter of a request (query or body).\n"
        "\n"
        f'  get_pool      {pool}  get_pool  scope="lifespan"\n'
        f'  └─ engine     {engine}  get_engine  scope="lifespan"\n'
        f"     └─ q: str  {' ' * len(pool)}  a query or body parameter\n"
        "\n"
        "Give `q` a plain default, declare it as a lifespan dependency too, "
        'or make `get_engine` request-scoped (drop scope="lifespan").'
    )
    assert caught.value.provider is get_engine
    assert caught.value.parameter == "q"
    assert [step.label for step in caught.value.path] == ["get_pool", "engine", "q: str"]
    assert [step.call for step in caught.value.path] == [get_pool, get_engine, None]


def test_the_message_of_a_circle() -> None:
    with pytest.raises(DependencyCycleError) as caught:
        override_closes_a_circle()

    here = f"test_errors.py:{line(override_nothing)}"
    note = 'override_nothing  scope="lifespan", overrides get_nothing'
    assert str(caught.value) == (
        "`override_nothing` depends on itself, so it can never start.\n"
        "\n"
        f"  value      {here}  {note}\n"
        f"  └─ itself  {here}  {note}\n"
        "\n"
        "Take one of these dependencies out of the circle. A dependency override counts as what "
        "it replaces: it cannot depend on it."
    )
    assert [step.label for step in caught.value.path] == ["value", "itself"]
    assert [step.call for step in caught.value.path] == [override_nothing] * 2


def test_the_message_of_a_value_that_is_not_there() -> None:
    with pytest.raises(UninitializedLifespanDependency) as caught:
        request_to(FastAPI())

    assert str(caught.value) == (
        f"There is no value of `get_nothing` (test_errors.py:{line(get_nothing)}): "
        "the application is a plain FastAPI, which does not know "
        'scope="lifespan". Make it a LifespanFastAPI, or call enable_lifespan_scope(app) before '
        "it starts."
    )
    assert caught.value.provider is get_nothing


def test_the_message_of_an_application_that_does_not_run_says_how_to_start_it() -> None:
    with pytest.raises(UninitializedLifespanDependency, match="is not running") as caught:
        request_to(LifespanFastAPI())

    assert "`with TestClient(app) as client:`" in str(caught.value)
    assert caught.value.provider is get_nothing


# What messages are made of


def requests_of(*parameters: tuple[Any, ...]) -> str:
    """The message for a dependency that takes `value`, with an annotation and a default."""

    def get_value(value: Any) -> None: ...

    annotation, *default = parameters
    get_value.__annotations__["value"] = annotation
    get_value.__defaults__ = tuple(default) or None
    with pytest.raises(DependencyScopeError) as caught:
        declare(get_value)
    return str(caught.value)


class Cache: ...


def get_user() -> str:
    return "ada"


@pytest.mark.parametrize(
    ("parameter", "parts"),
    [
        ((Request,), ["Request", "belongs to a request"]),
        ((Response,), ["Response", "belongs to a request"]),
        ((Annotated[str, Query()],), ["value: str", "a query parameter"]),
        (
            (Annotated[str, Depends(get_user)],),
            ["get_user", "scope of a request", "test_errors.py"],
        ),
        ((Annotated[Cache, Depends()],), ["Cache", "scope of a request", "test_errors.py"]),
        ((Cache, Depends()), ["Cache", "scope of a request", "test_errors.py"]),
    ],
)
def test_the_culprit_is_described(parameter: tuple[Any, ...], parts: list[str]) -> None:
    message = requests_of(*parameter)

    for part in parts:
        assert part in message


@pytest.mark.parametrize("parameter", [(Request, None), (str, Query("x"))])
def test_the_advice_is_not_what_has_been_done_already(parameter: tuple[Any, ...]) -> None:
    """A default does not help where there is one, or where the type alone is the reason."""
    assert "Give `value` a plain default" not in requests_of(*parameter)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (get_engine, "get_engine"),
        (Connect, "Connect"),
        (Connect().connect, "Connect.connect"),
        (Connect.create, "Connect.create"),
        (open_file, "open_file"),
        (wrapper, "get_engine"),
        (dict, "dict"),
        (len, "len"),
        (functools.partial(get_engine, "x"), "partial(get_engine)"),
        (functools.partial(functools.partial(get_engine, q="x"), q="y"), "partial(get_engine)"),
        (functools.partial(Connect), "partial(Connect)"),
        (42, "42"),
        (None, "None"),
    ],
)
def test_a_callable_is_named_as_a_person_would(call: object, name: str) -> None:
    assert name_of(call) == name


@pytest.mark.parametrize("wrap", [lambda call: call, functools.partial])
def test_an_instance_is_named_by_its_class_and_never_by_its_contents(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """The `repr` of an object may hold a password, or fill a screen."""
    with pytest.raises(DependencyScopeError) as caught:
        declare(wrap(Login(password="hunter2")))

    assert "Login" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "0x" not in str(caught.value)
    assert "__call__" not in str(caught.value)


def test_an_instance_that_is_no_dependency_is_named_so_too() -> None:
    """Settings that were made already, for instance."""

    @dataclass
    class Settings:
        password: str

    with pytest.raises(InvalidLifespanDependency) as caught:
        Depends(Settings("hunter2"), scope="lifespan")  # type: ignore[arg-type]

    assert "Settings" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (get_engine, f"test_errors.py:{line(get_engine)}"),
        (functools.partial(get_engine, "x"), f"test_errors.py:{line(get_engine)}"),
        (functools.partial(functools.partial(get_engine)), f"test_errors.py:{line(get_engine)}"),
        (wrapper, f"test_errors.py:{line(get_engine)}"),
        (Connect().connect, f"test_errors.py:{line(Connect.connect)}"),
        (Connect.create, f"test_errors.py:{line(Connect.create)}"),
        (open_file, f"test_errors.py:{open_file.__wrapped__.__code__.co_firstlineno}"),  # type: ignore[attr-defined]
        (dict, "built in"),
        (len, "built in"),
        (functools.partial(dict), "built in"),
        (threading.Lock(), "built in"),
    ],
)
def test_a_callable_is_placed_by_file_and_line(call: object, place: str) -> None:
    assert location_of(call) == place


@pytest.mark.parametrize("call", [Connect, Connect(), functools.partial(Connect)])
def test_a_class_is_placed_by_its_file_at_least(call: object) -> None:
    assert location_of(call).startswith("test_errors.py")


def test_a_file_somewhere_else_is_named_in_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    assert location_of(get_engine) == f"{__file__}:{line(get_engine)}"


@pytest.mark.parametrize("wrap", [lambda kind: kind, lambda kind: kind(), functools.partial])
def test_a_class_that_was_made_at_a_prompt_has_no_file(
    wrap: Callable[[type], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    assert location_of(wrap(type("Typed", (), {"__module__": "__main__"})))


def test_a_path_is_drawn_as_a_tree_in_columns() -> None:
    path = [
        Step("GET /users", get_nothing),
        Step("engine", get_engine, 'scope="lifespan"'),
        Step("q: str", None, "a query parameter"),
    ]

    nothing, engine = (f"test_errors.py:{line(call)}" for call in (get_nothing, get_engine))
    assert draw_path(path).splitlines() == [
        f"  GET /users    {nothing}  get_nothing",
        f'  └─ engine     {engine}  get_engine  scope="lifespan"',
        f"     └─ q: str  {' ' * len(engine)}  a query parameter",
    ]


def test_a_path_may_have_no_callables() -> None:
    assert draw_path([Step("GET /", None), Step("q", None, "a query parameter")]).splitlines() == [
        "  GET /",
        "  └─ q     a query parameter",
    ]


def test_a_current_directory_that_is_gone_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert location_of(get_engine) == f"{__file__}:{line(get_engine)}"
