"""The plot of what services cost a request, for the documentation."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

OURS = "fastapi-lifespan-deps"

# The background is transparent, so these have to be readable on white and on black.
TEXT = "#808080"
RULE = "#80808040"
OTHERS = "#7a8ba8"
HIGHLIGHT = "#e0771a"

# What is less is lost in the noise.
LEAST_US = 0.2

STYLE: Any = {
    # The same figures give the same file, and text that a page can select.
    "svg.hashsalt": "benchmarks",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.labelcolor": TEXT,
}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw a row for each contestant: dots for its added cost with 1, 5 and 20 services."""
    counts = [str(count) for count in result["counts"] if count]
    rows = {
        name: [max(row[count]["added_us"], LEAST_US) for count in counts]
        for name, row in result["contestants"].items()
        if not name.startswith(f"{OURS}, ")
        and all("added_us" in row.get(count, {}) for count in counts)
    }
    names = sorted(rows, key=lambda name: rows[name][-1], reverse=True)
    with matplotlib.rc_context(STYLE):
        size = 8, 0.3 * len(names) + 0.9
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        for height, name in enumerate(names):
            draw_row(axes, height, rows[name], HIGHLIGHT if name == OURS else OTHERS)
        for count, value in zip(counts, rows[names[0]], strict=True):
            place = value, 0
            axes.annotate(f"N = {count}", place, (0, -17), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(names)), names)
        for label in axes.get_yticklabels():
            if label.get_text() == OURS:
                label.set(color=HIGHLIGHT, fontweight="bold")
        axes.set_ylim(-1.0, len(names) - 0.4)
        axes.set_xscale("log")
        axes.set_xlim(LEAST_US / 1.3, max(map(max, rows.values())) * 4)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g} µs")
        axes.set_xlabel("CPU time that N services add to a request, on a logarithmic scale")
        axes.grid(axis="x", color=RULE)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def draw_row(axes: Any, height: int, values: list[float], color: str) -> None:
    axes.plot(values, [height] * len(values), color=color, linewidth=1.5, zorder=2)
    for area, value in zip((14, 32, 60), values, strict=True):
        axes.scatter(value, height, s=area, color=color, zorder=3)
    place = max(values), height
    label = shown(values[-1])
    axes.annotate(label, place, (9, 0), textcoords="offset points", va="center", fontsize=9)


def shown(microseconds: float) -> str:
    if microseconds <= LEAST_US:
        return f"under {LEAST_US} µs"
    digits = max(0, 1 - math.floor(math.log10(microseconds)))
    return f"{microseconds:,.{digits}f} µs"
