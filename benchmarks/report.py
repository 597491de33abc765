"""What comes out: the tables, the budgets, a JSON file, and a plot for the documentation."""

import datetime
import importlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

PARTS = ("requests", "calls", "startup", "handshakes", "live", "serving", "refreshes")
OURS = "fastapi-lifespan-deps"
PEER = "wireup, WireupRoute"


def machine() -> dict[str, Any]:
    """Where and with what was measured."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "packages": dict(sorted((found.name, found.version) for found in distributions())),
    }


def cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str | None:
    """The commit that is measured, marked if files differ from it; None without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return described.stdout.strip() or None


@dataclass(frozen=True)
class Budget:
    """A figure, and what it may be: an aim, and what it must not be more than."""

    what: str
    measured: float
    at_most: float | None = None
    aim: float | None = None
    margin: float | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.at_most is None or self.measured <= self.at_most

    def show(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value * 100:.1f} %" if self.unit == "%" else f"{value:.3f}{self.unit}"

    def row(self) -> list[str]:
        """The cells of a table."""
        margin = f" ±{self.margin:.3f}" if self.margin is not None else ""
        verdict = "[green]met" if self.is_met else "[bold red]missed"
        if self.is_met and self.aim is not None and self.measured > self.aim:
            verdict = "[green]met, not the aim" if self.at_most else "not the aim"
        measured = self.show(self.measured) + margin
        return [self.what, self.show(self.aim), self.show(self.at_most), measured, verdict]


def budgets(results: dict[str, Any]) -> Iterator[Budget]:
    """The budgets for which there are figures."""
    rows = results.get("requests", {}).get("contestants", {})
    ours, peer, overridden = (rows.get(name, {}) for name in (OURS, PEER, f"{OURS}, overrides"))

    def ratio(
        what: str, found: dict[str, Any], at_most: float | None, aim: float | None = None
    ) -> Iterator[Budget]:
        if "ratio" in found and (at_most or aim) is not None:
            yield Budget(what, found["ratio"], at_most, aim, found["margin"])

    for count, aim, at_most in (("1", 1.04, 1.06), ("5", 1.05, 1.06), ("20", None, 1.065)):
        found = ours.get(count, {})
        yield from ratio(f"N = {count} ÷ globals", found, at_most, aim)
        of_peer = peer.get(count, {}).get("ratio")
        yield from ratio(f"N = {count}, below WireupRoute", found, None, of_peer)
        found = overridden.get(count, {})
        yield from ratio(f"N = {count}, overrides ÷ FastAPI's", found, 1.0)
    yield from ratio("no lifespan dependencies ÷ FastAPI", ours.get("0", {}), 1.01)
    if "us_per_further" in ours:
        yield Budget("each further dependency", ours["us_per_further"], 0.05, unit=" µs")
    yield from call_budgets(results.get("calls", {}).get("callers", {}))
    startup = results.get("startup", {})
    if (share := startup.get("share_of_build_10000")) is not None:
        yield Budget("startup, 10,000 routes ÷ building them", share, 0.05, unit="%")
    if (growth := startup.get("growth")) is not None:
        # Linear is 1; caches, which hold less of what is larger, make it a little more.
        yield Budget("startup per route, 10,000 ÷ 1,000", growth, 1.25, 1.0)
    for row in results.get("live", {}).get("rows", {}).values():
        # Linear is 2; caches, as above.
        yield Budget(f"n doubled: {row['what']}", row["worst"], 2.3)


# Another library's fastest way is what counts.
CALL_PEERS = (
    ("dishka", 1.5),
    ("taskiq-dependencies", 1.5),
    ("fast-depends", 0.15),
    ("fastapi-injectable", 0.05),
)


def call_budgets(rows: dict[str, Any]) -> Iterator[Budget]:
    """The budgets of calls outside of requests."""
    ours, values = (rows.get(name, {}) for name in (OURS, f"{OURS}, values only"))
    if "ratio" in ours:
        yield Budget("call ÷ by hand, shielded", ours["ratio"], 2.0, 1.3, ours["margin"])
        for peer, at_most in CALL_PEERS:
            found = [
                row
                for name, row in rows.items()
                if name.partition(",")[0] == peer and "ratio" in row
            ]
            if found:
                fastest = min(found, key=lambda row: float(row["ratio"]))
                measured = ours["ratio"] / fastest["ratio"]
                errors = (row["margin"] / row["ratio"] for row in (ours, fastest))
                yield Budget(
                    f"call ÷ {peer}", measured, at_most, margin=measured * math.hypot(*errors)
                )
    if "ratio" in values:
        yield Budget("call, values only ÷ by hand", values["ratio"], 1.5, margin=values["margin"])


def tables(results: dict[str, Any]) -> Iterator[Table]:
    for part in PARTS:
        if part in results:
            yield from importlib.import_module(f".{part}", __package__).tables(results[part])
    table = Table(title="Budgets", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for heading in ("aim", "at most", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for budget in budgets(results):
        table.add_row(*budget.row())
    if table.row_count:
        yield table


def write(results: dict[str, Any], directory: Path) -> Iterator[Path]:
    """Write everything that was measured, and the plot."""
    directory.mkdir(parents=True, exist_ok=True)
    found = [asdict(budget) | {"is_met": budget.is_met} for budget in budgets(results)]
    path = directory / "results.json"
    path.write_text(json.dumps(results | {"budgets": found}, indent=2, ensure_ascii=False) + "\n")
    yield path
    if "requests" in results:
        from .plot import plot  # matplotlib takes long to import

        path = directory / "requests.svg"
        plot(results["requests"], path)
        yield path
