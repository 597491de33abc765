"""Swap the model of the example again and again while clients use it."""

import asyncio
import itertools
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

from . import texts
from .client import Server, WrongAnswer, p50_and_p99, request

CLIENTS = 32
LAYERS = 3  # of six
SAMPLE_SECONDS = 0.1
MAX_SECONDS = 600
TOKEN = "of-the-benchmark"

Memory = dict[str, int]

STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "collapse_padding": True, "title_justify": "left"}


def save_other_model(bundled: Path, directory: Path) -> None:
    """Save the first half of the layers: a model that works, and is another one."""
    model = AutoModel.from_pretrained(bundled, local_files_only=True, num_hidden_layers=LAYERS)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(bundled, local_files_only=True).save_pretrained(directory)


class Found:
    """By the clients, by whoever swaps, and by who looks at the memory."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()  # of each version
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.swaps: list[float] = []
        self.memory: list[Memory] = []  # every now and then
        self.memory_after_swap: list[Memory] = []
        self.answered = asyncio.Event()
        self.is_over = False

    @property
    def requests(self) -> int:
        return len(self.latencies) + len(self.failures)


async def measure(server: Server, directory: Path, count: int, at_least: int) -> dict[str, Any]:
    """Swap to the model in the directory and back, evenly over so many requests or more."""
    await server.burst(texts.requests("short", 10 * CLIENTS), CLIENTS)
    before = await server.memory()
    found = Found()
    async with asyncio.timeout(MAX_SECONDS), asyncio.TaskGroup() as tasks:
        for start in range(CLIENTS):
            tasks.create_task(_send(server, found, start))
        watching = tasks.create_task(_watch(server, found))
        await _swap(server, found, directory, count, at_least)
        found.is_over = True
        watching.cancel()
    p50, p99 = p50_and_p99(found.latencies)
    return {
        "clients": CLIENTS,
        "requests": found.requests,
        "failed": len(found.failures),
        "failures": found.failures[:5],
        "answers": dict(found.answers),
        "p50": p50,
        "p99": p99,
        "longest": max(found.latencies),
        "swap_seconds": found.swaps,
        "memory": {
            "before": before,
            "most during": {name: max(one[name] for one in found.memory) for name in before},
            "after": await server.memory(),
        },
        "memory_after_swap": found.memory_after_swap,
    }


async def _send(server: Server, found: Found, start: int) -> None:
    requests = itertools.islice(itertools.cycle(texts.requests("short", 1_000)), start, None)
    while not found.is_over:
        try:
            async with server.connected() as connection:
                while not found.is_over:
                    answer = await connection.send(next(requests))
                    body = answer.json()
                    found.answers[f"{body['model']} {body['version']}"] += 1
                    found.latencies.append(answer.seconds)
                    found.answered.set()
        except (WrongAnswer, OSError, asyncio.IncompleteReadError) as error:
            found.failures.append(repr(error))
        found.answered.set()


async def _swap(server: Server, found: Found, directory: Path, count: int, at_least: int) -> None:
    for index in range(count + 1):
        while found.requests < at_least * (index + 1) / (count + 1):
            found.answered.clear()
            await found.answered.wait()
        if index == count:
            break
        body = {"directory": None if index % 2 else str(directory)}
        answer = await server.ask(request("POST", "/admin/model", body, TOKEN))
        answer.json()  # It raises if the model was not swapped.
        found.swaps.append(answer.seconds)
        found.memory_after_swap.append(await server.memory())


async def _watch(server: Server, found: Found) -> None:
    while True:
        found.memory.append(await server.memory())
        await asyncio.sleep(SAMPLE_SECONDS)


def tables(result: dict[str, Any]) -> list[Table]:
    seconds = result["swap_seconds"]
    title = f"{len(seconds)} swaps of the model under load, {result['clients']} clients"
    table = Table(title=title, show_header=False, **STYLE)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests", f"{result['requests']:,}")
    style = "bold red" if result["failed"] else "green"
    table.add_row("failed", f"[{style}]{result['failed']:,}")
    for failure in result["failures"]:
        table.add_row("", escape(failure))
    for version, answers in result["answers"].items():
        table.add_row(f"answered by {version}", f"{answers:,}")
    for name in ("p50", "p99", "longest"):
        table.add_row(f"a request, {name}", f"{result[name] * 1e3:,.0f} ms")
    table.add_row("a swap, median", f"{statistics.median(seconds) * 1e3:,.0f} ms")
    table.add_row("a swap, longest", f"{max(seconds) * 1e3:,.0f} ms")

    memory = Table(
        title="Memory of the server, MB",
        # Seen over 240 swaps.
        caption="The bundled model serves before, and after every second swap. On a CPU, the"
        " allocator keeps some of what was freed: more for some 100 swaps, then no more.",
        caption_justify="left",
        **STYLE,
    )
    memory.add_column()
    again = result["memory_after_swap"][1::2]
    columns = dict(result["memory"])
    if again:
        columns |= {"after\nswap 2": again[0], f"after\nswap {2 * len(again)}": again[-1]}
    for name in columns:
        memory.add_column(name, justify="right")
    for what in result["memory"]["before"]:
        memory.add_row(what, *(f"{column[what] / 1e6:,.1f}" for column in columns.values()))
    return [table, memory]
