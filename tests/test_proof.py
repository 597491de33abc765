"""The prover: what it finds, what it keeps, and that a cell that fails makes the run fail.

That servers hold is shown by `scripts/prove` itself.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("websockets")
pytest.importorskip("fcntl", reason="the servers are sent signals of Unix")

from websockets.exceptions import ConnectionClosedError

from proof import __main__ as command
from proof import claims, matrix, report
from proof.claims import Violation
from proof.faults import FAULTS
from proof.lineup import SERVERS, UVICORN
from proof.load import Load, Seen
from proof.matrix import Cell, Matrix, Result, cells
from proof.record import Record, Recorder
from proof.servers import Limit, Server
from proof.stage import Stage
from proof.tree import PROVEN, ROOT, tree_hash
from tests.services import program

# The record, and what must hold


def recorded(path: Path, *lines: str) -> Record:
    """What happened, in lines such as "enter model engine": the model is entered on the engine."""
    record = Recorder(path / "record")
    for line in lines:
        what, name, *on = line.split()
        if what in ("begin", "end"):
            record(what, id=name, kind="request", how="complete")
        else:
            record(what, name=name, on=on)
    return Record(path / "record")


def found(violations: Iterator[Violation]) -> set[str]:
    return {violation.claim for violation in violations}


UP = ("enter engine", "enter model engine")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([*UP, "leave model", "leave engine"], set()),
        ([*UP, "leave engine", "leave model"], {"in order"}),
        ([*UP, "died engine", "leave engine", "leave model"], set()),
        ([*UP, "leave model"], {"left once"}),
        ([*UP, "leave engine"], {"left once", "in order"}),
        ([*UP, "leave model", "leave model", "leave engine"], {"left once"}),
        ([*UP, "leave model", "leave engine", "leave other"], {"left once"}),
        (["enter model engine", "enter engine", "leave model", "leave engine"], {"in order"}),
    ],
)
def test_every_value_is_left_once_after_what_depends_on_it(
    tmp_path: Path, lines: list[str], expected: set[str]
) -> None:
    assert found(claims.all_left_once_in_order(recorded(tmp_path, *lines))) == expected


def test_values_of_a_killed_process_need_not_be_left_but_not_twice(tmp_path: Path) -> None:
    record = recorded(tmp_path, *UP)
    assert found(claims.all_left_once_in_order(record, killed=[os.getpid()])) == set()
    record = recorded(tmp_path, "leave model", "leave model", "leave engine")
    assert found(claims.all_left_once_in_order(record, killed=[os.getpid()])) == {"left once"}


def test_the_stop_is_the_exact_reverse(tmp_path: Path) -> None:
    record = recorded(tmp_path, "enter engine", "enter other", "leave other", "leave engine")
    assert found(claims.left_in_reverse(record)) == set()
    (tmp_path / "two").mkdir()
    record = recorded(
        tmp_path / "two", "enter engine", "enter other", "leave engine", "leave other"
    )
    assert found(claims.left_in_reverse(record)) == {"in order"}


def test_a_value_after_its_end_and_two_generations_are_noticed(tmp_path: Path) -> None:
    assert found(claims.never_dead(recorded(tmp_path, "dead engine"))) == {"alive"}
    Recorder(tmp_path / "record")("torn", id="1")
    assert found(claims.never_dead(Record(tmp_path / "record"))) == {"alive", "one generation"}


WELL = [Seen("2", "request", "complete"), Seen("3", "stream", "complete")]
CLOSED = Seen("4", "websocket", "closed")


@pytest.mark.parametrize(
    ("lines", "outcome", "expected"),
    [
        (["begin 1", "end 1"], "complete", set()),
        ([], "refused", set()),
        ([], "unanswered", set()),
        (["begin 1", "end 1"], "unanswered", {"no lost request"}),
        (["begin 1", "end 1"], "refused", {"no lost request"}),
        (["begin 1", "end 1"], "closed", {"no lost request"}),
        (["begin 1", "end 1"], "broken", {"no lost request"}),
        ([], "broken", {"no lost request"}),
        ([], "failed", {"no failed request"}),
        (["begin 1"], "complete", {"endpoints end"}),
        (["begin 1", "end 1", "end 1"], "complete", {"endpoints end"}),
        (["begin 9", "end 9"], "complete", {"no lost request"}),
    ],
)
def test_what_was_begun_is_answered_whole(
    tmp_path: Path, lines: list[str], outcome: str, expected: set[str]
) -> None:
    record = recorded(tmp_path, *lines)
    seen = [Seen("1", "request", outcome), *WELL, CLOSED]
    assert found(claims.nothing_lost(record, seen)) == expected


def test_what_a_killed_process_had_begun_may_be_lost(tmp_path: Path) -> None:
    record = recorded(tmp_path, "begin 1")
    seen = [Seen("1", "request", "broken"), *WELL, CLOSED]
    assert found(claims.nothing_lost(record, seen, killed=[os.getpid()])) == set()


def test_what_was_on_its_way_to_a_killed_process_may_fail_but_not_for_a_value(
    tmp_path: Path,
) -> None:
    seen = [Seen("1", "request", "failed"), *WELL, CLOSED]
    record = recorded(tmp_path)
    assert found(claims.nothing_lost(record, seen, killed=[1])) == set()
    Recorder(tmp_path / "record")("no value", path="/", error="UninitializedLifespanDependency")
    assert found(claims.nothing_lost(record, seen, killed=[1])) == {"no failed request"}


def test_a_load_in_which_nothing_of_a_kind_went_well_shows_nothing(tmp_path: Path) -> None:
    assert found(claims.nothing_lost(recorded(tmp_path), WELL)) == {"load"}


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    record = recorded(tmp_path, "enter engine")
    with (tmp_path / "record").open("a") as file:
        file.write('{"pid": 1, "what": ')
        file.flush()
        assert [event.what for event in record.read()] == ["enter"]
        file.write('"leave"}\n')
        file.flush()
        assert [event.what for event in record.read()] == ["enter", "leave"]


# The state of the code


def test_the_hash_is_that_of_git_and_sees_what_is_not_committed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = [program("git"), "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    for name in PROVEN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    committed = git("rev-parse", *(f"HEAD:{name}" for name in PROVEN)).split()
    assert tree_hash(root=tmp_path) == ".".join(one[:12] for one in committed)

    (tmp_path / PROVEN[0] / "b.py").touch()
    package, tests = tree_hash(root=tmp_path).split(".")
    assert package != committed[0][:12]
    assert tests == committed[1][:12]
    assert git("diff", "--cached", "--name-only") == ""  # nothing was staged


# The matrix


class Fault:
    """A fault that starts no server. It finds what it is told to, and knows how often it ran."""

    def __init__(self, *claims: str) -> None:
        self.claims = claims
        self.applications: list[str] = []

    def __call__(self, stage: Stage) -> Iterator[Violation]:
        self.applications.append(stage.application)
        for claim in self.claims:
            yield Violation(claim, "it does not hold")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "states", lambda servers, lie: states("1"))
    return tmp_path


def states(tree: str) -> dict[str, dict[str, Any]]:
    state = {"tree": tree, "proof": "2", "python": "3", "packages": {"uvicorn": "4"}}
    return {server.name: state for server in SERVERS}


def prove(monkeypatch: pytest.MonkeyPatch, *names: str, **faults: Any) -> int:
    known = {name.replace("_", " "): fault for name, fault in faults.items()}
    monkeypatch.setattr(command, "FAULTS", known)
    monkeypatch.setattr(matrix, "FAULTS", known)
    return command.main([*(names or ["uvicorn"])])


def test_what_held_is_kept_and_what_failed_is_run_again(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, fails, mended = Fault(), Fault("left once"), Fault()
    assert prove(monkeypatch, first=holds, second=fails) == 1
    assert prove(monkeypatch, first=holds, second=fails) == 1
    assert [len(holds.applications), len(fails.applications)] == [1, 2]
    assert prove(monkeypatch, first=holds, second=mended) == 0
    assert len(holds.applications) == 1
    whole = json.loads((results / "prove.json").read_text())
    assert whole["tree"] == "1"
    assert not whole["complete"]  # there are other servers
    assert not whole["passed"]
    assert [cell["outcome"] for cell in whole["cells"]] == ["holds", "holds"]


def test_the_table_has_what_was_kept_of_other_cells_and_says_whether_it_is_complete(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prove(monkeypatch, "uvicorn*", first=Fault()) == 0
    assert prove(monkeypatch, "[!u]*", first=Fault()) == 0
    whole = json.loads((results / "prove.json").read_text())
    assert [cell["server"] for cell in whole["cells"]] == [server.name for server in SERVERS]
    assert whole["complete"]
    assert whole["passed"]


def test_in_another_state_of_the_code_all_is_run_again(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = Fault()
    assert prove(monkeypatch, first=holds) == 0
    monkeypatch.setattr(command, "states", lambda servers, lie: states("5"))
    assert prove(monkeypatch, first=holds) == 0
    assert len(holds.applications) == 2


def test_a_run_during_which_the_code_changes_proves_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = iter("12")
    monkeypatch.setattr(command, "states", lambda servers, lie: states(next(trees)))
    assert prove(monkeypatch, first=Fault()) == 1
    assert "The code has changed meanwhile" in capsys.readouterr().out


def test_a_fault_that_goes_wrong_itself_fails(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(stage: Stage) -> Iterator[Violation]:
        raise ZeroDivisionError
        yield

    assert prove(monkeypatch, first=fault) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_an_unknown_name_is_an_error(results: Path) -> None:
    with pytest.raises(SystemExit, match="no server is named 'unicorn'; there are uvicorn, "):
        command.main(["unicorn"])
    with pytest.raises(SystemExit, match="no fault is named 'stop'; there are start-fails, "):
        command.main(["--faults", "stop"])


LIMIT = Limit(frozenset({"log"}), "It says nothing.")


def run_limited(
    monkeypatch: pytest.MonkeyPatch, limit: Limit, here: list[str], without: list[str]
) -> Result:
    def fault(stage: Stage) -> Iterator[Violation]:
        yield from Fault(*(without if stage.application == "proof.bare" else here))(stage)

    monkeypatch.setattr(matrix, "FAULTS", {"first": fault})
    server = Server("mine", "uvicorn", "", limits={"first": limit})
    return matrix.run(Cell(server, "first"), {})


@pytest.mark.parametrize(
    ("always", "here", "without", "expected"),
    [
        (True, ["log"], ["log"], "limited"),
        (True, ["log"], [], "fails"),  # so it isn't the server
        (True, [], ["log"], "fails"),  # the server can do it now
        (True, ["log", "left once"], ["log"], "fails"),
        (True, ["left once"], ["left once"], "fails"),
        (False, ["log"], ["log"], "limited"),
        (False, [], [], "limited"),
        (False, ["log"], [], "fails"),
        (False, ["left once"], ["log"], "fails"),
    ],
)
def test_what_a_server_cannot_do_is_exactly_what_it_cannot_do_without_the_package(
    monkeypatch: pytest.MonkeyPatch,
    always: bool,
    here: list[str],
    without: list[str],
    expected: str,
) -> None:
    limit = Limit(LIMIT.claims, LIMIT.reason, always)
    assert run_limited(monkeypatch, limit, here, without).outcome == expected


def test_the_application_knows_each_lie() -> None:
    text = (ROOT / "proof/application.py").read_text()
    assert all(f'LIE == "{lie}"' in text or f'LIE != "{lie}"' in text for lie in command.LIES)


def test_the_table() -> None:
    state = states("1")["uvicorn"]
    violations = [{"claim": "left once", "text": "engine 1 of 7 was left 2 times"}]
    some = [
        Result("uvicorn", "stop fails", "holds", state, 2),
        Result("hypercorn", "stop fails", "limited", state, 3, reason="It says nothing."),
        Result("uvicorn", "reload", "fails", state, 4, violations=violations),
    ]
    assert report.markdown(some) == (
        "|  | uvicorn | hypercorn |\n"
        "| --- | --- | --- |\n"
        "| stop fails | holds | can't (1) |\n"
        "| reload | **FAILS** |  |\n"
        "\n"
        "1. It says nothing.\n"
        "\n"
        "uvicorn, reload:\n"
        "- left once: engine 1 of 7 was left 2 times\n"
        "\n"
        "3 cells: 1 hold, 1 can't, 1 fail, 9 s in all.\n"
        "\n"
        "Tree 1; Python 3, uvicorn 4.\n"
    )
    assert not report.passed(some)
    assert report.passed(some[:2])
    assert not report.passed([])


@pytest.mark.parametrize(("received", "outcome"), [([], "unanswered"), (["1"], "broken")])
def test_a_websocket_that_ends_without_a_close_frame(
    monkeypatch: pytest.MonkeyPatch, received: list[str], outcome: str
) -> None:
    """In its handshake, nothing has been begun."""

    class Reset:
        def __enter__(self) -> Self:
            if not received:
                raise ConnectionClosedError(None, None)
            return self

        def __exit__(self, *_: object) -> None: ...

        def send(self, message: str) -> None: ...

        def recv(self, timeout: float) -> str:
            if not received:
                raise ConnectionClosedError(None, None)
            return received.pop(0)

    monkeypatch.setattr("proof.load.connect", lambda *_, **__: Reset())
    load = Load(0)
    load.hold(1)
    load.stop()
    [seen] = [one for one in load.seen if one.kind == "websocket"]
    assert seen.outcome == outcome


@pytest.mark.server
@pytest.mark.parametrize(("lie", "outcome"), [("", "holds"), ("leaves twice", "fails")])
def test_a_cell(tmp_path: Path, lie: str, outcome: str) -> None:
    """A real one, with an application that keeps its promises, and with one that doesn't."""
    pytest.importorskip("uvicorn")
    state = states("1")
    [result] = Matrix([Cell(UVICORN, "start fails")], tmp_path, state, lie).run(lambda *_: None)
    assert result.outcome == outcome, result
    assert result.facts["exit code"] == 3
    assert {one["claim"] for one in result.violations} <= {"left once", "in order"}


def test_scripts_tell_in_which_state_of_the_code_they_ran() -> None:
    for name in ("bench", "bench-serving", "compat", "ecosystem", "fastapi-suite", "soak", "test"):
        text = (ROOT / "scripts" / name).read_text()
        assert f'\nkeep_result {name} "$@"\n' in text
        assert "\nexec " not in text


@pytest.mark.parametrize("exit_code", [0, 3])
def test_what_comes_of_a_script_is_kept(exit_code: int, tmp_path: Path) -> None:
    for name in ("scripts/common", "proof/tree.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text((ROOT / name).read_text())
    for folder in PROVEN:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "code.py").touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    script = tmp_path / "scripts" / "long"
    script.write_text(f'source scripts/common\nkeep_result long "$@"\nexit {exit_code}\n')
    ended = subprocess.run(["bash", script, "some", "arguments"], cwd=tmp_path)
    assert ended.returncode == exit_code
    result = json.loads((tmp_path / ".results/long.json").read_text())
    assert result["tree"] == tree_hash(root=tmp_path)
    assert (result["exit_code"], result["passed"]) == (exit_code, exit_code == 0)
    assert result["arguments"] == ["some", "arguments"]
    assert result["seconds"] >= 0


def test_the_page_shows_the_whole_table() -> None:
    """docs/how-it-is-tested.md has it from there: see scripts/prove."""
    shown = (ROOT / "docs_src" / "proof.md").read_text()
    head, _, *rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert head == f"|  | {' | '.join(server.name for server in SERVERS)} |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {fault}" for fault in FAULTS]
    assert f"\n{len(cells(SERVERS, FAULTS))} cells: " in shown
    assert " 0 fail, " in shown
