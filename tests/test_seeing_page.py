"""What docs/how-to/see-what-starts.md and docs/command-line.md show is what commands write."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import typer

from docs_src.seeing.shop.test_shop import test_what_starts as test_what_starts
from fastapi_lifespan_deps.command.cli import cli
from tests.at_prompt import normalized
from tests.processes import ROOT

PAGE = (ROOT / "docs/how-to/see-what-starts.md").read_text()
COMMAND_LINE = (ROOT / "docs/command-line.md").read_text()


def script() -> Any:
    spec = spec_from_file_location("seeing", ROOT / "scripts/seeing.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = script()


@pytest.mark.parametrize("name", SCRIPT.OUTPUTS)
def test_the_output_of_a_command(name: str) -> None:
    """Else run scripts/seeing.py."""
    shown = (SCRIPT.SEEING / name).read_text()
    command = SCRIPT.OUTPUTS[name]
    # somebody who waits for a moment more sees more
    assert _steady(SCRIPT.output(command)) == _steady(shown)
    given = re.escape(f"$ fastapi-lifespan-deps {command}")
    assert re.search(rf'^{given}( \| cat)?\n--8<-- "docs_src/seeing/{name}"$', PAGE, re.MULTILINE)


def test_a_slow_start() -> None:
    """On a busy machine more is slow. Else run scripts/seeing.py."""
    shown = (SCRIPT.SEEING / SCRIPT.SLOW).read_text()
    lines = [_line(one) for one in SCRIPT.run("slow_start.py").splitlines()]
    assert {_line(one) for one in shown.splitlines()} <= {*lines}
    assert "has been starting for" in shown


def _line(text: str) -> str:
    """Without the seconds, and the order of the slowest."""
    text = re.sub(r"\d+\.\d+ s", "_ s", text)
    head, _, rest = text.partition(" in _ s: ")
    return " ".join([head, *sorted(rest.split(", "))])


def _steady(text: str) -> str:
    return normalized(re.sub(r"with \d started|Stopped \d in|\d\.\d s; it", "", text))


@pytest.fixture
def shop(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(SCRIPT.SEEING)
    monkeypatch.syspath_prepend("")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.mark.usefixtures("shop")
def test_the_picture() -> None:
    """Else run scripts/seeing.py."""

    pictures = SCRIPT.picture(), SCRIPT.PICTURE.read_text()
    made, shown = (
        normalized("".join(re.findall(r"<text[^>]*>(.*?)</text>", one)).replace("&#160;", " "))
        for one in pictures
    )
    assert re.sub(" +", " ", made) == re.sub(" +", " ", shown)
    assert "Started 4 in 0.00 s. Stopped 4 in 0.00 s." in made
    assert not any("url(http" in one for one in pictures)  # it fetches nothing


async def test_the_graph_of_what_runs(anyio_backend: str) -> None:
    app = import_module("docs_src.seeing.shop.graph_route").app
    transport = httpx.ASGITransport(app)
    with anyio.fail_after(60):
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            text = (await client.get("/admin/graph")).text
    assert text.count("  running  started in ") == 4


COMMANDS = ("check", "graph", "start", "worker")


def sections() -> dict[str, str]:
    _, *found = re.split(r"^## ", COMMAND_LINE, flags=re.MULTILINE)
    return {text.split("\n", 1)[0]: text for text in found}


def test_every_command_has_a_section() -> None:
    assert tuple(sections()) == COMMANDS
    assert sorted(_commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_row(name: str) -> None:
    rows = re.findall(r"^\| `(--[\w-]+)` \| (.*) \|$", sections()[name], flags=re.MULTILINE)
    options = [one for one in _commands()[name].params if one.param_type_name == "option"]
    assert [option for option, _ in rows] == [one.opts[0] for one in options if one.name != "help"]
    for (_, text), option in zip(rows, options, strict=False):
        assert text.startswith(option.help)


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli)
    commands: dict[str, Any] = group.commands
    return commands
