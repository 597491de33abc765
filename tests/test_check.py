"""The command `check`, and how commands find an application."""

import os
import re
from pathlib import Path

import pytest

from tests.at_prompt import MODULE, SCRIPT, invoke, run
from tests.processes import ROOT

ERRORS = ROOT / "docs_src" / "errors"

# What planning knows of docs_src/errors/, and what the message begins with.
KNOWN = {
    "called": "InvalidLifespanDependency: `Depends('postgresql://localhost/shop'",
    "conflicting_options": "InvalidLifespanDependency: `Depends(get_pool",
    "cycle": "DependencyCycleError: `Users` depends on itself",
    "hidden": "InvalidLifespanDependency: `Depends(logged.<locals>.wrapper",
    "hook_wrapper": "InvalidLifespanDependency: `count_users` declares `pool`",
    "no_health_check": "LifespanDependencyError: add_health_routes(ready=[get_pool])",
    "request_dependency": "DependencyScopeError: `get_pool` is started once",
    "request_object": "DependencyScopeError: `get_locale` is started once",
    "request_parameter": "DependencyScopeError: `get_pool` is started once",
    "sync_timeout": "InvalidLifespanDependency: `Depends(load_model",
    "unknown_scope": "InvalidDependencyScope: 'lifetime' is not a scope",
}
# What it warns of.
DOUBTED = {
    "override_of_nothing": "dependency_overrides[Annotated[Pool, ...]] overrides nothing",
    "stock_scope": "GET /users/{user_id} declares `get_pool`",
}
# What is no application that knows the scope.
NOT_OURS = {"plain_app": "is a plain FastAPI"}
# What it cannot know, and why.
UNKNOWN = {
    "call_timeout": "a worker's call takes too long",
    "cancelled_by_others": "a worker's call is cancelled",
    "crashed": "it dies while the application serves",
    "failed_override": "the override is set while the application serves",
    "failed_start": "the provider raises: `start` tells",
    "failed_stops": "the provider raises: `start` tells",
    "invalid_override": "the override is set while the application serves",
    "late_route": "the route is added while the application serves",
    "no_application": "another library solves the declaration",
    "no_async_iterable": "a worker is given the wrong messages",
    "no_container": "the container is asked for where none runs",
    "no_request": "another library calls the declaration",
    "other_event_loop": "the request comes in another event loop",
    "own_place": "the route is added while the application serves",
    "refused_refresh": "a request asks for it",
    "start_timeout": "the provider hangs: `start` tells",
    "stopped": "a value is asked for after the stop",
    "unavailable": "the override is set while the application serves",
    "waiting_for_itself": "a request asks for it",
    "without_with": "the request comes before the start",
}

APP = """
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanContainer, LifespanFastAPI


def get_pool() -> str:
    return "pool"


PoolDep = Annotated[str, Depends(get_pool, scope="lifespan")]


def get_model(pool: PoolDep) -> str:
    return "model"


app = LifespanFastAPI()


@app.get("/")
async def read_root(model: Annotated[str, Depends(get_model, scope="lifespan")]) -> None: ...


@app.get("/plain")
async def read_plain() -> None: ...
"""


hooks_are_deprecated = pytest.mark.filterwarnings(
    "ignore:The on_startup and on_shutdown parameters are deprecated:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _in(workplace: Path) -> None:
    """Everything happens in a directory of its own."""


def write(path: str, text: str = APP) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def in_a_line(text: str) -> str:
    return " ".join(text.split())


# What it says


def test_what_is_in_order() -> None:
    write("main.py")
    assert invoke("check main:app") == (
        0,
        "main:app: 2 lifespan dependencies for 2 routes, in order.\n",
        "",
    )


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["module", "script"])
def test_as_a_process(program: tuple[str, ...]) -> None:
    write("main.py")
    ended = run("check main:app --strict", Path(), program)
    assert ended == (0, "main:app: 2 lifespan dependencies for 2 routes, in order.\n", "")


def test_one_of_each() -> None:
    write("main.py", APP.partition('@app.get("/plain")')[0].replace("(pool: PoolDep)", "()"))
    assert invoke("check").out == "main:app: 1 lifespan dependency for 1 route, in order.\n"


def test_a_container() -> None:
    write("main.py", f"{APP}\ncontainer = LifespanContainer(get_model)\n")
    assert invoke("check main:container").out == (
        "main:container: 2 lifespan dependencies for 1 declaration, in order.\n"
    )


@pytest.mark.parametrize("option", ["lifespan=lifespan", "on_startup=[lambda: None]"])
@hooks_are_deprecated
def test_what_it_cannot_see(option: str) -> None:
    lifespan = (
        "from contextlib import asynccontextmanager\n"
        "@asynccontextmanager\n"
        "async def lifespan(app): yield\n"
    )
    write(
        "main.py",
        APP.replace("app = LifespanFastAPI()", f"{lifespan}\napp = LifespanFastAPI({option})"),
    )
    ended = invoke("check main:app --strict")
    assert ended.code == 0
    first, second = ended.out.splitlines()
    assert first == "main:app: 2 lifespan dependencies for 2 routes, in order."
    assert second == (
        "main:app: Its startup code was not run: routes that the lifespan function or a hook adds "
        "are not among them."
    )


# What is wrong


def test_every_file_of_errors_is_listed() -> None:
    files = {path.stem for path in ERRORS.glob("*.py")} - {"__init__", "app"}
    listed = [*KNOWN, *DOUBTED, *NOT_OURS, *UNKNOWN]
    assert sorted(listed) == sorted(files)


def declare(name: str) -> None:
    """Copy a file of errors, without the lines that run what it declares."""
    write("errors/app.py", (ERRORS / "app.py").read_text())
    text = (ERRORS / f"{name}.py").read_text()
    text = re.split(r"^with TestClient", text, maxsplit=1, flags=re.MULTILINE)[0]
    write(f"errors/{name}.py", text)


@hooks_are_deprecated
@pytest.mark.parametrize("name", KNOWN)
def test_an_error_that_planning_knows(name: str) -> None:
    declare(name)
    ended = invoke(f"check errors.{name}:app")
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.startswith(KNOWN[name])
    assert "Traceback" not in ended.err
    # the whole message, but for the places of files
    message = (ERRORS / f"{name}.txt").read_text().splitlines()
    assert ended.err.splitlines()[0] == message[0].replace("docs_src/", "")
    if name != "no_health_check":  # of which there is a graph
        assert invoke(f"graph errors.{name}:app").err == ended.err


@pytest.mark.parametrize("name", DOUBTED)
def test_a_doubt(name: str) -> None:
    declare(name)
    ended = invoke(f"check errors.{name}:app")
    assert ended.code == 0
    assert "in order." in ended.out
    assert ended.err.startswith(f"Warning: {DOUBTED[name]}")
    assert len(ended.err.splitlines()) == 1
    strict = invoke(f"check errors.{name}:app --strict")
    assert (strict.code, strict.out) == (1, "")
    assert strict.err.startswith(f"Error: {DOUBTED[name]}")


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_ours(name: str) -> None:
    declare(name)
    ended = invoke(f"check errors.{name}:app")
    assert (ended.code, ended.out) == (2, "")
    assert NOT_OURS[name] in ended.err
    assert ended.err.endswith(' These declare scope="lifespan": GET /users/{user_id}.\n')
    assert len(ended.err.splitlines()) == 1


def test_a_plain_application_with_stock_declarations() -> None:
    """FastAPI takes the scope without a word, and calls the provider for each request."""
    lines = [
        "from fastapi import Depends, FastAPI",
        "def get_pool(): ...",
        "app = FastAPI(dependencies=[Depends(get_pool, scope='lifespan')])",
        *(f"app.get('/{number}')(lambda: None)" for number in range(7)),
    ]
    write("main.py", "\n".join(lines))
    ended = invoke("check")
    assert ended.code == 2
    assert ended.err.startswith("'main:app': The application is a plain FastAPI")
    assert "LifespanFastAPI, or call enable_lifespan_scope(app)" in ended.err


def test_a_plain_application_with_many_routes() -> None:
    lines = [
        "from fastapi import FastAPI",
        *(f"app.get('/{number}')(read_root)" for number in range(7)),
    ]
    text = APP.replace("app = LifespanFastAPI()", f"{lines[0]}\napp = FastAPI()")
    write("main.py", "\n".join([text, *lines[1:]]))
    ended = invoke("check")
    assert ended.err.endswith("GET /, GET /0, GET /1, GET /2, GET /3 and 3 more.\n")


def test_a_plain_application_without_any() -> None:
    write("main.py", "from fastapi import FastAPI\napp = FastAPI()\n")
    assert invoke("check").err.endswith("before it starts.\n")


def test_each_error_once() -> None:
    needs = "\n".join(
        f"@app.get('/{number}')\nasync def read_{number}(pool: PoolDep) -> None: ...\n"
        for number in range(2)
    )
    override = "def fake(q: str) -> str: ...\n\napp.dependency_overrides[get_pool] = fake\n"
    write("main.py", f"{APP}\n{needs}\n{override}")
    ended = invoke("check")
    assert ended.code == 1
    assert ended.err.count("DependencyScopeError: `fake` is started once") == 1


def test_an_override_that_raises_when_it_is_looked_at() -> None:
    odd = (
        "class Odd:\n"
        "    @property\n"
        "    def __signature__(self): raise OSError('odd')\n"
        "    def __call__(self): ...\n"
        "app.dependency_overrides[get_pool] = Odd()\n"
    )
    write("main.py", f"{APP}\n{odd}")
    for command in ("check", "graph"):
        ended = invoke(command)
        assert (ended.code, ended.err) == (1, "OSError: odd\n")


@pytest.mark.parametrize("key", ["get_nothing", "Nothing", "PoolDep"])
def test_an_override_of_nothing(key: str) -> None:
    text = f"{APP}\ndef get_nothing() -> str: ...\n\nclass Nothing: ...\n"
    write("main.py", f"{text}\napp.dependency_overrides[{key}] = lambda: 'x'\n")
    ended = invoke("check")
    assert ended.code == 0
    assert len(ended.err.splitlines()) == 1
    assert "overrides nothing" in ended.err
    assert invoke("check --strict").code == 1


@pytest.mark.parametrize(
    "use",
    [
        "app.get('/used')(use)",
        "from fastapi_lifespan_deps import enable_lifespan_scope\n"
        "enable_lifespan_scope(app, handlers=[use])",
    ],
)
def test_an_override_of_something(use: str) -> None:
    text = (
        f"{APP}\ndef get_user() -> str: ...\n"
        f"def use(user: Annotated[str, Depends(get_user)]) -> None: ...\n{use}\n"
        "app.dependency_overrides[get_user] = lambda: 'x'\n"
        "app.dependency_overrides[get_pool] = lambda: 'x'\n"
    )
    write("main.py", text)
    ended = invoke("check --strict")
    assert (ended.code, ended.err) == (0, "")


# How it is found


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("main.py", "main:app"),
        ("app.py", "app:app"),
        ("api.py", "api:app"),
        ("app/main.py", "main:app"),
        ("app/app.py", "app:app"),
        ("app/api.py", "api:app"),
    ],
)
@pytest.mark.parametrize("is_package", [False, True])
def test_the_default_paths(path: str, place: str, is_package: bool) -> None:
    write(path)
    if is_package and "/" in path:
        write("app/__init__.py", "")
        place = f"app.{place}"
    assert invoke("check").out.startswith(f"{place}: 2 lifespan dependencies")


def test_a_package_in_a_package() -> None:
    """As `fastapi run` does, the topmost directory with an `__init__.py` counts."""
    write("outer/__init__.py", "")
    write("outer/main.py")
    os.chdir("outer")
    assert invoke("check").out.startswith("outer.main:app: ")


@pytest.mark.parametrize(
    ("names", "name"),
    [("api = app", "app"), ("api = app; del app", "api"), ("web = app; del app", "web")],
)
def test_the_default_names(names: str, name: str) -> None:
    write("main.py", f"{APP}\n{names}\n")
    assert invoke("check").out.startswith(f"main:{name}: ")


def test_what_pyproject_names() -> None:
    write("main.py", "raise AssertionError('it is not this one')")
    write("shop/web.py", f"{APP}\nclass inner:\n    web = app\n")
    write("pyproject.toml", '[tool.fastapi]\nentrypoint = "shop.web:inner.web"\n')
    assert invoke("check").out.startswith("shop.web:inner.web: ")


def test_a_pyproject_that_names_nothing() -> None:
    write("main.py")
    write("pyproject.toml", '[project]\nname = "shop"\n')
    assert invoke("check").out.startswith("main:app: ")


FACTORIES = """
def create_app():
    return app

def create_container():
    return LifespanContainer(get_model)

async def create_async(): ...

def create_from(settings): ...

def create_nothing(): ...
"""


def test_factories() -> None:
    write("main.py", f"{APP}\n{FACTORIES}")
    for name in ("app", "container"):
        ended = invoke(f"check main:create_{name} --factory")
        assert ended.out.startswith(f"main:create_{name}: 2 lifespan dependencies")
    write("pyproject.toml", '[tool.fastapi]\nentrypoint = "main:create_app"\n')
    assert invoke("check --factory").code == 0


def test_a_factory_that_nobody_can_look_into() -> None:
    """Written in C, say."""
    text = (
        "class Made(dict):\n    __signature__ = property(lambda self: exec('raise ValueError'))\n"
    )
    write("main.py", f"{APP}\n{text}\n    def __call__(self): return app\n\nmade = Made()\n")
    assert invoke("check main:made --factory").code == 0


def test_middleware_around_it() -> None:
    text = "from starlette.middleware.gzip import GZipMiddleware\nweb = GZipMiddleware(app)\n"
    write("main.py", f"{APP}\n{text}")
    assert invoke("check main:web").out.startswith("main:web: 2 lifespan dependencies")


@pytest.mark.parametrize("command", ["check", "graph", "start"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("main", "'main': write MODULE:NAME, such as 'main:app'"),
        ("main:", "'main:': write MODULE:NAME, such as 'main:app'"),
        (":app", "':app': write MODULE:NAME, such as 'main:app'"),
        (".main:app", "'.main:app': write MODULE:NAME, such as 'main:app'"),
        ("nothing:app", "'nothing:app': there is no module 'nothing'"),
        ("main.py:app", "'main.py:app': there is no module 'main.py'"),
        ("main:nothing", "'main:nothing': 'main' has no 'nothing'"),
        ("main:app.nothing", "'main:app.nothing': 'main:app' has no 'nothing'"),
        (
            "main:get_pool",
            "'main:get_pool' is a function, and no application. If it returns one, add --factory",
        ),
        ("main:PoolDep.__metadata__", "'main:PoolDep.__metadata__' is a tuple, and no application"),
        ("main:app --factory", "'main:app' cannot be called without arguments"),
        ("main:__doc__ --factory", "'main:__doc__' is a NoneType, and no function: drop --factory"),
        (
            "main:create_async --factory",
            "'main:create_async' is asynchronous: name a plain function",
        ),
        (
            "main:create_from --factory",
            "without arguments (missing a required argument: 'settings')",
        ),
        (
            "main:create_nothing --factory",
            "'main:create_nothing' returned a NoneType, and no application",
        ),
        ("--factory", "--factory: name the function, such as 'main:create_app'"),
    ],
)
def test_nothing_is_found(command: str, arguments: str, text: str) -> None:
    write("main.py", f"{APP}\n{FACTORIES}")
    ended = invoke(f"{command} {arguments}")
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (
            {},
            "There is no application here: name it, such as 'main:app'. Looked for main.py, app.py",
        ),
        ({"main.py": ""}, "'main.py' has no application: name it, such as 'main:create_app'"),
        ({"pyproject.toml": "tool ="}, "pyproject.toml cannot be read: "),
        (
            {"pyproject.toml": "tool.fastapi.entrypoint = 'x'"},
            "entrypoint = 'x': write 'MODULE:NAME'",
        ),
        ({"pyproject.toml": "tool.fastapi.entrypoint = 5"}, "entrypoint = 5: write 'MODULE:NAME'"),
        ({"pyproject.toml": "tool.fastapi = 5"}, "There is no application here"),
    ],
)
def test_nothing_is_found_by_default(files: dict[str, str], text: str) -> None:
    for path, content in files.items():
        write(path, content)
    ended = invoke("check")
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import not_installed", "ModuleNotFoundError: No module named 'not_installed'"),
        ("from os import nothing", "ImportError: cannot import name 'nothing' from 'os'"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("int('x')", "ValueError: invalid literal"),
        ("def f(:", "SyntaxError: invalid syntax"),
        (
            "try:\n    int('x')\nexcept Exception as e:\n    raise ExceptionGroup('all', [e])",
            "ExceptionGroup: all (1 sub-exception)",
        ),
    ],
)
def test_an_import_that_fails(source: str, text: str) -> None:
    """The traceback begins in the user's code."""
    write("main.py", source)
    ended = invoke("check main:app")
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert lines[0] == "main:app cannot be imported."
    assert text in ended.err
    places = re.findall(r'File "(.*?)"', ended.err)
    assert places[0] == str(Path("main.py").resolve())
    assert "fastapi_lifespan_deps" not in ended.err


def test_errors_that_lead_to_each_other() -> None:
    source = (
        "one, two = ValueError(1), ValueError(2)\none.__context__ = two\ntwo.__context__ = one\n"
    )
    write("main.py", f"{source}raise one\n")
    assert invoke("check main:app").code == 2


def test_an_error_of_ours_that_something_wraps() -> None:
    text = (
        "from fastapi_lifespan_deps import Depends\n"
        "try:\n    Depends(len, scope='lifetime')\n"
        "except Exception as error:\n    raise RuntimeError('no settings') from error\n"
    )
    write("main.py", text)
    ended = invoke("check main:app")
    assert ended.code == 1
    assert ended.err.startswith("InvalidDependencyScope: 'lifetime' is not a scope")


def test_an_error_of_ours_in_a_group() -> None:
    text = (
        "from fastapi_lifespan_deps import Depends\n"
        "try:\n    Depends(len, scope='lifetime')\n"
        "except Exception as e:\n    raise ExceptionGroup('all', [ValueError(), e]) from None\n"
    )
    write("main.py", text)
    ended = invoke("check main:app")
    assert (ended.code, ended.err.startswith("InvalidDependencyScope: ")) == (1, True)
