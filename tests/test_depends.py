"""`Depends(...)` itself: what it returns, what it refuses, and where it may stand."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, cast

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, WebSocket, params
from fastapi.testclient import TestClient
from typing_extensions import TypeAliasType

from fastapi_lifespan_deps import (
    Depends,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
)


class Settings:
    """Made without arguments."""


def get_settings() -> Settings:
    return Settings()


def get_other() -> Settings:
    return Settings()


def lifespan_of(annotation: Any, *default: Any) -> list[Any]:
    """What an endpoint with such a parameter is given, by two requests and a WebSocket."""
    app = LifespanFastAPI()
    given = []

    def read(value: Any) -> None:
        given.append(value)

    async def listen(websocket: WebSocket, value: Any) -> None:
        given.append(value)
        await websocket.accept()

    for function in (read, listen):
        function.__annotations__["value"] = annotation
        function.__defaults__ = default or None
    app.get("/")(read)
    app.websocket("/")(listen)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
        assert client.get("/").status_code == 200
        with client.websocket_connect("/"):
            pass
    return given


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scope", [None, "function", "request"])
def test_every_other_scope_gives_what_fastapi_gives(scope: Any, use_cache: bool) -> None:
    ours = Depends(get_settings, scope=scope, use_cache=use_cache)

    assert type(ours) is params.Depends
    assert ours == fastapi.Depends(get_settings, scope=scope, use_cache=use_cache)


def test_without_arguments_it_gives_what_fastapi_gives() -> None:
    assert Depends() == fastapi.Depends()


@pytest.mark.skipif(
    not hasattr(params.Depends, "max_concurrency"), reason="FastAPI has max_concurrency from 0.163"
)
def test_options_go_through_to_fastapi() -> None:
    assert Depends(get_settings, max_concurrency=2).max_concurrency == 2


def test_an_option_that_fastapi_does_not_know_is_its_own_error() -> None:
    with pytest.raises(TypeError, match="colour"):
        Depends(get_settings, colour="red")


@pytest.mark.parametrize("scope", ["session", "Lifespan", "", 1, ["lifespan"]])
def test_clause_4_an_unknown_scope_is_refused_by_the_call(scope: Any) -> None:
    with pytest.raises(InvalidDependencyScope) as caught:
        Depends(get_settings, scope=scope)

    assert caught.value.scope == scope


@dataclasses.dataclass
class Unhashable:
    def __call__(self) -> Settings:
        return Settings()


@pytest.mark.parametrize(
    ("dependency", "problem"),
    [
        (42, "needs a callable"),
        ("get_settings", "needs a callable"),
        (Settings(), "needs a callable"),
        (Settings | None, "makes nothing"),
        (Unhashable(), "needs a hashable callable"),
    ],
)
def test_what_cannot_be_a_dependency_is_refused_by_the_call(dependency: Any, problem: str) -> None:
    with pytest.raises(InvalidLifespanDependency, match=problem) as caught:
        Depends(dependency, scope="lifespan")

    assert caught.value.dependency is dependency


@pytest.mark.parametrize("option", ["max_concurrency", "colour"])
@pytest.mark.parametrize("dependency", [get_settings, None])
def test_options_of_a_request_are_refused_by_the_call(
    dependency: Callable[[], Settings] | None, option: str
) -> None:
    options: dict[str, Any] = {option: 1}

    with pytest.raises(InvalidLifespanDependency, match=f"does not take `{option}`") as caught:
        Depends(dependency, scope="lifespan", **options)

    assert caught.value.dependency is dependency


def test_a_declaration_is_one_of_fastapi() -> None:
    declaration = Depends(get_settings, scope="lifespan", use_cache=False)

    assert isinstance(declaration, params.Depends)
    assert (declaration.scope, declaration.use_cache) == ("lifespan", False)


def test_declarations_are_equal_if_they_declare_the_same() -> None:
    declaration = Depends(get_settings, scope="lifespan")

    assert declaration == Depends(get_settings, scope="lifespan")
    assert declaration != Depends(get_other, scope="lifespan")
    assert declaration != Depends(get_settings, scope="lifespan", use_cache=False)
    assert declaration != fastapi.Depends(get_settings)


def test_a_copy_of_a_declaration_with_another_use_cache_declares_that() -> None:
    declaration = Depends(get_settings, scope="lifespan")

    copy = dataclasses.replace(declaration, use_cache=False)

    assert copy == Depends(get_settings, scope="lifespan", use_cache=False)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Annotated[Settings, Depends(get_settings, scope="lifespan")], ()),
        (Annotated[Settings, "a note", Depends(get_settings, scope="lifespan"), "another"], ()),
        (Annotated[Settings, Depends(get_other), Depends(get_settings, scope="lifespan")], ()),
        (Settings, (Depends(get_settings, scope="lifespan"),)),
        (Annotated[Settings, Depends(scope="lifespan")], ()),
        (Settings, (Depends(scope="lifespan"),)),
    ],
    ids=["annotated", "among notes", "last wins", "default", "inferred", "inferred by default"],
)
def test_a_parameter_gets_the_one_value(annotation: Any, default: tuple[Any, ...]) -> None:
    first, *others = lifespan_of(annotation, *default)

    assert type(first) is Settings
    assert all(other is first for other in others)


def test_a_parametrised_class_is_inferred_too() -> None:
    first, *others = lifespan_of(Annotated[dict[str, int], Depends(scope="lifespan")])

    assert first == {}
    assert all(other is first for other in others)


def test_an_inferred_class_may_be_local_to_a_function() -> None:
    class Local:
        pass

    first, *others = lifespan_of(Annotated[Local, Depends(scope="lifespan")])

    assert type(first) is Local
    assert all(other is first for other in others)


def test_an_inferred_class_and_the_class_itself_are_one_dependency() -> None:
    app = LifespanFastAPI()

    @app.get("/")
    def read(
        inferred: Annotated[Settings, Depends(scope="lifespan")],
        given: Annotated[Settings, Depends(Settings, scope="lifespan")],
        own: Annotated[Settings, Depends(scope="lifespan", use_cache=False)],
    ) -> list[bool]:
        return [inferred is given, inferred is own]

    with TestClient(app) as client:
        assert client.get("/").json() == [True, False]


@pytest.mark.parametrize("place", ["app", "router", "include", "route", "websocket"])
def test_a_list_of_dependencies_may_hold_it(place: str) -> None:
    started = []

    def start() -> None:
        started.append(place)

    here: dict[str, Any] = {place: [Depends(start, scope="lifespan")]}
    app = LifespanFastAPI(dependencies=here.get("app"))
    router = APIRouter(dependencies=here.get("router"))

    @router.get("/", dependencies=here.get("route"))
    def read() -> None: ...

    @router.websocket("/", dependencies=here.get("websocket"))
    async def listen(websocket: WebSocket) -> None:
        await websocket.accept()

    app.include_router(router, dependencies=here.get("include"))
    with TestClient(app) as client:
        assert started == [place]
        assert client.get("/").status_code == 200
        with client.websocket_connect("/"):
            pass
    assert started == [place]


def test_a_list_entry_needs_its_callable_as_in_fastapi() -> None:
    with pytest.raises(AssertionError, match="callable"):
        LifespanFastAPI(dependencies=[Depends(scope="lifespan")]).get("/")(lambda: None)


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[Settings | None, Depends(scope="lifespan")],
        Annotated["Unknown", Depends(scope="lifespan")],  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        Annotated[Any, Depends(scope="lifespan")],
    ],
    ids=["union", "a name that is not there", "Any"],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_what_cannot_be_inferred_is_refused_at_the_line_of_the_route(
    annotation: Any, depth: int
) -> None:
    def function(value: Any) -> None: ...

    function.__annotations__["value"] = annotation

    def deeper(value: Annotated[None, Depends(function, scope="lifespan")]) -> None: ...

    with pytest.raises(InvalidLifespanDependency, match="needs a"):
        LifespanFastAPI().get("/")([function, deeper][depth])


@pytest.mark.parametrize("depth", [0, 1])
def test_a_class_cannot_be_inferred_without_an_annotation(depth: int) -> None:
    def function(value=Depends(scope="lifespan")) -> None: ...  # type: ignore[no-untyped-def]

    def deeper(value: Annotated[None, Depends(function, scope="lifespan")]) -> None: ...

    with pytest.raises(InvalidLifespanDependency, match="needs a"):
        LifespanFastAPI().get("/")([function, deeper][depth])


Stock = TypeAliasType("Stock", Annotated[int, fastapi.Depends(get_settings)])
Given = TypeAliasType("Given", Annotated[Settings, Depends(get_settings, scope="lifespan")])
Inferred = TypeAliasType("Inferred", Annotated[Settings, Depends(scope="lifespan")])


def fastapi_reads_aliases() -> bool:
    app = FastAPI()

    @app.get("/")
    def read(value: Stock) -> None: ...

    return bool(app.router.routes[-1].dependant.dependencies)  # type: ignore[attr-defined]


@pytest.mark.skipif(not fastapi_reads_aliases(), reason="this FastAPI reads no `type` aliases")
@pytest.mark.parametrize("alias", [Given, Inferred])
def test_clause_4_a_type_alias_works_in_an_endpoint(alias: Any) -> None:
    first, *others = lifespan_of(alias)

    assert type(first) is Settings
    assert all(other is first for other in others)


def test_clause_4_a_type_alias_works_in_a_lifespan_dependency() -> None:
    def get_both(given: Given, inferred: Inferred) -> list[Settings]:
        return [given, inferred]

    first, *_ = lifespan_of(Annotated[list[Settings], Depends(get_both, scope="lifespan")])

    assert [type(value) for value in first] == [Settings, Settings]


Renamed = TypeAliasType("Renamed", Given)
Described = TypeAliasType("Described", Annotated[Inferred, "the settings"])
Noted = Annotated[Given, "the settings"]


def test_clause_10_an_alias_of_an_alias_is_not_left_to_its_default() -> None:
    """FastAPI refuses them in an endpoint; nobody else would notice."""

    def get_values(
        renamed: Renamed = None,  # type: ignore[assignment] # as people write it
        described: Described = None,  # type: ignore[assignment]
        noted: Noted = None,  # type: ignore[assignment]
    ) -> list[Settings]:
        return [renamed, described, noted]

    first, *_ = lifespan_of(Annotated[list[Settings], Depends(get_values, scope="lifespan")])
    assert [type(value) for value in first] == [Settings] * 3
    assert list(map(type, LifespanContainer().run(get_values))) == [Settings] * 3


def test_clause_4_an_annotation_that_is_made_of_itself_is_a_plain_one() -> None:
    class Round:
        @property
        def __value__(self) -> "Round":
            return self

    def get_value(value: Any = 1) -> Any:
        return value

    get_value.__annotations__["value"] = Round()
    assert LifespanContainer().run(get_value) == 1


def test_clause_12_an_alias_of_an_alias_is_no_provider() -> None:
    with pytest.raises(InvalidLifespanDependency, match="that is an annotation"):
        Depends(cast(Any, Renamed), scope="lifespan")


class Tree:
    """A type that is made of itself, as `type Tree = dict[str, Tree] | list[Tree]` makes it."""

    @property
    def __value__(self) -> Any:
        return dict[str, self] | list[self]  # type: ignore[valid-type]


@pytest.mark.parametrize("annotation", [Given | None, "Given | None", list[Noted] | None])
def test_clause_10_what_a_larger_type_hides_is_refused(annotation: Any) -> None:
    """A default would take its place, and nobody would notice."""

    def get_value(value: Any = None) -> None: ...

    get_value.__annotations__["value"] = annotation
    text = r"get_value` .* declares `value: ...` with `Depends` inside of a larger type"
    with pytest.raises(LifespanDependencyError, match=text), LifespanContainer(get_value).sync():
        raise AssertionError
    with pytest.raises(LifespanDependencyError, match=text):
        LifespanContainer().inject(get_value)
    with pytest.raises(LifespanDependencyError, match=text):
        lifespan_of(Any, Depends(get_value, scope="lifespan"))


@pytest.mark.parametrize("annotation", [Tree(), Settings | None, "Missing | None"])
def test_clause_12_a_larger_type_without_is_left_to_its_default(annotation: Any) -> None:
    def get_value(value: Any = 1) -> Any:
        return value

    get_value.__annotations__["value"] = annotation
    assert LifespanContainer().run(get_value) == 1
    assert lifespan_of(Annotated[Any, Depends(get_value, scope="lifespan")])[0] == 1
