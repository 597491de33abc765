"""docs/tutorial/first-steps.md works if what it shows is pasted and run as it stands."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from tests.processes import ROOT, ServerProcess

pytest.importorskip("uvicorn")

pytestmark = pytest.mark.server

PAGE = (ROOT / "docs/tutorial/first-steps.md").read_text()
# The language, what else stands at the head of a block, and its lines; files, then commands.
BLOCKS = re.findall(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)
FILES = {
    title: (ROOT / re.findall(r'"(docs_src/.+\.py)"', body)[0]).read_text()
    for _, head, body in BLOCKS
    for title in re.findall(r'title="(.+?)"', head)
}
COMMANDS = [
    line.removeprefix("$ ")
    for language, _, body in BLOCKS
    if language == "console"
    for line in body.splitlines()
]
# Each module that has an application, in an interpreter that knows of this directory only.
START_ALL = """
import importlib, sys, warnings
from fastapi.testclient import TestClient
warnings.simplefilter("error")
for name in sys.argv[1:]:
    app = getattr(importlib.import_module(name), "app", None)
    if app is not None:
        with TestClient(app):
            print("started", name)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What is there when the commands without a server were run, and the blocks pasted."""
    for command in COMMANDS:
        if command.startswith(("mkdir ", "touch ")):
            subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    for name, text in FILES.items():
        tmp_path.joinpath(name).write_text(text)
    return tmp_path


def test_every_block_of_code_has_a_file() -> None:
    assert [head for language, head, _ in BLOCKS if language == "python" and not head] == []
    assert "app/first_steps.py" in FILES


def test_what_is_installed_is_what_is_imported() -> None:
    pasted = "\n".join(FILES.values())
    installed = {
        one for line in COMMANDS if line.startswith("pip install ") for one in line.split()[2:]
    }
    assert installed == {"uvicorn", "pydantic-settings"}
    imported = set(re.findall(r"^(?:from|import) (\w+)", pasted, re.MULTILINE))
    assert imported - {*sys.stdlib_module_names} == {
        "fastapi_lifespan_deps",
        "pydantic",  # which FastAPI requires
        "pydantic_settings",
    }


def test_each_file_is_a_program_of_its_own(directory: Path) -> None:
    modules = [name.removesuffix(".py").replace("/", ".") for name in FILES]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(START_ALL), *modules],
        cwd=directory,
        env={"PYTHONPATH": str(package_alone(directory)), "DATABASE_URL": "x"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    applications = [name for name in modules if name != "app.database"]
    started = [line for line in result.stdout.splitlines() if line.startswith("started ")]
    assert started == [f"started {name}" for name in applications]


def package_alone(directory: Path) -> Path:
    """Where the package is importable, and `docs_src` isn't."""
    place = directory.parent / f"{directory.name}-packages"
    shutil.copytree(ROOT / "fastapi_lifespan_deps", place / "fastapi_lifespan_deps")
    return place


def test_the_server_answers_as_shown(directory: Path) -> None:
    served = [line for line in COMMANDS if "uvicorn app." in line]
    assert served == [
        "uvicorn app.first_steps:app",
        "DATABASE_URL=postgresql://localhost/shop uvicorn app.settings:app",
    ]
    shown = COMMANDS[COMMANDS.index(served[0]) + 1 :][:2]
    url = shown[0].removeprefix("curl http://127.0.0.1:8000")
    command = ("-m", served[0].split()[0], *served[0].split()[1:], "--port", "0")
    places = f"{package_alone(directory)}:{directory}"
    with ServerProcess(command, PYTHONPATH=places, PYTHONSAFEPATH="1") as server:
        address = server.read_until(r"running on (http://127\.0\.0\.1:\d+)")
        assert httpx.get(f"{address}{url}").text == shown[1]
        server.process.terminate()
        server.wait()
    assert "Application shutdown complete" in server.output
