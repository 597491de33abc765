"""Change, break and restart servers under load, and see that nothing is lost, and nothing grows.

For example:
    scripts/soak --minutes 5
    scripts/soak --rounds 12 --seed 7          a short one, told by its rounds
    scripts/soak --lie 'keeps threads' uvicorn     an application that leaks: it must fail

Two servers, uvicorn on asyncio and hypercorn on trio, serve at the same time.
"""

import argparse
import secrets
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import anyio

from proof.claims import Violation
from proof.tree import RESULTS, tree_hash

from . import report
from .driver import Driver
from .flat import LEAST
from .sampling import sample

SERVERS = ("uvicorn", "hypercorn")
LIES = (
    *("keeps values", "keeps threads", "keeps descriptors", "keeps objects", "keeps memory"),
    *("leaves twice", "dead values", "loses answers"),
)


async def soak(
    driver: Driver, minutes: float, rounds: int | None, ended: dict[str, anyio.Event]
) -> None:
    """To the end; what goes wrong with the server's process, or in here, is a violation, too."""
    try:
        async with driver.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(sample, driver)
            end = monotonic() + 60 * minutes
            while len(driver.points) < rounds if rounds else monotonic() < end:
                await driver.round()
                print(report.line(driver), flush=True)
            ended[driver.name].set()
            # what both processes have in common would count for the one that is left
            for one in ended.values():
                await one.wait()
            tasks.cancel_scope.cancel()
    except Exception as error:
        traceback.print_exc()
        driver.tell([Violation("goes on", repr(one)) for one in leaves(error)])
    finally:
        ended[driver.name].set()


def leaves(error: BaseException) -> list[BaseException]:
    """What is in a group, and in groups in it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


async def soak_all(drivers: Sequence[Driver], minutes: float, rounds: int | None) -> None:
    ended = {driver.name: anyio.Event() for driver in drivers}
    async with anyio.create_task_group() as tasks:
        for driver in drivers:
            tasks.start_soon(soak, driver, minutes, rounds, ended)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=", ".join(SERVERS))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rounds", type=int, help=f"so many, not minutes; at least {LEAST}")
    parser.add_argument("--actions", type=int, default=12, help="in a round")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of all that is random")
    parser.add_argument("--lie", choices=LIES, default="", help="see it fail")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of its results")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}")
    tree = tree_hash()
    directory = options.results / "soak"
    shutil.rmtree(directory, ignore_errors=True)
    drivers = [
        Driver(name, options.seed, directory / name, options.lie, options.actions)
        for name in options.servers or SERVERS
    ]
    try:
        anyio.run(soak_all, drivers, options.minutes, options.rounds)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return report.tell(drivers, options, tree)


if __name__ == "__main__":
    sys.exit(main())
