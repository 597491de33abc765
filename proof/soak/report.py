"""What came of it: a line for each round, a table at the end, all figures as JSON, and a plot."""

import argparse
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proof.tree import now, tree_hash

from .driver import Driver
from .flat import LEAST, Judgement, judged

PACKAGES = ("fastapi", "starlette", "anyio", "uvicorn", "hypercorn", "trio")


def line(driver: Driver) -> str:
    point = driver.points[-1]
    return (
        f"{point['time']:6.0f} s  {driver.name:10} round {len(driver.points)}: "
        f"{driver.seen.total():,} answers, {driver.done.total():,} actions, "
        f"{point['memory'] / 1e6:.1f} MB, {point['objects']:,} objects, "
        f"{len(driver.violations)} violations"
    )


def result(drivers: Sequence[Driver], options: argparse.Namespace, before: str) -> dict[str, Any]:
    """All there is to know of it."""
    servers = {driver.name: _server(driver) for driver in drivers}
    problems = [problem for server in servers.values() for problem in server["problems"]]
    tree = tree_hash()
    if tree != before:
        problems.append("the code has changed meanwhile: this is no proof")
    return {
        "tree": tree,
        "passed": not problems,
        "problems": problems,
        "seed": options.seed,
        "lie": options.lie,
        "minutes": max((driver.points or [{"time": 0}])[-1]["time"] for driver in drivers) / 60,
        "servers": servers,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "date": now(),
    }


def _server(driver: Driver) -> dict[str, Any]:
    is_enough = len(driver.points) >= LEAST
    judgements = judged(driver.points) if is_enough else []
    problems = [
        f"{driver.name}: {one.name} grew from {one.first:,.0f} to {one.last:,.0f}"
        for one in judgements
        if not one.is_flat
    ]
    if not is_enough:
        problems.append(f"{driver.name}: only {len(driver.points)} of at least {LEAST} rounds")
    problems += [
        f"{driver.name}, round {one['round']}, second {one['seconds']}: "
        f"{one['claim']}: {one['text']}"
        for one in driver.violations
    ]
    return {
        "problems": problems,
        "rounds": len(driver.points),
        "seen": dict(sorted(driver.seen.items())),
        "done": dict(sorted(driver.done.items())),
        "judgements": [vars(one) for one in judgements],
        "violations": driver.violations,
        "points": driver.points,
        "samples": driver.samples,
    }


def tell(drivers: Sequence[Driver], options: argparse.Namespace, tree: str) -> int:
    """Show it, keep it, and give the exit code."""
    whole = result(drivers, options, tree)
    name = f"soak-{options.lie.replace(' ', '-')}" if options.lie else "soak"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}-figures.json").write_text(json.dumps(whole, indent=1) + "\n")
    console = Console()
    for server, found in whole["servers"].items():
        console.print(_table(server, found))
    for problem in whole["problems"]:
        console.print(problem, style="red", markup=False, highlight=False)
    draw(whole, options.results / f"{name}.svg", console)
    seconds = f"{whole['minutes']:.1f} minutes, seed {options.seed}, tree {whole['tree']}"
    console.print(f"{'Passed' if whole['passed'] else 'Failed'}: {seconds}", highlight=False)
    return 0 if whole["passed"] else 1


def draw(whole: dict[str, Any], path: Path, console: Console) -> None:
    try:
        from .plot import plot
    except ModuleNotFoundError as error:
        console.print(f"No plot: {error}")
    else:
        plot(whole, path)
        console.print(f"Plot: {path}", highlight=False)


def _table(name: str, server: dict[str, Any]) -> Table:
    answers = sum(server["seen"].values())
    actions = sum(server["done"].values())
    table = Table(
        title=f"{name}: {server['rounds']} rounds, {answers:,} answers, {actions:,} actions"
    )
    for column, justify in (("", "left"), *((one, "right") for one in COLUMNS), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for one in (Judgement(**facts) for facts in server["judgements"]):
        row = (shown(one, value) for value in (one.first, one.last, one.growth, one.tolerance))
        table.add_row(one.name, *row, "flat" if one.is_flat else "[red]grows")
    return table


COLUMNS = ("second tenth", "end", "growth", "tolerance")


def shown(one: Judgement, value: float) -> str:
    return f"{value / 1e6:.2f} MB" if one.name == "memory" else f"{value:,.0f}"
