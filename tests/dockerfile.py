"""docs_src/deploy/Dockerfile, read as far as tests ask for it."""

import json
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.processes import ROOT

FILE = ROOT / "docs_src/deploy/Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """A line, its continuations included: `RUN`, and what follows."""

    name: str
    rest: str


def instructions() -> list[Instruction]:
    text = re.sub(r"\\\n\s*", " ", FILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [Instruction(*line.split(" ", 1)) for line in lines]


def all_of(name: str) -> list[str]:
    return [instruction.rest for instruction in instructions() if instruction.name == name]


def command() -> list[str]:
    """What a container runs."""
    [written] = all_of("CMD")
    parsed: list[str] = json.loads(written)
    return parsed


def health_check() -> list[str]:
    """What tells by its exit code whether a container is healthy."""
    [written] = all_of("HEALTHCHECK")
    parsed: list[str] = json.loads(written.partition(" CMD ")[2])
    return parsed


def environment() -> dict[str, str]:
    """Of a container."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(all_of("ENV"))))


def copies() -> list[tuple[list[str], str]]:
    """What is copied from the checkout, and where to."""
    return [(sources, target) for *sources, target in map(str.split, all_of("COPY"))]


def lay_out(directory: Path) -> Path:
    """Make the working directory of a container; what isn't copied there is not there."""
    assert all_of("WORKDIR") == ["/app"]
    for sources, target in copies():
        if target.startswith("/"):
            continue
        for source in map(ROOT.joinpath, sources):
            # A directory's contents go to the target; a file goes into it, if it ends with a slash.
            place = directory / target
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place = place / source.name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
    return directory


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the checkout through."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(_matches(str(part), pattern) for part in _with_parents(path)):
                sent = line.startswith("!")  # The last line that matches counts.
    return sent


def _with_parents(path: str) -> list[PurePosixPath]:
    whole = PurePosixPath(path)
    return [whole, *list(whole.parents)[:-1]]


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(PurePosixPath(path).name, pattern.removeprefix("**/"))
    # `*` stops at a slash there.
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def of_kubernetes() -> dict[str, dict[str, Any]]:
    """What docs_src/deploy/kubernetes.yaml declares, by kind."""
    yaml = pytest.importorskip("yaml")  # of transformers
    declared = yaml.safe_load_all((FILE.parent / "kubernetes.yaml").read_text())
    return {one["kind"]: one for one in declared}


def pod() -> dict[str, Any]:
    """What the Deployment runs."""
    spec: dict[str, Any] = of_kubernetes()["Deployment"]["spec"]["template"]["spec"]
    return spec
