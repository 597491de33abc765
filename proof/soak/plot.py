"""The plot of a soak, for the documentation: what each server held, from beginning to end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# The background is transparent, so these have to be readable on white and on black.
TEXT = "#808080"
RULE = "#80808040"
COLORS = {"uvicorn": "#e0771a", "hypercorn": "#7a8ba8"}
NAMES = {"uvicorn": "uvicorn, asyncio", "hypercorn": "hypercorn, trio"}
BOLD: dict[str, Any] = {"linewidth": 1.6, "zorder": 2}
PALE: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.5, "zorder": 1}
MOST = 400  # points in a line

STYLE: Any = {
    # The same figures give the same file, and text that a page can select.
    "svg.hashsalt": "soak",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
}
# What is drawn, how it is called, by what it is divided; and whether it is also seen under load.
PANELS = (
    ("memory", "memory, MB", 1e6, True),
    ("objects", "objects, thousands", 1e3, False),
    ("values", "values alive", 1, False),
    ("tasks", "tasks", 1, False),
    ("threads", "threads", 1, True),
    ("descriptors", "file descriptors", 1, True),
)


def plot(whole: dict[str, Any], path: Path) -> None:
    """Draw a panel for each thing: bold what is there at calm points, pale under load."""
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(2, 3, figsize=(8, 4.2), sharex=True, layout="constrained")
        for axes, (name, title, unit, is_sampled) in zip(panels.flat, PANELS, strict=True):
            for server, found in whole["servers"].items():
                color = {"color": COLORS[server]}
                if is_sampled:
                    _line(axes, found["samples"], name, unit, PALE | color)
                _line(axes, found["points"], name, unit, BOLD | color)
            _dress(axes, title, whole["minutes"])
        handles = [
            *(Line2D([], [], color=COLORS[name], label=NAMES[name]) for name in whole["servers"]),
            Line2D([], [], color=TEXT, label="when all has ended", **BOLD),
            Line2D([], [], color=TEXT, label="under load", **PALE),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _line(
    axes: Any,
    points: Sequence[dict[str, float]],
    name: str,
    unit: float,
    style: dict[str, Any],
) -> None:
    chosen = [point for point in points[:: -(-len(points) // MOST) or 1] if name in point]
    minutes = [point["time"] / 60 for point in chosen]
    axes.plot(minutes, [point[name] / unit for point in chosen], **style)


def _dress(axes: Any, title: str, minutes: float) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.15)
    axes.set_xlim(0, minutes)
    # From here on nothing may grow.
    axes.axvline(minutes / 10, color=TEXT, linewidth=0.7, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} min" if value else "0")
    axes.grid(axis="y", color=RULE)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
