"""Options and fixtures that every test file may use."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a busy machine.
settings.register_profile(
    "quick", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=400)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="more random examples, and the full load"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "quick")


@pytest.fixture(scope="session")
def is_thorough(pytestconfig: pytest.Config) -> bool:
    """Whether a test may take its time."""
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an asynchronous test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Let the garbage collector look at nothing but what the tests of this file make.

    Other files leave far more behind, modules of half a million objects among it.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
