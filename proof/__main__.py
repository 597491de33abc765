"""Run servers against faults, and say for each whether what must hold does.

For example:
    scripts/prove                                  all, in about five minutes
    scripts/prove granian 'uvicorn*'               these servers
    scripts/prove --faults 'start-*' reload        these faults

A cell that has held in this state of the code isn't run again. The table of all that is known
in this state is written to .results/prove.md and .results/prove.json, each cell to .results/prove/.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from . import report
from .faults import FAULTS
from .lineup import SERVERS
from .matrix import Matrix, Result, cells
from .state import states
from .tree import RESULTS

LIES = ("leaves twice", "never leaves", "wrong order", "loses answers", "dead values")


def matching(kind: str, names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match, or all without a pattern; one without a match is an error."""
    names = list(names)
    slugs = {name: name.replace(" ", "-") for name in names}
    for pattern in patterns:
        if not any(fnmatch(slug, pattern) for slug in slugs.values()):
            raise SystemExit(
                f"no {kind} is named {pattern!r}; there are {', '.join(slugs.values())}"
            )
    return [
        name
        for name in names
        if not patterns or any(fnmatch(slugs[name], pattern) for pattern in patterns)
    ]


def tell(result: Result, was_kept: bool) -> None:
    seconds = "kept" if was_kept else f"{result.seconds:.0f} s"
    print(f"{result.outcome:8} {result.server:16} {result.fault:22} {seconds}", flush=True)
    for violation in result.violations if result.outcome == "fails" else ():
        print(f"         {violation['claim']}: {violation['text']}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/prove",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("servers", nargs="*", metavar="SERVER")
    parser.add_argument("--faults", nargs="+", default=[], metavar="FAULT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="cells at a time")
    parser.add_argument("--lie", choices=LIES, default="", help="see cells fail")
    options = parser.parse_args(arguments)
    chosen = matching("server", (server.name for server in SERVERS), options.servers)
    faults = matching("fault", FAULTS, options.faults)

    before = states(SERVERS, options.lie)
    name = f"prove-{options.lie.replace(' ', '-')}" if options.lie else "prove"
    matrix = Matrix(
        cells([server for server in SERVERS if server.name in chosen], faults),
        RESULTS / name,
        before,
        options.lie,
        options.jobs,
    )
    results = matrix.run(tell)
    everything = cells(SERVERS, FAULTS)
    shown = matrix.with_kept(results, everything)
    report.write(shown, RESULTS / name, is_complete=len(shown) == len(everything))
    print(f"\n{report.markdown(shown)}")
    if states(SERVERS, options.lie) != before:
        print("The code has changed meanwhile: this is no proof. Run it again.")
        return 1
    return 0 if report.passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
