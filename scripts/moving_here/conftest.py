"""Shows the outcome as a table: a line for each library, a column for each moment of the move."""

from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

WHEN = ("before", "during", "after")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for outcome, counter in (("passed", passed), ("failed", failed), ("error", failed)):
        for report in terminalreporter.getreports(outcome):
            counter[cell_of(report.nodeid)] += 1
    columns = (*WHEN, "what the page says")
    rows = [("", "", *columns)]
    for library in sorted({library for library, _ in passed | failed}):
        cells = [told(passed[library, column], failed[library, column]) for column in columns]
        distribution = library.replace("_", "-")
        rows.append((distribution, version(distribution), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section(f"FastAPI {version('fastapi')}: tests that passed")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        terminalreporter.write_line("  ".join(cells).rstrip())


def cell_of(nodeid: str) -> tuple[str, str]:
    """Of `examples.py::test[dishka.before]` or `of_dishka.py::test`."""
    path, _, test = nodeid.partition("::")
    if Path(path).stem == "examples":
        library, _, when = test.partition("[")[2].removesuffix("]").partition(".")
        return library, when
    return Path(path).stem.removeprefix("of_"), "what the page says"


def told(passed: int, failed: int) -> str:
    return f"{passed}, {failed} FAILED" if failed else str(passed) if passed else "-"
