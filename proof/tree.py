"""In which state of the code something ran: git's own hashes of the package and of its tests.

`git rev-parse COMMIT:fastapi_lifespan_deps COMMIT:tests` gives the same for a commit; changes that
are not committed count, too. `python -m proof.tree` prints it, and

    python -m proof.tree NAME TREE EXIT_CODE SECONDS [ARGUMENT...]

writes to .results/NAME.json what came of a script that began when it was TREE: `keep_result` of
scripts/common does both. It takes Python's own library alone.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / ".results"
PROVEN = ("fastapi_lifespan_deps", "tests")


def tree_hash(folders: Iterable[str] = PROVEN, root: Path = ROOT) -> str:
    """A hash of each folder as it is now, twelve digits each, joined by dots."""
    folders = list(folders)
    with tempfile.TemporaryDirectory() as directory:
        # an index of its own, so that what is staged doesn't matter, and stays
        environment = os.environ | {"GIT_INDEX_FILE": f"{directory}/index"}

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(root), *arguments]
            return subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout

        git("add", "--", *folders)
        return ".".join(git("write-tree", f"--prefix={folder}/")[:12] for folder in folders)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def main(
    name: str = "", before: str = "", exit_code: str = "", seconds: str = "", *arguments: str
) -> None:
    try:
        tree = tree_hash()
    except (OSError, subprocess.CalledProcessError):
        tree = ""  # without git, or outside of a checkout
    if not name:
        print(tree or "unknown")
        return
    result = {
        "tree": tree or None,
        "passed": exit_code == "0" and before == tree,
        "has_changed_meanwhile": before != (tree or "unknown"),
        "exit_code": int(exit_code),
        "seconds": int(seconds),
        "arguments": arguments,
        "python": platform.python_version(),
        "date": now(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
