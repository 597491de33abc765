"""What a request costs: every contestant, with 0, 1, 5 and 20 services, against its baseline.

Applications are called as a server calls them, without the server: `await app(scope, receive,
send)`, all in one event loop, with their lifespans entered and a copy of the lifespan's state in
each scope. None has an OpenAPI document: its routes would have to be looked through.
"""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .competitors import contestants, present
from .competitors.case import COUNTS, Case, Contestant
from .instructions import counter as instruction_counter
from .measure import Counter, Subject
from .measure import measure as measure_subjects

ROUNDS = 65
SEED = 4


def steps(effort: float) -> int:
    return len(COUNTS) * rounds(effort)


def rounds(effort: float) -> int:
    return max(2, round(ROUNDS * effort))


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """Ratios, quartiles, microseconds and instructions of each contestant at each number."""
    counter, refused = instruction_counter()
    found, rows = present(contestants())
    for count in COUNTS:
        taking = [contestant for contestant in found if count in contestant.counts]
        results = asyncio.run(_measure(taking, count, rounds(effort), counter, advance))
        for name, result in results.items():
            rows[name] |= result if "problem" in result else {str(count): result}
    for row in rows.values():
        if {"ratio"} <= row.get("1", {}).keys() & row.get("20", {}).keys():
            row["us_per_further"] = (row["20"]["added_us"] - row["1"]["added_us"]) / 19
    return {"counts": list(COUNTS), "no_instructions": refused, "contestants": rows}


async def _measure(
    found: list[Contestant],
    count: int,
    rounds: int,
    counter: Counter | None,
    advance: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    subjects: dict[str, Subject] = {}
    baselines: dict[Any, Subject] = {}
    results: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        for contestant in found:
            try:
                baseline = baselines.get(contestant.baseline)
                if baseline is None:
                    serve = await _started(contestant, contestant.baseline, count, stack)
                    baseline = baselines[contestant.baseline] = Subject(serve)
                    await baseline.prepare()
                serve = await _started(contestant, contestant.build, count, stack)
                subject = Subject(serve, baseline, contestant.visits_per_round)
                await subject.prepare()
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else ""
                results[contestant.name] = {"problem": f"{type(error).__name__}: {text}"}
            else:
                subjects[contestant.name] = subject
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        try:
            await measure_subjects(
                list(subjects.values()),
                rounds,
                random.Random(SEED + count),
                counter,
                lambda: advance(f"requests, N = {count}"),
            )
        finally:
            gc.unfreeze()
    return results | {name: subject.result(counter) for name, subject in subjects.items()}


async def _started(
    contestant: Contestant, build: Callable[[Case], Any], count: int, stack: AsyncExitStack
) -> Callable[[int], Awaitable[None]]:
    """Start an application and verify it. Give what serves a number of requests."""
    case = Case(count)
    app = build(case)
    state = await stack.enter_async_context(contestant.lifespan(app)) or {}
    send_one = connect if contestant.is_websocket else get
    expected = str(count)

    async def serve(requests: int) -> None:
        answer = None
        for _ in range(requests):
            answer = await send_one(app, state)
        if answer != expected:
            raise WrongAnswer(f"{answer!r} instead of {expected!r}")

    problem = await case.verify(lambda: serve(1))
    if problem is not None:
        raise WrongAnswer(problem)
    return serve


class WrongAnswer(Exception):
    """A contestant doesn't do what is measured."""


CONNECTION = {
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
}
HTTP = {"type": "http", "scheme": "http", "method": "GET", **CONNECTION}
WEBSOCKET = {"type": "websocket", "scheme": "ws", "subprotocols": [], **CONNECTION}


async def get(app: Any, state: Mapping[str, Any]) -> str:
    """Send a request; give the body of the response."""
    body = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    await app({**HTTP, "state": dict(state)}, receive, send)
    return body.decode()


async def connect(app: Any, state: Mapping[str, Any]) -> str:
    """Open a WebSocket; give the text that it is sent before it is closed."""
    text = ""

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        nonlocal text
        text += message.get("text", "")

    await app({**WEBSOCKET, "state": dict(state)}, receive, send)
    return text


def tables(result: dict[str, Any]) -> list[Table]:
    counts = [str(count) for count in result["counts"]]
    notes = ["litestar ÷ litestar. Overrides ÷ FastAPI's Depends with the same overrides."]
    if result["no_instructions"]:
        notes.append(f"No instruction counts: {result['no_instructions']}.")
    table = Table(
        title="CPU time of a request with N services ÷ of the same that reads globals",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("")
    for count in counts:
        table.add_column(f"N = {count}", justify="right", no_wrap=True)
    table.add_column("µs per\nfurther", justify="right", no_wrap=True)
    for name, row in result["contestants"].items():
        if "problem" in row:
            notes.append("[red]" + escape(f"{name}: {row['problem']}") + "[/red]")
        ratios = [_shown(row.get(count, {}), "ratio") for count in counts]
        table.add_row(escape(name), *ratios, _shown(row, "us_per_further"))
    table.caption = "\n".join(notes)
    return [table, *_instructions(result, counts)]


def _instructions(result: dict[str, Any], counts: list[str]) -> Iterator[Table]:
    if result["no_instructions"]:
        return
    table = Table(title="User instructions that N services add to a request", box=SIMPLE_HEAD)
    table.add_column("")
    for count in counts:
        table.add_column(f"N = {count}", justify="right", no_wrap=True)
    for name, row in result["contestants"].items():
        added = [row.get(count, {}).get("added_instructions") for count in counts]
        table.add_row(escape(name), *("-" if one is None else f"{one:,.0f}" for one in added))
    yield table


def _shown(found: dict[str, Any], key: str) -> str:
    if key not in found:
        return "-"
    return f"{found[key]:.{3 if abs(found[key]) < 10 else 1}f}"
