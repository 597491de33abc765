"""Run the benchmarks, show their tables, and write a JSON file and a plot.

For example:
    scripts/bench                      all parts, in about ten minutes
    scripts/bench requests --quick     one part, with a tenth of the work
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .report import PARTS

QUICK = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--quick", action="store_true", help="to try it out: figures are rough")
    parser.add_argument(
        "--output", type=Path, default=Path(".bench/results"), metavar="DIR", help="%(default)s"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is named {', '.join(sorted(unknown))}: choose from {PARTS}")
    parts = [part for part in PARTS if part in options.parts or not options.parts]

    console = Console()
    results = run(parts, QUICK if options.quick else 1.0, console)
    for table in report.tables(results):
        console.print(table)
        console.print()
    for path in report.write(results, options.output):
        console.print(f"Wrote {path}", highlight=False)


def run(parts: list[str], effort: float, console: Console) -> dict[str, Any]:
    modules = {part: importlib.import_module(f".{part}", __package__) for part in parts}
    results: dict[str, Any] = {"effort": effort, "machine": report.machine()}
    # It is drawn when a step is done. A thread that draws now and then would be measured too.
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        total = sum(module.steps(effort) for module in modules.values())
        task = progress.add_task("", total=total)

        def advance(text: str) -> None:
            if not console.is_terminal and progress.tasks[task].description != text:
                console.print(text, highlight=False)
            progress.update(task, advance=1, description=text, refresh=True)

        for part, module in modules.items():
            results[part] = module.measure(advance, effort)
    return results


if __name__ == "__main__":
    main()
