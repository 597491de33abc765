"""The matrix: each cell is run, and what came of it is kept: a run resumes where it stopped."""

import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .claims import Violation
from .faults import FAULTS, Fault
from .servers import Limit, Server
from .stage import Stage
from .state import State
from .tree import now
from .waiting import PATIENCE, NeverCame

LIMITED_PATIENCE = 15.0  # seconds for what is not expected to come
TRIES = 10  # for a race to show


@dataclass(frozen=True)
class Cell:
    server: Server
    fault: str

    @property
    def slug(self) -> str:
        return f"{self.server.name}.{self.fault.replace(' ', '-')}"


@dataclass
class Result:
    """What came of a cell: it holds, it fails, or it is limited: the server can't, and why."""

    server: str
    fault: str
    outcome: str
    state: State
    seconds: float = 0
    date: str = ""
    reason: str = ""
    violations: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def run(cell: Cell, state: State, *, lie: str = "", failed: Path | None = None) -> Result:
    """Run a cell; where it fails, its record and its output are put into `failed`."""
    began = time.monotonic()
    limit = cell.server.limits.get(cell.fault)
    violations, facts = run_once(cell, lie, "proof.application", failed)
    outcome = "fails" if violations else "holds"
    if limit is not None:
        claims = {violation.claim for violation in violations}
        outcome = "limited" if limit.explains(claims) else "fails"
        if not claims and limit.always:
            violations = [Violation("limit", "all holds: the server can do it, unlike before")]
        elif claims and outcome == "limited":
            facts["without"] = without = shown_without(cell, limit)
            if not without:
                outcome = "fails"
                violations.append(Violation("limit", "without FastAPI and the package all holds"))
    return Result(
        server=cell.server.name,
        fault=cell.fault,
        outcome=outcome,
        state=state,
        seconds=round(time.monotonic() - began, 1),
        date=now(),
        reason=limit.reason if limit is not None else "",
        violations=[asdict(violation) for violation in violations],
        facts=facts,
    )


def run_once(
    cell: Cell, lie: str, application: str, failed: Path | None
) -> tuple[list[Violation], dict[str, Any]]:
    server = cell.server.for_fault(cell.fault)
    limit = server.limits.get(cell.fault)
    patience = LIMITED_PATIENCE if limit is not None and "comes" in limit.claims else PATIENCE
    with tempfile.TemporaryDirectory(prefix="prove-", ignore_cleanup_errors=True) as directory:
        stage = Stage(server, Path(directory), application, lie, patience)
        violations = list(found(FAULTS[cell.fault], stage))
        if violations and failed is not None:
            keep(stage, failed / cell.slug)
        return violations, stage.facts


def shown_without(cell: Cell, limit: Limit) -> list[str]:
    """What does not hold without FastAPI and the package either; a race gets several tries."""
    for _ in range(1 if limit.always else TRIES):
        violations, _ = run_once(cell, "", "proof.bare", None)
        claims = {violation.claim for violation in violations}
        if claims and limit.explains(claims):
            return [f"{violation.claim}: {violation.text}" for violation in violations]
    return []


def found(fault: Fault, stage: Stage) -> Iterator[Violation]:
    """All that doesn't hold; what goes wrong on the way counts."""
    try:
        yield from fault(stage)
    except NeverCame as error:
        yield Violation("comes", str(error))
    except Exception:
        yield Violation("runs", traceback.format_exc())
    finally:
        stage.kill()


def keep(stage: Stage, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("record", "output"):
        if (stage.directory / name).exists():
            shutil.copy(stage.directory / name, folder / name)


@dataclass
class Matrix:
    """Cells, and a folder in which there is a file for each that was run."""

    cells: list[Cell]
    folder: Path
    states: dict[str, State]
    lie: str = ""
    jobs: int = 2

    def kept(self, cell: Cell) -> Result | None:
        """What came of it before, in this state of the code, unless it failed."""
        try:
            result = Result(**json.loads(self._file(cell).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return (
            result
            if result.state == self.states[cell.server.name] and result.outcome != "fails"
            else None
        )

    def run(self, tell: Callable[[Result, bool], None]) -> list[Result]:
        """Run what isn't kept, a few at a time; the results in the order of the cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results: dict[str, Result] = {}
        for cell in self.cells:
            if (kept := self.kept(cell)) is not None:
                results[cell.slug] = kept
                tell(kept, True)
        with ThreadPoolExecutor(self.jobs) as threads, ThreadPoolExecutor(1) as thread:
            running = {
                (thread if cell.server.one_at_a_time else threads).submit(
                    self._run, cell
                ): cell.slug
                for cell in self.cells
                if cell.slug not in results
            }
            try:
                for done in as_completed(running):
                    results[running[done]] = done.result()
                    tell(done.result(), False)
            except KeyboardInterrupt:
                threads.shutdown(wait=False, cancel_futures=True)
                thread.shutdown(wait=False, cancel_futures=True)
                raise
        return [results[cell.slug] for cell in self.cells]

    def with_kept(self, results: Sequence[Result], cells: Iterable[Cell]) -> list[Result]:
        """The results, and what is kept of other cells, in the order of these cells."""
        known = {(result.server, result.fault): result for result in results}
        found = (known.get((cell.server.name, cell.fault)) or self.kept(cell) for cell in cells)
        return [result for result in found if result is not None]

    def _run(self, cell: Cell) -> Result:
        state = self.states[cell.server.name]
        result = run(cell, state, lie=self.lie, failed=self.folder / "failed")
        file = self._file(cell)
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(asdict(result), indent=2) + "\n")
        whole.replace(file)  # so that a file is whole, or isn't there
        return result

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.slug}.json"


def cells(servers: Iterable[Server], faults: Iterable[str]) -> list[Cell]:
    return [Cell(server, fault) for fault in faults for server in servers]
