"""The options of `LifespanFastAPI` are those of the newest FastAPI, for type checkers too."""

import inspect
import subprocess
import sys
from pathlib import Path

import fastapi
import pytest
from fastapi import FastAPI

from fastapi_lifespan_deps import LifespanFastAPI
from fastapi_lifespan_deps.serve import options

ROOT = Path(__file__).parents[1]
OWN = {"lifespan", "lifespan_start", "on_lifespan_event"}


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


def made_from() -> tuple[int, ...]:
    return release((options.__doc__ or "").partition("From FastAPI ")[2].partition("\n")[0][:-1])


@pytest.mark.skipif(
    release(fastapi.__version__) < made_from(), reason="they are of a newer release of FastAPI"
)
def test_they_are_fastapis_options() -> None:
    """Else run scripts/fastapi_options.py."""
    parameters = inspect.signature(FastAPI.__init__).parameters.values()
    theirs = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert options.FastAPIOptions.__annotations__.keys() == theirs - OWN


@pytest.mark.skipif(
    release(fastapi.__version__) != made_from(), reason="they are of another release of FastAPI"
)
def test_what_the_script_writes_is_what_is_there(tmp_path: Path) -> None:
    script = ROOT / "scripts/fastapi_options.py"
    before = Path(options.__file__).read_text()
    copy = tmp_path / "scripts" / script.name
    copy.parent.mkdir()
    copy.write_text(script.read_text())
    (tmp_path / "fastapi_lifespan_deps/serve").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    ruff = subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True)
    if ruff.returncode:
        pytest.skip("ruff is not installed here")
    subprocess.run([sys.executable, copy], check=True)
    assert (tmp_path / "fastapi_lifespan_deps/serve/options.py").read_text() == before


@pytest.mark.skipif(
    any(one.kind is one.VAR_KEYWORD for one in inspect.signature(FastAPI).parameters.values()),
    reason="this release of FastAPI takes any name",
)
def test_a_misspelt_option_is_refused_as_by_fastapi() -> None:
    with pytest.raises(TypeError, match="titel"):
        LifespanFastAPI(titel="typo")  # type: ignore[call-arg]
