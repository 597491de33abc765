"""An environment for each peer, in .bench/peers, made once."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple
from zlib import crc32

REQUIREMENTS = Path(__file__).parent
ROOT = REQUIREMENTS.parent.parent.parent
FOLDER = ROOT / ".bench" / "peers"
MAX_SECONDS = 3_600


class LeftOut(Exception):
    """A peer that can't be measured, and why."""


class Environment(NamedTuple):
    directory: Path
    seconds: float
    """What it took to make it."""
    packages: dict[str, str]

    def version(self, name: str) -> str:
        return next(
            version
            for package, version in self.packages.items()
            if package.lower().replace("_", "-") == name
        )


def prepare(name: str) -> Environment:
    """Make the environment of a peer, unless it is there, from exactly what its file lists.

    Raises:
        LeftOut: it can't be made here. The next call tries again.
    """
    requirements, directory = REQUIREMENTS / f"{name}.txt", FOLDER / name
    listed = requirements.read_text()
    note = directory / "installed.json"
    stamp = crc32(f"{directory} {platform.python_version()}\n{listed}".encode())
    if note.exists():
        made = json.loads(note.read_text())
        if made["stamp"] == stamp:
            return Environment(directory, made["seconds"], made["packages"])

    start = perf_counter()
    run(sys.executable, "-m", "venv", "--clear", "--without-pip", directory)
    pip = sys.executable, "-m", "pip", "--python", directory
    # torch first and exactly, as in scripts/install.
    for line in listed.splitlines():
        if line.startswith("torch=="):
            run(*pip, "install", "-qq", line)
    run(*pip, "install", "-qq", "-r", requirements)
    found = json.loads(run(*pip, "list", "--format", "json"))
    packages = {package["name"]: package["version"] for package in found}
    made = {"stamp": stamp, "seconds": perf_counter() - start, "packages": packages}
    note.write_text(json.dumps(made, indent=2) + "\n")
    return Environment(directory, made["seconds"], packages)


def run(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise LeftOut(f"it took more than {MAX_SECONDS} s to install it") from None
    if done.returncode:
        raise LeftOut(f"it can't be installed: {reason(done.stderr or done.stdout)}")
    return done.stdout


def reason(said: str) -> str:
    """Where pip can't resolve, its last line is only a link."""
    lines = [line for line in said.splitlines() if line.strip()] or ["it says nothing"]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:])[0].removeprefix("ERROR: ")
