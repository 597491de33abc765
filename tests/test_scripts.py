"""The scripts on a laptop: macOS has bash 3.2 and BSD's commands, Windows has neither."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = {
    path: path.read_text()
    for path in sorted([*ROOT.joinpath("scripts").iterdir(), ROOT / ".ci" / "run"])
    if path.is_file() and not path.suffix
}

# By what is wrong with it: a pattern, and examples that it must match.
NOT_EVERYWHERE = {
    "newer than bash 3.2": (
        r"\b(?:declare|local|typeset) -\w*[Agnlu]"
        r"|\b(?:mapfile|readarray|coproc)\b"
        r"|&>>|\|&|;;&|;&"
        r"|\$\{\w+(?:\[[^]]*\])?(?:,|\^|@[A-Za-z]\})"
        r"|\$\{\w+\[-|\$\{\w+:\w+:\s*-"
        r"|\[\[ -[vR] |\btest -v\b"
        r"|\b(?:EPOCHSECONDS|EPOCHREALTIME|BASHPID|BASH_ARGV0|SRANDOM)\b"
        r"|\bshopt -s (?:\w+ )*(?:globstar|lastpipe|inherit_errexit|dirspell|autocd)\b"
        r"|\bwait -[nfp]\b|\bread -\w*[Ni]\b|\bread -t ?\d*\.\d|\bprintf (?:-v \S*\[|'%\()"
        r"|\{\d+\.\.\d+\.\.\d+\}|exec \{\w+\}",
        """declare -A x;local -n y;mapfile -t x;echo x &>>log;make |& cat;${x,,};${x^};${x[1]^^}
        ${x@Q};${x[-1]};${x:1:-1};[[ -v x ]];$EPOCHSECONDS;$BASHPID;shopt -s nullglob globstar
        wait -n;read -N 1;read -t 0.1;printf -v x[1];printf '%(%F)T';{1..9..2};exec {fd}>x""",
    ),
    # `"${all[@]}"` of an array without elements, under `set -u`, and a `case` in `$(...)`.
    "broken in bash 3.2": (
        r"=\(\)|\blocal (?:\w+ )*(?:-a )\w+$|\$\(\s*case\b",
        "all=();local -a all\nx=$(case $1 in",
    ),
    "of GNU alone": (
        r"\bsed -i|\bsed (?:-\w+ )*--|\breadlink -f\b|\bsort -\w*V|\bxargs -\w*[rd]\b|\bdate -d\b"
        r"|\bstat -c\b|\bgrep -\w*P|\bmktemp --|\bcp --|\bln -\w*r|\bbase64 -w|\bdu --|\bhead -n -"
        r"|(?:^|[|;&(]|\$\() *(?:timeout|nproc|sha256sum|md5sum|tac|shuf|realpath|setsid|gawk) ",
        """sed -i s/a/b/ x;sed --quiet;readlink -f x;sort -V;xargs -r rm;date -d now;stat -c %s x
        grep -oP x;mktemp --suffix=x;cp --parents;ln -sr x;base64 -w0;du --apparent-size;head -n -1
        timeout 5 x;$(nproc --all);x | sha256sum -c;x | tac -b;x | shuf -n1;realpath x;setsid x""",
    ),
}


def code_of(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_scripts_run_with_bash_3_2_and_bsd(path: Path) -> None:
    for what, (pattern, _) in NOT_EVERYWHERE.items():
        found = [found[0] for found in re.finditer(pattern, code_of(TEXTS[path]), re.MULTILINE)]
        assert found == [], what


@pytest.mark.parametrize("what", NOT_EVERYWHERE)
def test_what_does_not_is_found(what: str) -> None:
    pattern, examples = NOT_EVERYWHERE[what]
    for example in re.split(r"[;\n](?![;&])", examples):
        assert re.search(pattern, example.strip()), example


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(path: Path) -> None:
    if path.name != "common":
        assert TEXTS[path].startswith("#!/usr/bin/env bash\n# ")
        assert "\nset -euo pipefail\n" in TEXTS[path]
        assert os.access(path, os.X_OK)


def test_what_the_workflows_run_is_there() -> None:
    texts = [path.read_text() for path in ROOT.joinpath(".github", "workflows").iterdir()]
    named = set(re.findall(r"(?:scripts|tests|docs_src)/[\w./-]+", "\n".join(texts)))
    assert "scripts/test" in named
    assert [name for name in named if not ROOT.joinpath(name).exists()] == []


def test_every_script_is_checked() -> None:
    (files,) = re.findall(r"shellcheck -x -P SCRIPTDIR (.+)", TEXTS[ROOT / "scripts" / "test"])
    assert files.split() == [str(path.relative_to(ROOT)) for path in sorted(TEXTS)]


def test_pre_commit_runs_what_the_tests_run() -> None:
    hooks = re.findall(
        r"entry: \.venv/bin/(.+)", ROOT.joinpath(".pre-commit-config.yaml").read_text()
    )
    commands = re.findall(r"^\$bin/(.+)", TEXTS[ROOT / "scripts" / "test"], re.MULTILINE)
    assert {hook.split()[0] for hook in hooks} >= {"mypy", "ruff", "shellcheck"}
    assert set(hooks) <= set(commands)


# What they say


class Laptop:
    """A machine that has few commands, and some of its own; with a copy of the scripts."""

    KNOWN = ("awk", "bash", "cat", "cksum", "dirname", "env", "grep", "mkdir", "tr")

    def __init__(self, directory: Path, **commands: str) -> None:
        self.bin = directory / "bin"
        self.checkout = directory / "checkout"
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        for name in self.KNOWN:
            found = shutil.which(name)
            assert found is not None
            self.bin.joinpath(name).symlink_to(found)
        for name, body in commands.items():
            self.has(name, body)

    def has(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)

    def run(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            command,
            cwd=self.checkout,
            env={"PATH": str(self.bin)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout


# Makes environments in which it stands itself, and tells what it installs as pip does.
PYTHON = """\
case "$*" in
"--version") echo "Python 3.13.1" ;;
"-m venv "*) for venv; do :; done; mkdir -p "$venv/bin"; cat "$0" >"$venv/bin/python"
    /bin/chmod +x "$venv/bin/python" ;;
"-m pip index versions torch") echo "Available versions: 2.99.0, TORCH, 2.12.0" ;;
*"pip install -qq --upgrade pip"*) ;;
"-m pip install"*) echo "Collecting x"; echo "  Downloading x-1.0.whl.metadata (4 kB)"
    echo "  Downloading x-1.0.whl (191.8 MB)"; echo "Installing collected packages: a, b, x" ;;
esac
"""
BUILDS = {
    ("Linux", "2.13.0+cpu"): "About 330 MB are downloaded, if not in pip's cache, and .venv takes"
    " 1300 MB, with torch's build for the CPU. At 50 Mbit/s that is 2 minutes.",
    ("Linux", "2.13.0"): "About 2880 MB are downloaded, if not in pip's cache, and .venv takes"
    " 5400 MB, with torch's build for CUDA: see scripts/install for the one for the CPU."
    " At 50 Mbit/s that is 13 minutes.",
    ("Darwin", "2.13.0"): "About 230 MB are downloaded, if not in pip's cache, and .venv takes"
    " 1000 MB. At 50 Mbit/s that is 2 minutes.",
}


@pytest.mark.parametrize(("system", "torch"), BUILDS)
def test_what_is_downloaded_is_said_before(system: str, torch: str, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, python3=PYTHON.replace("TORCH", torch), uname=f"echo {system}")
    step = "  Downloading x-1.0.whl (191.8 MB)\n  Installing 3 packages\n"
    assert laptop.run("scripts/install", "serving") == (
        0,
        "Making .venv (serving) with Python 3.13.1 ...\n"
        f"{BUILDS[system, torch]}\n"
        f"1/3 PyTorch\n{step}2/3 the other packages\n{step}3/3 the model\n{step}",
    )
    # Nothing is left to do.
    assert laptop.run("scripts/install", "serving") == (0, "")


def test_a_download_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    failing = PYTHON.replace('echo "Installing', 'echo "ERROR: no space left" >&2; exit 2; echo "')
    laptop = Laptop(tmp_path, python3=failing, uname="echo Darwin")
    for _ in range(2):
        status, output = laptop.run("scripts/install", "serving")
        assert status == 2
        assert "ERROR: no space left\n" in output
        assert "2/3" not in output


@pytest.mark.parametrize(
    ("command", "commands", "said"),
    [
        (
            ["scripts/serve"],
            {"uname": "echo MINGW64_NT-10.0-26100"},
            "serve: on Windows this runs in WSL: install it with 'wsl --install', open its"
            " terminal, and clone and run this there.\n",
        ),
        (
            ["scripts/install"],
            {"uname": 'if [[ $1 == -sm ]]; then echo "Darwin x86_64"; else echo Darwin; fi'},
            "install: PyTorch 2.13.0 has no packages for Macs with an Intel processor."
            " The package itself runs there.\n",
        ),
        (
            ["scripts/install", "--system"],
            {"uname": "echo Darwin", "chromium": "", "nginx": "", "openssl": ""},
            "install: --system installs redis-server from Debian's packages, and there is no"
            " apt-get here. Install them by other means (brew on macOS), or do without, then run"
            " scripts/install.\n",
        ),
        (
            ["scripts/test"],
            {
                "uname": "echo Darwin",
                "python3": 'case $1 in -c) exit 1 ;; *) echo "Python 3.9.6" ;; esac',
            },
            "install: needs Python 3.11 or newer, and python3 is Python 3.9.6. Name another with"
            " PYTHON=...\n",
        ),
    ],
    ids=["windows", "intel", "no apt-get", "old python"],
)
def test_what_can_not_be_is_told_at_once(
    command: Sequence[str], commands: dict[str, str], said: str, tmp_path: Path
) -> None:
    laptop = Laptop(tmp_path, **{"python3": PYTHON, **commands})
    assert laptop.run(*command) == (1, said)


OF_ANOTHER_PROJECT = """
import fastapi
from fastapi.testclient import TestClient

app = fastapi.FastAPI()


@app.get("/")
async def read(page: int = fastapi.Depends(lambda page: page)) -> int:
    return page


def test_without_a_start():
    assert TestClient(app).get("/?page=2").json() == 2


def test_with_one():
    with TestClient(app) as client:
        assert client.get("/?page=2").json() == 2


def test_that_is_ours():
    assert type(app).__name__ == "LifespanFastAPI"
"""


@pytest.mark.parametrize("swap", ["", "yes"], ids=["untouched", "swapped"])
def test_other_projects_tests_meet_this_library(swap: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(OF_ANOTHER_PROJECT)
    results = tmp_path / "results.json"
    options = [
        "-p",
        "ecosystem_plugin",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *options, "test_it.py"]
    variables = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
        "ECOSYSTEM_SWAP": swap,
        "ECOSYSTEM_RESULTS": str(results),
    }
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **variables})
    tests = [
        f"test_it.py::test_{name}#1" for name in ("without_a_start", "with_one", "that_is_ours")
    ]
    outcomes = ["passed", "passed", "passed" if swap else "failed"]
    assert json.loads(results.read_text()) == dict(zip(tests, outcomes, strict=True))
