"""How long a start takes whose dependencies wait, until the first request is answered.

Twenty connections, three deep, take a handshake of 100 ms each: two seconds one after the other,
0.3 at least. Some libraries open them when the application starts, others for the first request, so
both are in the figure. It is the clock that counts here: waiting is what is measured.

Each visit is a new application. The contestants take turns in random order. Each visit is verified:
every connection is opened once, over the right ones, is what the endpoint gets, and is closed.
"""

import asyncio
import gc
import random
import statistics
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .competitors import connectors, present
from .competitors.connecting import COUNT, LAST, LEVELS, Connector, Handshakes
from .requests import WrongAnswer, get

SECONDS = 0.1
ROUNDS = 5
SEED = 4


class Visit(NamedTuple):
    """What a start took, in seconds."""

    startup: float
    first_request: float
    cpu: float  # of both

    @property
    def seconds(self) -> float:
        return self.startup + self.first_request


def steps(effort: float) -> int:
    return rounds(effort)


def rounds(effort: float) -> int:
    return max(2, round(ROUNDS * effort))


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """The seconds of each contestant, and how often they are those of the longest path."""
    found, rows = present(connectors())
    rows |= asyncio.run(_measure(found, SECONDS, rounds(effort), lambda: advance("handshakes")))
    return {"seconds": SECONDS, "connectors": rows}


async def _measure(
    found: list[Connector], seconds: float, rounds: int, advance: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    order = random.Random(SEED)
    visits: dict[str, list[Visit]] = {}
    results: dict[str, dict[str, Any]] = {}
    for connector in found:
        try:
            await _visit(connector, 0.0)  # to verify, and for what a first time imports and caches
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            results[connector.name] = {"problem": f"{type(error).__name__}: {text}"}
        else:
            visits[connector.name] = []
    measured = [connector for connector in found if connector.name in visits]
    for _ in range(rounds):
        for connector in order.sample(measured, len(measured)):
            visits[connector.name].append(await _visit(connector, seconds))
        advance()
    least = seconds * len(LEVELS)
    return results | {name: _medians(visits, least) for name, visits in visits.items()}


async def _visit(connector: Connector, seconds: float) -> Visit:
    handshakes = Handshakes(seconds)
    app = connector.build(handshakes)
    gc.collect()
    cpu, start = process_time(), perf_counter()
    async with app.router.lifespan_context(app) as state:
        started = perf_counter()
        answer = await get(app, state or {})
        answered, cpu = perf_counter(), process_time() - cpu
    if answer != str(len(LAST)):
        raise WrongAnswer(f"{answer!r} instead of {len(LAST)}")
    if problem := handshakes.problem():
        raise WrongAnswer(problem)
    return Visit(started - start, answered - started, cpu)


def _medians(visits: list[Visit], least: float) -> dict[str, Any]:
    low, seconds, high = statistics.quantiles((visit.seconds for visit in visits), n=4)
    return {
        "visits": len(visits),
        "startup": statistics.median(visit.startup for visit in visits),
        "first_request": statistics.median(visit.first_request for visit in visits),
        "seconds": seconds,
        "quartiles": [low, high],
        "ratio": seconds / least if least else None,
        "cpu_ms": statistics.median(visit.cpu for visit in visits) * 1000,
    }


# Tables


def tables(result: dict[str, Any]) -> list[Table]:
    least = result["seconds"] * len(LEVELS)
    notes = [
        f"{COUNT} connections of {result['seconds'] * 1000:.0f} ms, {len(LEVELS)} deep: "
        f"the longest path takes {least:.1f} s."
    ]
    table = Table(
        title="From the start to the first answer: seconds of the clock",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("")
    for heading in ("start", "first\nrequest", "both", "÷ longest\npath", "CPU time\nof both, ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in result["connectors"].items():
        if "problem" in row:
            notes.append("[red]" + escape(f"{name}: {row['problem']}") + "[/red]")
            table.add_row(escape(name), *"-----")
        else:
            seconds = (f"{row[one]:.3f}" for one in ("startup", "first_request", "seconds"))
            table.add_row(escape(name), *seconds, f"{row['ratio']:.2f}", f"{row['cpu_ms']:.1f}")
    table.caption = "\n".join(notes)
    return [table]
