"""The graph: what is planned, or runs, and what depends on what; as data, text, picture, JSON."""

import inspect
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from fastapi_lifespan_deps import (
    DependencyScopeError,
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    LifespanFastAPI,
    LifespanGraph,
    LifespanNode,
    View,
    get_container,
    lifespan_container,
    lifespan_graph,
)
from tests.at_prompt import invoke, run
from tests.clients import running
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as they are seen from the current directory."""
    monkeypatch.chdir(Path(__file__).parent)


def get_settings() -> str:
    return "settings"


SettingsDep = Annotated[str, Depends(get_settings, scope="lifespan")]


def ping(value: object) -> None: ...


async def get_pool(settings: SettingsDep) -> AsyncIterator[str]:
    yield "pool"


def get_fake_pool() -> str:
    return "fake"


PoolDep = Annotated[str, Depends(get_pool, scope="lifespan", refresh_every=3600, health=ping)]
OwnPool = Annotated[str, Depends(get_pool, scope="lifespan", use_cache=False)]


def get_model(pool: PoolDep, settings: SettingsDep) -> str:
    return "model"


ModelDep = Annotated[str, Depends(get_model, scope="lifespan")]


def make_app() -> LifespanFastAPI:
    app = LifespanFastAPI()

    @app.get("/model")
    async def read_model(model: ModelDep) -> None: ...

    @app.get("/pool")
    async def read_pool(pool: PoolDep, own: OwnPool) -> None: ...

    @app.get("/plain")
    async def read_plain(container: Annotated[View, Depends(get_container)]) -> None: ...

    return app


def line(call: Callable[..., Any]) -> str:
    return f"test_graph.py:{call.__code__.co_firstlineno}"


# The data


def test_the_nodes() -> None:
    settings, pool, model, own = lifespan_graph(make_app()).nodes
    assert settings == LifespanNode(
        number=1,
        provider=get_settings,
        name="get_settings",
        where=line(get_settings),
        _path=settings._path,
    )
    assert (pool.number, pool.depends_on) == (2, (1,))
    assert pool.options == {"refresh_every": 3600, "health": "ping"}
    assert pool.state == "planned"
    assert pool.start_seconds is None
    assert model.depends_on == (2, 1)
    assert own.provider is get_pool
    assert own.place == "make_app.<locals>.read_pool(own)"


def test_the_users() -> None:
    model, pool = lifespan_graph(make_app()).users
    assert (model.label, model.needs) == ("GET /model", (3,))
    assert model.where.startswith("test_graph.py:")
    assert (pool.label, pool.needs) == ("GET /pool", (2, 4))


def test_what_declares_without_being_a_route_is_a_user_too() -> None:
    app = LifespanFastAPI(dependencies=[Depends(get_settings, scope="lifespan")], handlers=[work])
    labels = [user.label for user in lifespan_graph(app).users]
    assert sorted(labels) == ["dependencies of the application", "work"]


def work(pool: PoolDep) -> None: ...


def test_nothing_is_a_graph_too() -> None:
    for empty in (lifespan_graph(LifespanFastAPI()), LifespanGraph()):
        assert str(empty) == ""
        assert empty.mermaid() == "flowchart LR"
        with pytest.raises(LifespanDependencyError, match="declared: there is none"):
            empty.why("get_pool")


def test_a_container_has_one() -> None:
    container = LifespanContainer(get_model)
    assert [node.name for node in lifespan_graph(container).nodes] == [
        "get_settings",
        "get_pool",
        "get_model",
    ]


def test_an_override_is_shown_in_its_place() -> None:
    app = make_app()
    app.dependency_overrides[get_pool] = get_fake_pool
    fake = lifespan_graph(app).nodes[0]
    assert (fake.name, fake.overrides) == ("get_fake_pool", "get_pool")
    # it has no health check but its own, and is refreshed in the place of what it overrides
    assert fake.options == {"refresh_every": 3600}
    assert "  overrides get_pool  refresh_every=3600" in str(fake)
    assert lifespan_graph(app).why(get_pool) == lifespan_graph(app).why("get_fake_pool")


def test_one_override_of_two() -> None:
    app = make_app()
    app.dependency_overrides |= {get_settings: get_fake_pool, get_pool: get_fake_pool}
    fake, *_ = lifespan_graph(app).nodes
    assert set((fake.overrides or "").split(", ")) == {"get_settings", "get_pool"}


def test_an_override_in_one_application_only() -> None:
    app, mounted = make_app(), FastAPI()

    @mounted.get("/inner")
    async def read_inner(pool: PoolDep) -> None: ...

    mounted.dependency_overrides[get_pool] = get_fake_pool
    app.mount("/mounted", mounted)
    graph = lifespan_graph(app)
    assert [(node.name, node.overrides) for node in graph.nodes] == [
        ("get_settings", None),
        ("get_pool", None),
        ("get_model", None),
        ("get_pool", None),
        ("get_fake_pool", "get_pool"),
    ]
    assert graph.users[-1].label == "GET /mounted/inner"
    assert graph.users[-1].needs == (5,)


def test_a_bound_method_overrides_nothing() -> None:
    """It is another object each time."""

    class Factory:
        def make(self) -> str:
            return "made"

    factory = Factory()
    app = LifespanFastAPI()
    for path in ("/a", "/b"):

        @app.get(path)
        async def read(made: Annotated[str, Depends(factory.make, scope="lifespan")]) -> None: ...

    (node,) = lifespan_graph(app).nodes
    assert node.overrides is None
    assert lifespan_graph(app).why(factory.make).startswith("1. ")


def test_what_is_wrong_is_raised() -> None:
    app = make_app()

    def needs_request(q: str) -> str:
        return q

    app.dependency_overrides[get_pool] = needs_request
    with pytest.raises(DependencyScopeError):
        lifespan_graph(app)


def test_a_plain_application_has_none() -> None:
    with pytest.raises(LifespanDependencyError, match="a plain FastAPI"):
        lifespan_graph(FastAPI())


async def test_what_runs(anyio_backend: str) -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        graph = lifespan_container(app).graph()
        assert {node.state for node in graph.nodes} == {"running"}
        assert all((node.start_seconds or 0) >= 0 for node in graph.nodes)
        assert "  running  started in 0." in str(graph)
        assert graph.users == lifespan_graph(app).users


async def test_a_request_is_shown_what_others_get_that_arrive_now(anyio_backend: str) -> None:
    app = make_app()

    @app.get("/graph")
    async def read_graph(container: Annotated[View, Depends(get_container)]) -> list[str]:
        app.dependency_overrides[get_pool] = get_fake_pool
        await client.get("/pool")
        assert container[get_pool] == "pool"
        return [node.name for node in container.graph().nodes]

    async with running(app) as client:
        names = (await client.get("/graph")).json()
        assert names == [node.name for node in lifespan_graph(app).nodes]
        assert "get_fake_pool" in names


async def test_what_has_died(anyio_backend: str) -> None:
    cut = anyio.Event()

    async def fail() -> None:
        await cut.wait()
        raise ConnectionError

    async def get_feed() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            yield "feed"

    container = LifespanContainer(get_feed)
    with pytest.raises(ExceptionGroup):
        async with container:
            cut.set()
            with anyio.fail_after(60):
                while container.graph().nodes[0].state != "dead":
                    await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_what_is_not_there_says_why() -> None:
    """A refresh that has stopped the old value first; an override that fails; a stop."""
    fails = False

    async def get_feed() -> AsyncIterator[str]:
        if fails:
            raise ConnectionError
        yield "feed"
        await leaving.wait()

    async def get_model() -> str:
        return "model"

    async def broken() -> str:
        raise ConnectionError

    def states() -> list[str]:
        return [node.state for node in app.lifespan_container.graph().nodes]

    leaving = anyio.Event()
    app = LifespanFastAPI()
    for number, provider in enumerate((get_feed, get_model)):
        dependencies = [Depends(provider, scope="lifespan")]
        app.get(f"/{number}", dependencies=dependencies)(lambda: None)
    async with running(app, raises=False) as client:
        before = app.lifespan_container._generation
        node = next(iter(before.instances))
        await app.lifespan_container.refresh(get_feed)
        with anyio.fail_after(60):
            while before.status(node)[0] != "stopping":
                await anyio.lowlevel.checkpoint()
            leaving.set()
            while before.status(node)[0] != "stopped":
                await anyio.lowlevel.checkpoint()

        app.dependency_overrides[get_model] = broken
        assert (await client.get("/1")).status_code == 500
        assert states() == ["running", "failed"]

        fails = True
        with pytest.raises(ConnectionError):
            await app.lifespan_container.refresh(get_feed, policy="resource_preserving")
        assert states() == ["withdrawn", "failed"]


# As text


def test_the_tree() -> None:
    settings, pool = line(get_settings), line(get_pool)
    assert lifespan_graph(make_app()).tree() == (
        f"3. get_model  {line(get_model)}\n"
        f"├─ 2. get_pool  {pool}  refresh_every=3600  health=ping\n"
        f"│  └─ 1. get_settings  {settings}\n"
        "└─ 1. get_settings (above)\n"
        f"4. get_pool  {pool}  for make_app.<locals>.read_pool(own)  refresh_every=3600"
        "  health=ping\n└─ 1. get_settings (above)"
    )


def test_the_tree_with_routes() -> None:
    graph = lifespan_graph(make_app())
    lines = graph.tree(routes=True).splitlines()
    assert lines[0].startswith("GET /model  test_graph.py:")
    assert lines[1].startswith("└─ 3. get_model")
    assert "├─ 2. get_pool (above)" in lines


def test_the_tree_with_routes_has_what_no_route_needs() -> None:
    node = LifespanNode(number=1, provider=get_pool, name="get_pool", where="db.py:1")
    assert LifespanGraph(nodes=(node,)).tree(routes=True) == "1. get_pool  db.py:1"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.5"), (3600.0, "3600"), (86400000.0, "86400000"), (3, "3")]
)
def test_seconds_are_shown_as_they_were_given(value: float, shown: str) -> None:
    node = LifespanNode(
        number=1, provider=get_pool, name="f", where="x.py:1", options={"start_timeout": value}
    )
    assert str(node).endswith(f"start_timeout={shown}")


def test_why() -> None:
    graph = lifespan_graph(make_app())
    why = graph.why("get_settings")
    assert why.startswith(f"1. get_settings  {line(get_settings)}\n\n  GET /model")
    assert "└─ settings" in why
    assert why.endswith("\n\nNeeded by GET /model, GET /pool.")
    assert graph.why(get_settings) == why
    assert graph.why("get_pool").count("Needed by") == 2


def test_why_finds_the_end_of_a_name() -> None:
    def get_inner() -> None: ...

    graph = lifespan_graph(LifespanContainer(get_inner))
    assert graph.why("get_inner") == graph.why(get_inner)


def test_why_nothing() -> None:
    graph = lifespan_graph(make_app())
    for asked in ("ping", ping):
        with pytest.raises(LifespanDependencyError) as caught:
            graph.why(asked)
        assert str(caught.value) == (
            "`ping` is no lifespan dependency here. Give one that is declared: get_settings, "
            "get_pool, get_model."
        )


def test_why_of_what_many_routes_need() -> None:
    app = LifespanFastAPI()
    for number in range(12):

        @app.get(f"/{number}")
        async def read(settings: SettingsDep) -> None: ...

    assert lifespan_graph(app).why(get_settings).endswith("GET /9 and 2 others.")


# As a picture


def test_the_picture() -> None:
    pool = line(get_pool)
    assert lifespan_graph(make_app()).mermaid() == (
        "flowchart LR\n"
        f'    n1["1: get_settings<br>{line(get_settings)}"]\n'
        f'    n2["2: get_pool<br>{pool}"]\n'
        f'    n3["3: get_model<br>{line(get_model)}"]\n'
        f'    n4["4: get_pool<br>{pool}<br>for make_app.#60;locals#62;.read_pool(own)"]\n'
        "    n2 --> n1\n"
        "    n3 --> n2\n"
        "    n3 --> n1\n"
        "    n4 --> n1"
    )


def test_the_picture_of_an_override() -> None:
    def fake() -> str:
        raise AssertionError

    app = make_app()
    app.dependency_overrides[get_settings] = fake
    assert f"<br>{line(fake)}<br>overrides get_settings" in lifespan_graph(app).mermaid()


def test_what_the_same_routes_need_is_in_a_box() -> None:
    app = make_app()

    def get_one(settings: SettingsDep) -> None: ...

    def get_two(one: Annotated[None, Depends(get_one, scope="lifespan")]) -> None: ...

    for number in range(5):

        @app.get(f"/two/{number}")
        async def read_two(two: Annotated[None, Depends(get_two, scope="lifespan")]) -> None: ...

    picture = lifespan_graph(app).mermaid()
    assert (
        '    subgraph g5["GET /two/0, GET /two/1 and 3 others"]\n'
        '        n5["5: test_what_the_same_routes_need_is_in_a_box.#60;locals#62;.get_one<br>'
    ) in picture
    assert picture.count("subgraph") == picture.count("\n    end") == 1


def test_nothing_ends_a_label_or_is_markup() -> None:
    app = LifespanFastAPI()

    def get_odd() -> None: ...

    get_odd.__qualname__ = 'get["odd"] `x` *y* <b>#35;</b> \\n %% &amp; é'

    @app.get("/odd")
    async def read(odd: Annotated[None, Depends(get_odd, scope="lifespan")]) -> None: ...

    label = lifespan_graph(app).mermaid().splitlines()[1].partition('["')[2].removesuffix('"]')
    text, _, _ = label.partition("<br>")
    assert set(re.sub(r"#\d+;", "", text)).isdisjoint('"`*<>#&%\\')
    decoded = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text)
    assert decoded == f"1: {get_odd.__qualname__}"


# As JSON


def test_json() -> None:
    told = json.loads(lifespan_graph(make_app()).json())
    assert list(told) == ["version", "dependencies", "users"]
    assert told["version"] == 1
    assert told["dependencies"][1] == {
        "number": 2,
        "name": "get_pool",
        "where": line(get_pool),
        "depends_on": [1],
        "place": None,
        "overrides": None,
        "options": {"refresh_every": 3600, "health": "ping"},
        "state": "planned",
        "start_seconds": None,
    }
    assert told["users"][1]["needs"] == [2, 4]


def test_a_time_without_an_end_is_json_too() -> None:
    async def get_value() -> None: ...

    app = LifespanFastAPI()
    limit = Depends(get_value, scope="lifespan", start_timeout=math.inf, stop_timeout=2)
    app.get("/", dependencies=[limit])(lambda: None)
    told = json.loads(lifespan_graph(app).json(), parse_constant=pytest.fail)
    assert told["dependencies"][0]["options"] == {"start_timeout": None, "stop_timeout": 2}


# Graphs of any shape


def shaped(shape: list[list[int]]) -> LifespanGraph:
    """The graph of providers that depend on earlier ones so."""
    providers: list[Callable[..., Any]] = []
    for number, needs in enumerate(shape):

        def provide(**values: Any) -> None: ...

        provide.__qualname__ = provide.__name__ = f"get_{number}"
        provide.__dict__["__signature__"] = _signature([providers[one] for one in needs])
        providers.append(provide)
    return lifespan_graph(LifespanContainer(*providers[::-1]))


def _signature(providers: list[Callable[..., Any]]) -> Any:
    return inspect.Signature(
        [
            inspect.Parameter(
                f"v{index}",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[None, Depends(one, scope="lifespan")],
            )
            for index, one in enumerate(providers)
        ]
    )


@st.composite
def shapes(draw: st.DrawFn) -> list[list[int]]:
    size = draw(st.integers(1, 12))
    return [
        draw(st.lists(st.integers(0, number - 1), unique=True, max_size=4)) if number else []
        for number in range(size)
    ]


@given(shapes())
def test_any_graph(shape: list[list[int]]) -> None:
    graph = shaped(shape)
    assert [node.number for node in graph.nodes] == list(range(1, len(shape) + 1))
    edges = [(node.number, other) for node in graph.nodes for other in node.depends_on]
    assert all(other < number for number, other in edges)
    assert len(edges) == sum(map(len, shape))

    for tree in (graph.tree(), graph.tree(routes=True)):
        drawn = re.findall(r"(\d+)\. get_\d+(?! \(above\))(?!\d)", tree)
        assert sorted(map(int, drawn)) == list(range(1, len(shape) + 1))
        repeated = tree.count("(above)")
        tops = len(tree.splitlines()) - repeated - len(drawn)  # what declares them
        assert tops == (1 if tree.startswith("dependencies of") else 0)

    arrows = re.findall(r"n(\d+) --> n(\d+)", graph.mermaid())
    assert [(int(one), int(other)) for one, other in arrows] == edges
    boxes = re.findall(r'n(\d+)\["', graph.mermaid())
    assert sorted(map(int, boxes)) == list(range(1, len(shape) + 1))
    assert json.loads(graph.json()) == json.loads(shaped(shape).json())


def test_a_long_chain_is_drawn() -> None:
    """Longer than Python's stack is deep: planning has a limit, drawing has none."""
    nodes = tuple(
        LifespanNode(
            number=number,
            provider=get_pool,
            name=f"get_{number}",
            where="x.py:1",
            depends_on=(number - 1,) if number > 1 else (),
        )
        for number in range(1, 3001)
    )
    graph = LifespanGraph(nodes=nodes)
    assert len(graph.tree().splitlines()) == 3000
    assert graph.mermaid().count("-->") == 2999


# The command


SHOP = ROOT / "docs_src" / "seeing"


@pytest.fixture
def shop(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHOP)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("options", "begin"),
    [
        ("", "4. get_index  shop/ml.py:"),
        ("--routes", "GET /users/{user_id}  shop/main.py:"),
        ("--why get_model", "3. get_model  shop/ml.py:"),
        ("--format mermaid", "flowchart LR\n"),
        ("--format json", '{\n  "version": 1,'),
    ],
)
def test_the_command(options: str, begin: str) -> None:
    ended = invoke(f"graph shop.main:app {options}")
    assert ended.code == 0
    assert ended.out.startswith(begin)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("--format dot", 2, "'dot' is not one of 'tree', 'mermaid', 'json'"),
        ("--format json --routes", 2, "json has the routes anyway: drop --routes"),
        ("--format json --why get_pool", 2, "--why answers in words: drop --format and --routes"),
        ("--routes --why get_pool", 2, "--why answers in words"),
        ("--why get_po", 1, "`get_po` is no lifespan dependency here. Give one that is declared:"),
    ],
)
def test_bad_options(options: str, code: int, text: str) -> None:
    ended = invoke(f"graph shop.main:app {options}")
    assert ended.code == code
    assert text in " ".join(ended.err.split())


def test_an_application_without_any(workplace: Path) -> None:
    Path("main.py").write_text(
        "from fastapi_lifespan_deps import LifespanFastAPI\n"
        "print('printed by the import')\n"
        "app = LifespanFastAPI()\n"
    )
    ended = invoke("graph")
    assert (ended.code, ended.out) == (0, "main:app: no lifespan dependencies.\n")
    assert ended.err == "printed by the import\n"
    assert json.loads(invoke("graph --format json").out)["dependencies"] == []


def test_nothing_is_printed_between_the_json(workplace: Path) -> None:
    Path("main.py").write_text(
        "from fastapi_lifespan_deps import LifespanFastAPI\nprint('{')\napp = LifespanFastAPI()\n"
    )
    ended = run("graph --format json", workplace)
    assert json.loads(ended.out)["version"] == 1


def test_lines_that_cannot_be_encoded(workplace: Path) -> None:
    ended = run("graph shop.main:app", SHOP, PYTHONIOENCODING="ascii")
    assert ended.code == 0
    assert "1. get_settings" in ended.out
