"""docs/recipes/testing.md: the tests that it shows pass under pytest itself."""

import subprocess
import sys

import pytest

from tests.processes import ROOT

TESTING = "docs_src/recipes/testing"
AUTO = (
    "-oasyncio_mode=auto",
    "-oasyncio_default_fixture_loop_scope=session",
    "-oasyncio_default_test_loop_scope=session",
)


def run_pytest(request: pytest.FixtureRequest, *arguments: str) -> str:
    warnings = [f"-W{given}" for given in request.config.getoption("pythonwarnings") or ()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings]
    result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_the_tests_that_are_shown(request: pytest.FixtureRequest) -> None:
    output = run_pytest(request, TESTING, f"--ignore={TESTING}/test_auto.py")
    assert "15 passed" in output, output


def test_one_event_loop_for_all(request: pytest.FixtureRequest) -> None:
    output = run_pytest(request, f"-c{TESTING}/auto/pyproject.toml", f"{TESTING}/test_auto.py")
    assert "1 passed" in output, output


def test_two_plugins_that_take_the_same_test(request: pytest.FixtureRequest) -> None:
    """One has started the application in its event loop, the other runs the test in another."""
    output = run_pytest(request, *AUTO, f"{TESTING}/test_anyio.py", "-k", "asyncio")
    assert "2 failed" in output, output
    assert "the application was started in another event loop" in output
