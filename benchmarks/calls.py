"""What a call outside of requests costs, against the same by hand, and by other libraries.

Three kinds: with a lifespan value and an asynchronous generator of the call's own; with the
lifespan value alone; and both synchronous, in a worker thread, with the container in the event
loop. Each is verified before: all calls get the one engine, and each leaves its session before it
returns. Whether it also does when it is cancelled, is told.
"""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from anyio.to_thread import run_sync
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .competitors import callers, present
from .competitors.calling import Call, Caller, Calls, Start
from .instructions import counter as instruction_counter
from .measure import Counter, Subject
from .measure import measure as measure_subjects
from .requests import WrongAnswer

ROUNDS = 65
SEED = 4


def steps(effort: float) -> int:
    return rounds(effort)


def rounds(effort: float) -> int:
    return max(2, round(ROUNDS * effort))


def measure(advance: Callable[[str], None], effort: float) -> dict[str, Any]:
    """Ratios, quartiles and microseconds of each way to call."""
    counter, refused = instruction_counter()
    found, rows = present(callers())
    rows |= asyncio.run(_measure(found, rounds(effort), counter, lambda: advance("calls")))
    return {"no_instructions": refused, "callers": rows}


async def _measure(
    found: list[Caller], rounds: int, counter: Counter | None, advance: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    subjects: dict[str, tuple[Subject, Calls]] = {}
    baselines: dict[Start, Subject] = {}
    results: dict[str, dict[str, Any]] = {}
    shielded: dict[str, bool | None] = {}
    async with AsyncExitStack() as stack:
        for caller in found:
            try:
                shielded[caller.name] = await _is_shielded(caller)
                baseline = baselines.get(caller.baseline)
                if baseline is None:
                    baseline, _ = await _started(caller, caller.baseline, None, stack)
                    baselines[caller.baseline] = baseline
                subjects[caller.name] = await _started(caller, caller.start, baseline, stack)
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else ""
                results[caller.name] = {"problem": f"{type(error).__name__}: {text}"}
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        try:
            measured = [subject for subject, _ in subjects.values()]
            await measure_subjects(measured, rounds, random.Random(SEED), counter, advance)
        finally:
            gc.unfreeze()
    for name, (subject, calls) in subjects.items():
        problem = calls.not_left()
        results[name] = {"problem": problem} if problem else subject.result(counter)
        results[name]["is_shielded"] = shielded[name]
    return results


async def _is_shielded(caller: Caller) -> bool | None:
    """Whether a cancelled call leaves its session; None where none is left by an await."""
    calls = Calls()
    async with caller.start(calls) as call:
        if caller.in_thread:
            return None
        await call(0)
        if not calls.engines[0].opened:
            return None
        return await calls.is_shielded(call)


async def _started(
    caller: Caller, start: Start, baseline: Subject | None, stack: AsyncExitStack
) -> tuple[Subject, Calls]:
    """Start a way to call, and verify it."""
    calls = Calls()
    call = await stack.enter_async_context(start(calls))
    serve = _serving_in_thread(call) if caller.in_thread else _serving(call)
    problem = await calls.verify(lambda message: serve(1))
    if problem is not None:
        raise WrongAnswer(problem)
    subject = Subject(serve, baseline, caller.visits_per_round)
    await subject.prepare()
    return subject, calls


def _serving(call: Call) -> Callable[[int], Awaitable[None]]:
    async def serve(count: int) -> None:
        for message in range(count):
            await call(message)

    return serve


def _serving_in_thread(call: Call) -> Callable[[int], Awaitable[None]]:
    def serve(count: int) -> None:
        for message in range(count):
            call(message)

    async def serve_in_thread(count: int) -> None:
        await run_sync(serve, count)

    return serve_in_thread


# Tables


def tables(result: dict[str, Any]) -> list[Table]:
    notes = ["By hand: with a clean-up that is shielded from cancellation, where there is one."]
    table = Table(
        title="CPU time of a call outside of requests ÷ of the same by hand",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("")
    for heading in ("÷ by hand", "µs", "by hand, µs", "shielded"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in result["callers"].items():
        if "problem" in row:
            notes.append("[red]" + escape(f"{name}: {row['problem']}") + "[/red]")
            table.add_row(escape(name), *"----")
        else:
            figures = row["ratio"], row["us"], row["baseline_us"]
            shielded = {True: "yes", False: "no", None: ""}[row["is_shielded"]]
            table.add_row(escape(name), *(f"{figure:.2f}" for figure in figures), shielded)
    table.caption = "\n".join(notes)
    return [table]
