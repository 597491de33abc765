"""What startup costs an application of thousands of routes.

FastAPI builds what serves the routes of included routers lazily: for the first request, or for
whoever walks the routes before it, as this library does at startup. So three things are told
apart: building the application, FastAPI's work in such a walk, and what the library does beyond
it, its own work. Every visit is a process of its own, because a first time is measured, and
because the garbage of one measurement makes the next one slower. Times are process CPU time, with
the garbage collector on, as applications have it.

One visit by hand, from the repository: `python -m benchmarks.startup with 10000 parts`
"""

import asyncio
import gc
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import process_time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from rich.table import Table

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .requests import WrongAnswer, get

PROVIDERS = 20
GROUPS = 10  # routers in the application, and routers in each of them
PATH_PARAMETERS = ("item_id", "part_id")
VISIT_SECONDS = 180  # at most
SEED = 4

VARIANTS = {
    "fastapi": "FastAPI",
    "without": "LifespanFastAPI, no lifespan dependency",
    "with": f"LifespanFastAPI, 2 of {PROVIDERS} in each route",
}


class Visit(NamedTuple):
    """What one process measures.

    How: in "parts", first FastAPI's walk, then the startup, which is the library's own work; the
    "whole" startup at once; or, traced and therefore slow, the "memory" that is kept.
    """

    variant: str
    routes: int
    how: str


# How often at effort 1.0, and how often at least.
VISITS = {
    Visit("fastapi", 1_000, "whole"): (2, 1),
    Visit("without", 1_000, "parts"): (2, 1),
    Visit("without", 1_000, "whole"): (1, 1),
    Visit("without", 1_000, "memory"): (1, 1),
    Visit("with", 1_000, "parts"): (3, 1),
    Visit("with", 1_000, "whole"): (1, 1),
    Visit("with", 1_000, "memory"): (1, 1),
    Visit("fastapi", 10_000, "whole"): (1, 0),
    Visit("without", 10_000, "parts"): (1, 0),
    Visit("with", 10_000, "parts"): (2, 1),
    Visit("with", 10_000, "whole"): (1, 0),
}


def steps(effort: float) -> int:
    return len(_visits(effort))


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """The medians of each kind of visit, and what the budgets are about."""
    found: dict[Visit, list[dict[str, float]]] = {}
    for visit in _visits(effort):
        found.setdefault(visit, []).append(_in_a_process(visit))
        advance(f"startup, {visit.routes:,} routes")
    rows = [
        {**visit._asdict(), "visits": len(found[visit]), **_medians(found[visit])}
        for visit in VISITS
        if visit in found
    ]
    result: dict[str, Any] = {"rows": rows}
    for variant in ("without", "with"):
        small, large = (_row(rows, variant, routes, "parts") for routes in (1_000, 10_000))
        if large:
            result[f"share_of_build_10000_{variant}"] = large["share"]
            result[f"growth_{variant}"] = large["startup"] / small["startup"] / 10
    result["share_of_build_10000"] = result["share_of_build_10000_with"]
    result["growth"] = result["growth_with"]
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    rows = result["rows"]
    return [_own_work(rows, result["growth"]), _first_answer(rows), _memory(rows)]


def _visits(effort: float) -> list[Visit]:
    visits = [
        visit
        for visit, (times, least) in VISITS.items()
        for _ in range(max(least, round(times * effort)))
    ]
    random.Random(SEED).shuffle(visits)
    return visits


def _in_a_process(visit: Visit) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, "-m", __name__, visit.variant, str(visit.routes), visit.how],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        timeout=VISIT_SECONDS,
        check=True,
    )
    return json.loads(process.stdout)  # type: ignore[no-any-return]


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _row(rows: list[dict[str, Any]], variant: str, routes: int, how: str) -> dict[str, Any]:
    asked = (variant, routes, how)
    return next((r for r in rows if (r["variant"], r["routes"], r["how"]) == asked), {})


# One visit, in a process of its own


async def _visit(variant: str, routes: int, how: str) -> dict[str, float]:
    kind = FastAPI if variant == "fastapi" else LifespanFastAPI
    takes = variant == "with"
    # What the first start and the first request of all import and cache is not to be measured.
    await _measured(_build(kind, _endpoints(GROUPS**2, takes=takes)), GROUPS**2, how)
    endpoints = _endpoints(routes, takes=takes)
    start = process_time()
    app = _build(kind, endpoints)
    build = process_time() - start
    if how == "memory":
        tracemalloc.start()  # before the walk: the startup frees some of what that makes
    found = await _measured(app, routes, how)
    return {"build": build, **found, "share": found["startup"] / build}


async def _measured(app: FastAPI, routes: int, how: str) -> dict[str, float]:
    found = {}
    if how != "whole":
        start = process_time()
        for _ in iter_route_contexts(app.routes):
            pass
        found["walk"] = process_time() - start
    resident, kept = _resident(), _kept()
    start = process_time()
    async with app.router.lifespan_context(app) as state:
        found["startup"] = process_time() - start
        found["resident"] = (_resident() - resident) / routes
        found["kept"] = (_kept() - kept) / routes
        for request in ("first request", "second request"):
            start = process_time()
            await _request(app, state or {}, routes - 1)
            found[request] = process_time() - start
    start = process_time()
    async with app.router.lifespan_context(app):
        found["startup again"] = process_time() - start
    return found


async def _request(app: FastAPI, state: Any, index: int) -> None:
    """Ask the last route, and see whether it got the right objects."""
    path = f"/{GROUPS - 1}/{GROUPS - 1}/{index}" + "/1" * len(_path_parameters(index))

    async def at_path(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": path, "raw_path": path.encode()}, receive, send)

    answer = await get(at_path, state)
    if answer != str(_answer(index)):
        raise WrongAnswer(f"{path} answers {answer!r}, not {_answer(index)}")


def _resident() -> int:
    """The most bytes of memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kept() -> int:
    """The bytes that are in use since tracing began."""
    if not tracemalloc.is_tracing():
        return 0
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# The application


class Value:
    """What a lifespan dependency gives."""

    def __init__(self, number: int) -> None:
        self.number = number


def _build(kind: type[FastAPI], endpoints: list[Callable[..., Any]]) -> FastAPI:
    """An application of routers in routers, with equally many routes in each of the inner ones."""
    app = kind()
    numbered = enumerate(endpoints)
    for outer_number in range(GROUPS):
        outer = APIRouter()
        for inner_number in range(GROUPS):
            inner = APIRouter()
            for index, endpoint in itertools.islice(numbered, len(endpoints) // GROUPS**2):
                path = f"/{index}" + "".join(f"/{{{name}}}" for name in _path_parameters(index))
                inner.get(path)(endpoint)
            outer.include_router(inner, prefix=f"/{inner_number}")
        app.include_router(outer, prefix=f"/{outer_number}")
    return app


def _endpoints(count: int, *, takes: bool) -> list[Callable[..., Any]]:
    """Endpoints as different as those that people write: each has code of its own."""
    names: dict[str, Any] = {}
    for number in range(PROVIDERS):
        lifespan = Annotated[Value, Depends(_provider(number), scope="lifespan")]
        names[f"Lifespan_{number}"] = lifespan
        names[f"Request_{number}"] = Annotated[Value, Depends(_passing_on(lifespan))]
    exec("".join(_source(index, takes=takes) for index in range(count)), names)
    return [names[f"endpoint_{index}"] for index in range(count)]


def _source(index: int, *, takes: bool) -> str:
    parameters = [f"{name}: int" for name in _path_parameters(index)]
    answer = str(_answer(index))
    if takes:
        # every fourth endpoint has one of its two through a dependency of the request
        kind = "Request" if index % 4 == 3 else "Lifespan"
        first, second = _numbers(index)
        parameters += [f"first: {kind}_{first}", f"second: Lifespan_{second}"]
        answer = "first.number * 100 + second.number"
    return f"async def endpoint_{index}({', '.join(parameters)}) -> int:\n    return {answer}\n"


def _provider(number: int) -> Callable[[], Awaitable[Value]]:
    async def provider() -> Value:
        return Value(number)

    return provider


def _passing_on(lifespan: Any) -> Callable[..., Awaitable[Value]]:
    async def of_the_request(value: lifespan) -> Any:
        return value

    return of_the_request


def _path_parameters(index: int) -> tuple[str, ...]:
    return PATH_PARAMETERS[: index % 3]


def _numbers(index: int) -> tuple[int, int]:
    return index % PROVIDERS, (index + 7) % PROVIDERS


def _answer(index: int) -> int:
    first, second = _numbers(index)
    return first * 100 + second


# Tables


def _own_work(rows: list[dict[str, Any]], growth: float) -> Table:
    table = Table(
        title="Startup: CPU time in ms",
        caption=f"own work at 10,000 routes ÷ ten times that at 1,000: {growth:.2f}",
    )
    for column in ("routes", "", "build", "FastAPI's\nwalk", "own,\ncold", "÷ build"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_column("own,\nwarm", justify="right")
    table.add_column("÷ build", justify="right")
    for row in rows:
        if row["how"] == "parts":
            again = row["startup again"]
            table.add_row(
                f"{row['routes']:,}",
                VARIANTS[row["variant"]],
                _ms(row["build"]),
                _ms(row["walk"]),
                _ms(row["startup"]),
                f"{row['share']:.1%}",
                _ms(again),
                f"{again / row['build']:.1%}",
            )
    return table


def _first_answer(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Until the first answer, of the last route: CPU time in ms",
        caption="The walk is part of FastAPI's first request, and of LifespanFastAPI's startup.",
    )
    for column in ("routes", "", "startup", "first\nrequest", "second\nrequest"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        if row["how"] == "whole":
            table.add_row(
                f"{row['routes']:,}",
                VARIANTS[row["variant"]],
                _ms(row["startup"]),
                _ms(row["first request"]),
                _ms(row["second request"]),
            )
    return table


def _memory(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Memory beyond FastAPI's: bytes per route",
        caption="Kept: while the application serves. Peak: of resident memory, in whole MB.",
    )
    for column in ("", "kept\n(1,000 routes)", "peak\n(10,000 routes)"):
        table.add_column(column, justify="left" if not column else "right")
    for variant in ("without", "with"):
        traced = _row(rows, variant, 1_000, "memory")
        timed = _row(rows, variant, 10_000, "parts")
        kept = f"{traced['kept']:,.0f}" if traced else "-"
        peak = f"{timed['resident']:,.0f}" if timed else "-"
        table.add_row(VARIANTS[variant], kept, peak)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_visit(sys.argv[1], int(sys.argv[2]), sys.argv[3]))), flush=True)
    os._exit(0)  # taking ten thousand routes apart takes seconds
