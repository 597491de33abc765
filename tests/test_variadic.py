"""Clauses 10 and 12: what hides behind `*args` and `**kwargs` is refused; no marker gets out."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Generic, Protocol, TypeVar
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import fastapi
import pytest
from fastapi.testclient import TestClient

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    InvalidLifespanDependency,
    LifespanFastAPI,
)

T = TypeVar("T")


async def get_url() -> str:
    return "postgres://"


Url = Annotated[str, Depends(get_url, scope="lifespan")]


def served(annotation: Any, depends: Any) -> Any:
    """What a route is given."""
    app = LifespanFastAPI()
    given = []

    async def read(value: Any = depends) -> None:
        given.append(value)

    read.__annotations__["value"] = annotation
    app.get("/")(read)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    return given[0]


class Repository(Generic[T]):
    def __init__(self, url: str = Depends(get_url, scope="lifespan"), size: int = 5) -> None:
        self.url = url
        self.size = size


class AnnotatedRepository(Generic[T]):
    def __init__(self, url: Url) -> None:
        self.url = url


class Query(Generic[T]):
    def __init__(self, token: str) -> None: ...


class User: ...


@pytest.mark.parametrize("kind", [Repository, AnnotatedRepository])
def test_k2_a_generic_alias_takes_what_its_origin_takes(kind: Any) -> None:
    inferred = served(kind[User], Depends(scope="lifespan"))
    given = served(kind, Depends(kind[User], scope="lifespan"))
    plain = served(kind, Depends(scope="lifespan"))
    for repository in (inferred, given, plain):
        assert type(repository) is kind
        assert repository.url == "postgres://"


def test_k2_aliases_are_shared_by_what_they_are_made_with() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(
        a: Annotated[Any, Depends(Repository[int], scope="lifespan")],
        b: Annotated[Any, Depends(Repository[int], scope="lifespan")],
        c: Annotated[Any, Depends(Repository[str], scope="lifespan")],
    ) -> list[bool]:
        return [a is b, a is c]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, False]


def test_k2_an_alias_is_named_with_its_place_where_it_takes_something_of_a_request() -> None:
    app = LifespanFastAPI()
    with pytest.raises(DependencyScopeError) as caught:

        @app.get("/")
        async def read(query: Annotated[Any, Depends(Query[User], scope="lifespan")]) -> None: ...

    assert "`Query[User]` is started once" in str(caught.value)
    assert "test_variadic.py" in str(caught.value)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does without `functools.wraps`."""

    async def inner(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return inner


def logged_with_name(function: Callable[..., Any]) -> Callable[..., Any]:
    async def inner(name: str = "pool", *args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return inner


async def get_pool(url: str = Depends(get_url, scope="lifespan")) -> str:
    return url


async def get_stock_pool(url: str = fastapi.Depends(get_url)) -> str:
    return url


class Singleton(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Service(metaclass=Singleton):
    def __init__(self, url: str = Depends(get_url, scope="lifespan")) -> None:
        self.url = url


class Base:
    def __init__(self, url: str = Depends(get_url, scope="lifespan"), **options: Any) -> None:
        self.url = url


class Child(Base):
    def __init__(self, size: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def apply(name: str = "pool", *args: Any, function: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def with_default(name: str = "pool", *, function: Any = get_pool, **kwargs: Any) -> Any:
    return function(**kwargs)


class HiddenGeneric(Base, Generic[T]):
    def __init__(self, size: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Odd:
    """It does not want to be looked at."""

    __slots__ = ("never_set",)

    @property
    def __signature__(self) -> inspect.Signature:
        raise RuntimeError("not to be read")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not to be looked at")

    def __call__(self, **kwargs: Any) -> Any:
        raise AssertionError


class Unset:
    """A slot of it was never filled."""

    __slots__ = ("never_set",)

    def __getattr__(self, name: str) -> Any:
        raise (RuntimeError if name == "never_set" else AttributeError)(name)

    def __call__(self, **kwargs: Any) -> str:
        return "postgres://"


class Slotted:
    __slots__ = ("functions",)

    def __init__(self, functions: Any) -> None:
        self.functions = functions

    def __call__(self, **kwargs: Any) -> Any:
        return self.functions[0](**kwargs)


class OneSlot:
    __slots__ = "function"  # as it may be written

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, **kwargs: Any) -> Any:
        return self.function(**kwargs)


class Logged:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def with_own_signature() -> Callable[..., Any]:
    @functools.wraps(get_pool)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return get_pool(*args, **kwargs)

    wrapper.__signature__ = inspect.signature(lambda size=1, **kwargs: 1)  # type: ignore[attr-defined]
    return wrapper


HIDDEN = {
    "decorated": logged(get_pool),
    "decorated, postponed": logged(logged(get_pool)),
    "decorated, with a name": logged_with_name(get_pool),
    "decorated, stock": logged_with_name(get_stock_pool),
    "partial": functools.partial(logged(get_pool)),
    "partial of an alias": functools.partial(Repository[int]),
    "metaclass": Service,
    "base class": Child,
    "object": Logged(get_pool),
    "partial of what is given by name": functools.partial(apply, function=get_pool),
    "slots": Slotted((get_pool,)),
    "default": with_default,
    "own signature": with_own_signature(),
    "mock": MagicMock(wraps=get_pool),
    "alias": HiddenGeneric[int],
    "one slot": OneSlot({"pool": get_pool}),
    "passed on": functools.partial(logged(get_url), get_pool),
}


@pytest.mark.parametrize("provider", HIDDEN.values(), ids=HIDDEN.keys())
def test_k2_a_hidden_declaration_is_refused_where_it_is_declared(
    provider: Callable[..., Any],
) -> None:
    with pytest.raises(InvalidLifespanDependency) as caught:
        Depends(provider, scope="lifespan")
    message = str(caught.value)
    assert "hides what `" in message
    assert "test_variadic.py:" in message
    assert "functools.wraps" in message


def everything(*args: Any, **kwargs: Any) -> int:
    return len(args) + len(kwargs)


class Variadic:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def method(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    "provider",
    [
        everything,
        Variadic,
        Variadic().method,
        Logged(get_pool).__call__,
        lambda *args: 1,
        lambda **kwargs: 1,
    ],
)
def test_k2_what_names_no_parameter_is_refused(provider: Callable[..., Any]) -> None:
    with pytest.raises(InvalidLifespanDependency, match="which does not tell") as caught:
        Depends(provider, scope="lifespan")
    assert "Wrap it in a function that names what it takes" in str(caught.value)
    name = getattr(provider, "__qualname__", "")
    assert (f"`lambda: {name}()`" in str(caught.value)) == name.isidentifier()
    app = LifespanFastAPI(dependencies=[Depends(get_pool, scope="lifespan")])
    app.dependency_overrides[get_pool] = provider
    with pytest.raises(InvalidLifespanDependency, match="dependency_overrides"), TestClient(app):
        pass


def create_engine(url: str = "postgres://", **options: Any) -> str:
    return url


class SessionMaker:
    def __init__(self, bind: str) -> None:
        self.bind = bind

    def __call__(self, **options: Any) -> str:
        return self.bind


class Visible(Base):
    def __init__(self, url: Url, **kwargs: Any) -> None:
        super().__init__(url=url, **kwargs)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_name(function: Callable[[], str], odd: Any = None) -> Callable[..., Any]:
    """A decorator whose function has names of its own, and holds what hides nothing."""

    def wrapper(name: str = "pool", **kwargs: Any) -> str:
        assert not odd or callable(odd)
        return function()

    return wrapper


@pytest.mark.parametrize(
    "provider",
    [
        create_engine,
        functools.partial(create_engine, "postgres://"),
        functools.partial(lambda *args: args[0], "postgres://"),
        SessionMaker("postgres://"),
        Unset(),
        with_name(lambda: "postgres://"),
        with_name(lambda: "postgres://", Odd()),
        decorated(create_engine),
    ],
)
def test_k2_what_names_its_parameters_or_was_given_them_is_taken(
    provider: Callable[..., Any],
) -> None:
    assert served(Any, Depends(provider, scope="lifespan")) == "postgres://"


def test_k2_a_class_may_pass_on_what_it_declares_itself() -> None:
    assert served(Any, Depends(Visible, scope="lifespan")).url == "postgres://"


class Clock(Protocol):
    def now(self) -> float: ...


class SystemClock(Clock):
    def now(self) -> float:
        return 1.0


def test_k2_a_class_that_implements_a_protocol_takes_nothing() -> None:
    """Its constructor is typing's, until the first call."""
    assert served(Any, Depends(SystemClock, scope="lifespan")).now() == 1.0
    assert served(Any, Depends(SystemClock, scope="lifespan")).now() == 1.0


class Factory:
    def __init__(self, url: str = Depends(get_url, scope="lifespan")) -> None:
        self.url = url

    @classmethod
    def connect(cls, url: Url, **options: Any) -> Any:
        return cls(url, **options)

    def make(self, size: int = 5, **options: Any) -> Any:
        return super().__getattribute__("url")


def test_k2_what_a_method_belongs_to_is_not_what_it_passes_its_arguments_to() -> None:
    assert served(Any, Depends(Factory.connect, scope="lifespan")).url == "postgres://"
    assert served(Any, Depends(Factory("mine").make, scope="lifespan")) == "mine"


@pytest.mark.parametrize(
    "mock",
    [
        MagicMock(return_value="mine"),
        AsyncMock(return_value="mine"),
        Mock(spec=Service, return_value="mine"),
        MagicMock(service=Service, return_value="mine"),
        create_autospec(create_engine, return_value="mine"),
    ],
    ids=["magic", "async", "spec", "attribute", "autospec"],
)
def test_k2_a_mock_may_be_an_override(mock: Any) -> None:
    app = LifespanFastAPI()

    @app.get("/")
    async def read(pool: Annotated[str, Depends(get_pool, scope="lifespan")]) -> str:
        return pool

    app.dependency_overrides[get_pool] = mock
    with TestClient(app) as client:
        assert client.get("/").json() == "mine"


def test_k2_what_was_refused_is_taken_when_it_is_wrapped_as_the_message_says() -> None:
    async def get_logged_pool(url: Url) -> Any:
        return await logged(get_pool)(url=url)

    assert served(Any, Depends(get_logged_pool, scope="lifespan")) == "postgres://"


async def give_default() -> Any:
    return await get_pool()


def yield_default() -> Iterator[Any]:
    yield get_pool.__defaults__[0]  # type: ignore[index]


async def yield_default_async() -> AsyncIterator[Any]:
    yield await get_stock_pool()


@pytest.mark.parametrize("provider", [give_default, yield_default, yield_default_async])
def test_clause_10_a_declaration_is_no_value(provider: Callable[..., Any]) -> None:
    with pytest.raises(InvalidLifespanDependency, match="gave a declaration"):
        served(Any, Depends(provider, scope="lifespan"))
