"""Options and fixtures that every test file may use."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IS_WINDOWS = sys.platform == "win32"
# All of these need bash, file locks, terminals, or signals that are sent.
collect_ignore = (
    ["test_commands.py", "test_scripts.py", "test_start.py", "test_worker.py"] if IS_WINDOWS else []
)

# How long an example takes says nothing on a busy machine.
settings.register_profile(
    "quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=400)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="more random examples, and the full load"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "quick")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if IS_WINDOWS and item.get_closest_marker("unix"):
        pytest.skip("needs what Windows doesn't have")


@pytest.fixture(scope="session")
def is_thorough(pytestconfig: pytest.Config) -> bool:
    """Whether a test may take its time."""
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an asynchronous test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Let the garbage collector look at nothing but what the tests of this file make.

    Others have left far more behind, modules of half a million objects among it: a look at them
    takes longer than most tests. They stay frozen, for nobody waits for them to go.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, for modules that a command imports; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)
    yield tmp_path
    places = (f"{tmp_path}/", f"{Path.cwd()}/")  # it may have gone on to another one
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(places) or not file:
            del sys.modules[name]
