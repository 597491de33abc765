"""See scripts/ecosystem."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
KEPT = ROOT / ".compat" / "ecosystem"
CONFIGURATION = tomllib.loads((SCRIPTS / "ecosystem.toml").read_text())
# Of one run of one project's tests, in seconds.
TIME_LIMIT = 1200


class Row(NamedTuple):
    """What came of a project."""

    name: str
    version: str
    untouched: int  # tests that passed
    ours: int
    lost: dict[str, str]  # what passed untouched only, and why it may
    problem: str = ""

    @property
    def has_failed(self) -> bool:
        return bool(self.problem) or not all(self.lost.values())


class Project:
    def __init__(self, table: dict[str, Any]) -> None:
        self.name: str = table["name"]
        self.version: str = table["version"]
        self._table = table
        self._folder = KEPT / f"{self.name}-{self.version}"
        self._python = self._folder / "venv/bin/python"
        self._results = self._folder / "results.json"

    def run(self) -> Row:
        self._install()
        sources = self._unpack()
        untouched = self._tests(sources, swap=False)
        if not untouched:
            return Row(self.name, self.version, 0, 0, {}, "no test passes untouched")
        ours = self._tests(sources, swap=True)
        lost = [one for one in untouched if one not in ours]
        again = sorted({one.partition("#")[0] for one in lost})
        if again and len(again) <= 20:  # a few of them disturb each other
            ours |= self._tests(sources, swap=True, only=again)
        exceptions = self._table.get("exceptions", {})
        lost = sorted(untouched - ours)
        reasons = {one: exceptions.get(one.partition("#")[0], "") for one in lost}
        return Row(self.name, self.version, len(untouched), len(untouched & ours), reasons)

    def _install(self) -> None:
        """Make the environment, unless it is there."""
        stamp = hashlib.sha256(
            json.dumps([self._table, CONFIGURATION["fastapi"], sys.version, str(ROOT)]).encode()
        ).hexdigest()
        done = self._folder / "installed"
        if done.exists() and done.read_text() == stamp:
            return
        print(f"Installing {self.name} {self.version} and what its tests need ...", flush=True)
        requirement = f"{self.name}=={self.version}"
        venv = self._folder / "venv"
        call([sys.executable, "-m", "venv", "--clear", venv])
        pip = [self._python, "-m", "pip"]
        call([*pip, "install", "-qq", "--upgrade", "pip"])
        download = [*pip, "download", "-qq", "--no-deps", "--no-binary", self.name]
        call([*download, "-d", self._folder, requirement])
        fastapi = f"fastapi=={CONFIGURATION['fastapi']}"
        requires = ["pytest", "trio", *self._table["requires"]]
        call([*pip, "install", "-qq", fastapi, requirement, *requires])
        call([*pip, "install", "-qq", "--no-deps", "-e", ROOT])
        done.write_text(stamp)

    def _unpack(self) -> Path:
        """The sources, afresh: some tests leave files behind."""
        (archive,) = self._folder.glob("*.tar.gz")
        target = self._folder / "sources"
        subprocess.run(["rm", "-rf", target], check=True)
        with tarfile.open(archive) as file:
            file.extractall(target, filter="data")
        (folder,) = target.iterdir()
        return folder

    def _tests(self, sources: Path, *, swap: bool, only: list[str] | None = None) -> set[str]:
        """Those that pass."""
        self._results.unlink(missing_ok=True)
        arguments = self._table.get("arguments", ["-o", "addopts="])
        if not configures_pytest(sources):  # or pytest takes ours, further up
            arguments = [*arguments, "-c", os.devnull, "--rootdir", str(sources)]
        command = [
            *(
                self._python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "ecosystem_plugin",
                "-p",
                "no:cacheprovider",
            ),
            *arguments,
            *(only or self._table["tests"]),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{SCRIPTS}:{sources}",
            "ECOSYSTEM_RESULTS": str(self._results),
            "ECOSYSTEM_SWAP": "yes" if swap else "",
        }
        log = self._folder / f"{'ours' if swap else 'untouched'}.log"
        with log.open("a" if only else "w") as output:
            try:
                subprocess.run(
                    command,
                    cwd=sources,
                    env=environment,
                    stdout=output,
                    stderr=output,
                    timeout=TIME_LIMIT,
                )
            except subprocess.TimeoutExpired:
                return set()
        if not self._results.exists():
            return set()
        results: dict[str, str] = json.loads(self._results.read_text())
        return {name for name, outcome in results.items() if outcome == "passed"}


def configures_pytest(sources: Path) -> bool:
    pyproject = sources / "pyproject.toml"
    in_pyproject = pyproject.exists() and "[tool.pytest" in pyproject.read_text()
    return in_pyproject or (sources / "pytest.ini").exists()


def call(command: list[Any]) -> None:
    subprocess.run(command, check=True)


def main() -> int:
    projects = [Project(table) for table in CONFIGURATION["project"]]
    known = [project.name for project in projects]
    for name in sys.argv[1:]:
        if name not in known:
            print(f"ecosystem: what is '{name}'? There are: {', '.join(known)}", file=sys.stderr)
            return 2
    rows = []
    for project in projects:
        if sys.argv[1:] and project.name not in sys.argv[1:]:
            continue
        print(f"== {project.name} {project.version}", flush=True)
        try:
            row = project.run()
        except subprocess.CalledProcessError as error:
            row = Row(project.name, project.version, 0, 0, {}, f"not installed: {error}")
        for test, reason in row.lost.items():
            print(f"   {'may fail' if reason else 'FAILS'}: {test}  {reason}")
        rows.append(row)

    print(f"\n{'project':40} {'version':10} {'untouched':>9} {'with us':>9}  result")
    for row in rows:
        allowed = sum(map(bool, row.lost.values()))
        result = row.problem or ("failed" if row.has_failed else "passed")
        result += f", {allowed} named exceptions" if allowed else ""
        print(f"{row.name:40} {row.version:10} {row.untouched:9} {row.ours:9}  {result}")
    return int(any(row.has_failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
