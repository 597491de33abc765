"""What came out: a table in Markdown, and all facts as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .matrix import Result
from .state import described

WORDS = {"holds": "holds", "fails": "**FAILS**", "limited": "can't"}


def markdown(results: Sequence[Result]) -> str:
    """A row for each fault, a column for each server; below, what fails and what can't be done."""
    servers = list(dict.fromkeys(result.server for result in results))
    faults = list(dict.fromkeys(result.fault for result in results))
    at = {(result.fault, result.server): result for result in results}
    notes: list[str] = []
    rows = [["", *servers], ["---"] * (len(servers) + 1)]
    for fault in faults:
        row = [fault]
        for server in servers:
            result = at.get((fault, server))
            text = WORDS[result.outcome] if result else ""
            if result is not None and result.outcome == "limited":
                if result.reason not in notes:
                    notes.append(result.reason)
                text += f" ({notes.index(result.reason) + 1})"
            row.append(text)
        rows.append(row)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    for result in results:
        if result.outcome == "fails":
            lines += ["", f"{result.server}, {result.fault}:"]
            lines += [f"- {one['claim']}: {one['text']}" for one in result.violations]
    seconds = sum(result.seconds for result in results)
    lines += ["", f"{summary(results)}, {seconds:.0f} s in all."]
    lines += ["", described(result.state for result in results)]
    return "\n".join(lines) + "\n"


def summary(results: Sequence[Result]) -> str:
    counts = {word: sum(result.outcome == word for result in results) for word in WORDS}
    return (
        f"{len(results)} cells: {counts['holds']} hold, {counts['limited']} can't, "
        f"{counts['fails']} fail"
    )


def passed(results: Sequence[Result]) -> bool:
    return bool(results) and all(result.outcome != "fails" for result in results)


def write(results: Sequence[Result], file: Path, *, is_complete: bool) -> None:
    """FILE.md and FILE.json; complete is what has all cells."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".md").write_text(markdown(results))
    whole = {
        "tree": results[0].state["tree"],
        "passed": passed(results) and is_complete,
        "complete": is_complete,
        "cells": [asdict(result) for result in results],
    }
    file.with_suffix(".json").write_text(json.dumps(whole, indent=2) + "\n")
