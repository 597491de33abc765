"""Writes what docs/how-to/see-what-starts.md shows: the output of commands, and a picture.

    .venv/bin/python scripts/seeing.py

Run it when something of it has changed: tests/test_seeing_page.py says so.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI

from fastapi_lifespan_deps.command.finding import application_at
from fastapi_lifespan_deps.command.showing import LiveTable
from fastapi_lifespan_deps.command.start import Attempt
from fastapi_lifespan_deps.command.timeline import Timeline

ROOT = Path(__file__).parents[1]
SEEING = ROOT / "docs_src/seeing"
PICTURE = ROOT / "docs/how-to/start.svg"

# The files, and what writes them.
OUTPUTS = {
    "check.txt": "check shop.main:app",
    "tree.txt": "graph shop.main:app",
    "why.txt": "graph shop.main:app --why get_settings",
    "picture.txt": "graph shop.main:app --format mermaid",
    "start.txt": "start shop.main:app",
    "hanging.txt": "start shop.search:app --timeout 1",
}


SLOW = "slow.txt"


def output(command: str) -> str:
    """What a command writes."""
    return run("-m", "fastapi_lifespan_deps", *command.split())


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=SEEING,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return result.stdout


class Recorded(LiveTable):
    """A table that keeps how it was summed up."""

    summary = ""

    def sum_up(self, summary: str, data: dict[str, Any]) -> None:
        self.summary = summary


def picture() -> str:
    """What a terminal shows in the end of a start, for the current directory's application."""
    look: Any = {"force_terminal": True, "color_system": "truecolor", "width": 64, "height": 20}
    timeline = Timeline()
    table = Recorded(timeline, Console(file=io.StringIO(), **look), "shop.main:app")
    attempt = Attempt(timeline, table, 60)
    attempt.run(application_at("shop.main:app"))
    attempt.end()
    console = Console(file=io.StringIO(), record=True, highlight=False, **look)
    console.print("$ fastapi-lifespan-deps start shop.main:app", style="dim")
    console.print(table.render())
    console.print(table.summary)
    # without the fonts that it would fetch from elsewhere
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="", theme=MONOKAI, code_format=form, unique_id="start")


if __name__ == "__main__":
    for name, command in OUTPUTS.items():
        (SEEING / name).write_text(output(command))
    (SEEING / SLOW).write_text(run("slow_start.py"))
    os.chdir(SEEING)
    sys.path.insert(0, "")
    PICTURE.write_text(picture())
