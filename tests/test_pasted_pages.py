"""What a page shows works if it is pasted beside what First steps shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.processes import ROOT, ServerProcess
from tests.test_first_steps_page import package_alone

pytest.importorskip("redis")

pytestmark = pytest.mark.unix  # mkdir, touch

PAGES = {
    f"{name}.md": (ROOT / f"docs/{name}.md").read_text()
    for name in (
        "tutorial/sub-dependencies",
        "tutorial/use-cache",
        "tutorial/testing",
        "tutorial/websockets-and-background-tasks",
        "tutorial/lifespans-and-hooks",
        "tutorial/outside-requests",
        "how-to/refresh",
        "how-to/concurrent-start",
        "how-to/limits-and-crashes",
        "how-to/see-what-starts",
        "how-to/events",
        "how-to/health",
        "how-to/other-libraries",
    )
}
FIRST_STEPS = (ROOT / "docs/tutorial/first-steps.md").read_text()
# The language, what else stands at the head of a block, and its lines. Tabs have it indented.
BLOCK = re.compile(r"^( *)```(\w+)(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
# Other pages whose files a page uses, and says so.
BESIDES = {"tutorial/testing.md": ["tutorial/use-cache.md"]}
# In each of these directories, import these modules.
IMPORT_ALL = """
import importlib, json, sys
for directory, names in json.loads(sys.argv[1]).items():
    sys.path[0] = directory
    for name in names:
        importlib.import_module(name)
    packages = {name.split(".")[0] for name in names}
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
"""


def paste(page: str, directory: Path) -> list[Path]:
    """Make the packages and the files that a page shows, and say which files."""
    files: list[Path] = []
    for _, language, head, body in BLOCK.findall(page):
        if language == "console":
            for command in re.findall(r"^\$ ((?:mkdir|touch) .*)$", body, re.MULTILINE):
                subprocess.run(command, shell=True, cwd=directory, check=True)
        elif language == "python":
            [title] = re.findall(r'title="(.+?)"', head)
            [source] = re.findall(r'"(docs_src/.+\.py)"', body)
            directory.joinpath(title).write_text((ROOT / source).read_text())
            files.append(Path(title))
    return files


def outcome(directory: Path, *arguments: str) -> str:
    """What Python says in that directory, where there is no `docs_src`."""
    packages = directory.parent / f"{directory.name}-packages"
    if not packages.exists():
        package_alone(directory)
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(packages), "DATABASE_URL": "x"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def follow(page: str, directory: Path) -> list[str]:
    """Paste First steps and a page, and say which modules that one has."""
    directory.mkdir(exist_ok=True)
    for before in (FIRST_STEPS, *(PAGES[name] for name in BESIDES.get(page, ()))):
        paste(before, directory)
    return [".".join(file.with_suffix("").parts) for file in paste(PAGES[page], directory)]


def test_what_is_pasted_can_be_imported(tmp_path: Path) -> None:
    modules = {}
    for number, page in enumerate(PAGES):
        directory = tmp_path / str(number)
        modules[str(directory)] = follow(page, directory)
    assert all(modules.values())
    outcome(tmp_path, "-c", IMPORT_ALL, json.dumps(modules))


@pytest.mark.parametrize(
    ("page", "number"),
    [
        ("tutorial/testing.md", 9),
        ("tutorial/outside-requests.md", 2),
        ("how-to/see-what-starts.md", 1),
    ],
)
def test_tests_that_are_pasted_pass(page: str, number: int, tmp_path: Path) -> None:
    follow(page, tmp_path)
    assert f"{number} passed" in outcome(tmp_path, "-m", "pytest", "-q")


def test_commands_outside_of_requests_print_what_is_shown(tmp_path: Path) -> None:
    page = "tutorial/outside-requests.md"
    follow(page, tmp_path)
    commands = re.findall(r"^\$ python (.+)\n((?:(?!```).*\n)+)```$", PAGES[page], re.MULTILINE)
    assert [command for command, _ in commands] == ["-m app.outside_requests", "-m app.commands"]
    for command, shown in commands:
        assert outcome(tmp_path, *command.split()) == shown


@pytest.mark.server
def test_a_refresh_answers_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    page = "how-to/refresh.md"
    follow(page, tmp_path)
    [(key, application)] = re.findall(r"\$ ADMIN_KEY=(\w+) uvicorn (\S+)\n", PAGES[page])
    [(path, shown)] = re.findall(r"\$ curl .*:8000(/\S+)\n(.+)\n", PAGES[page])
    model = tmp_path / "model.txt"
    model.write_text("v1")
    with ServerProcess(
        ("-m", "uvicorn", application, "--port", "0"),
        cwd=tmp_path,
        PYTHONPATH=str(package_alone(tmp_path)),
        ADMIN_KEY=key,
    ) as server:
        address = server.read_until(r"running on (http://127\.0\.0\.1:\d+)")
        model.write_text("v2")
        answer = httpx.post(f"{address}{path}", headers={"admin-key": key}, timeout=60)
        server.process.terminate()
        server.wait()
    assert answer.text == shown
