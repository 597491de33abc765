"""The soak: what it calls flat, what it takes for foreseen, and that what leaks fails.

That nothing grows in a long time is shown by `scripts/soak` itself.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("psutil")
pytest.importorskip("websockets")
pytest.importorskip("hypercorn")
pytest.importorskip("fcntl", reason="the servers inherit sockets, as on Unix")

import psutil

from proof.record import Event
from proof.soak import flat
from proof.soak.__main__ import LIES, leaves
from proof.soak.clients import Plan
from proof.soak.foreseen import unforeseen
from proof.tree import ROOT
from proof.waiting import wait_until

# What is flat


def points(**series: list[float]) -> list[flat.Point]:
    """Calm points, ten seconds apart."""
    length = len(next(iter(series.values())))
    return [
        {"time": 10.0 * at, **{name: values[at] for name, values in series.items()}}
        for at in range(length)
    ]


def noisy(growth: float, seed: int = 1, number: int = 60) -> list[float]:
    """Around 80,000, scattered by hundreds."""
    random = Random(seed)
    return [80_000 + growth * at / number + random.uniform(-300, 300) for at in range(number)]


@pytest.mark.parametrize(
    ("values", "is_flat"),
    [
        ([7] * 20, True),
        ([7, 9, *[7] * 18], True),  # in the first tenth
        ([*[7] * 19, 8], False),  # at the very end
        ([*[7] * 10, 8, *[7] * 9], False),  # and it goes again: who knows when
        ([7, 7, 9, *[7] * 17], True),  # as many as in the second tenth
    ],
)
def test_what_is_counted_may_not_be_more_than_in_the_second_tenth(
    values: list[float], is_flat: bool
) -> None:
    assert flat.exact("threads", points(threads=values)).is_flat is is_flat


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_told_from_what_scatters(seed: int) -> None:
    assert flat.trend("objects", points(objects=noisy(0, seed)), 0.01).is_flat
    assert not flat.trend("objects", points(objects=noisy(2_000, seed)), 0.01).is_flat


def test_what_fills_up_and_stays_or_falls_again_is_flat() -> None:
    early = [*range(70_000, 80_000, 1_000), *[80_000.0] * 90]
    assert flat.trend("objects", points(objects=early), 0.01).is_flat
    sawtooth = [80_000.0 + 500 * (at % 7) for at in range(60)]
    assert flat.trend("objects", points(objects=sawtooth), 0.01).is_flat
    one_step = [80_000.0] * 55 + [90_000.0] * 5
    assert flat.trend("objects", points(objects=one_step), 0.01).is_flat


def test_growth_below_the_tolerance_is_flat_however_sure() -> None:
    judgement = flat.trend("objects", points(objects=[80_000.0 + at for at in range(60)]), 0.01)
    assert judgement.is_flat
    assert 40 < judgement.growth < 60


def test_few_points_tell_nothing() -> None:
    with pytest.raises(ValueError, match="9 calm points tell nothing: at least 10"):
        flat.judged(points(tasks=[1] * 9))


# What is foreseen


def logged(text: str, error: str = "None") -> bool:
    """Whether that is foreseen."""
    event = Event(1, "log", {"level": "ERROR", "text": text, "error": error})
    return not unforeseen([event])


def test_the_log_may_say_what_is_planned_and_nothing_else() -> None:
    died = "`get_feed` ended by itself while serving"
    assert logged(died, "ExceptionGroup('unhandled', [Planned('the feed is broken')])")
    assert not logged(died, "RuntimeError('something else')")
    assert not logged("`get_model` ended by itself while serving", "Planned('no')")
    assert not logged("Task was destroyed but it is pending!")
    ending = "Traceback:\n  | ExceptionGroup: unhandled\n    | a.Planned: the feed is broken\n"
    assert logged(ending)
    assert not logged(f"{ending}    | ValueError: and this\n")


def test_what_fails_is_planned_while_that_goes_on_and_for_what_began_meanwhile() -> None:
    plan = Plan()
    assert not plan.covers("/scarce", since=0)
    with plan.failing("/scarce"):
        assert plan.covers("/scarce", since=float("inf"))
        assert not plan.covers("/gauge", since=0)
    assert plan.covers("/scarce", since=0)
    assert not plan.covers("/scarce", since=float("inf"))


def test_what_went_wrong_is_found_in_groups() -> None:
    one, two = ValueError(1), KeyError(2)
    assert leaves(ExceptionGroup("all", [one, ExceptionGroup("some", [two])])) == [one, two]


# What is measured


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOAK_DIRECTORY", str(tmp_path))


@pytest.mark.anyio
async def test_a_thread_counts_unless_its_pool_has_nothing_for_it_to_do(places: None) -> None:
    import anyio
    import anyio.to_thread

    from proof.soak.measure import busy_threads

    before = busy_threads()
    await anyio.to_thread.run_sync(int)
    wait_until("an idle thread", lambda: busy_threads() == before)
    goes_on, ends = threading.Event(), threading.Event()

    def work() -> None:
        goes_on.set()
        ends.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, work)
        await anyio.to_thread.run_sync(goes_on.wait)
        wait_until("a busy thread", lambda: busy_threads() == before + 1)
        ends.set()


def test_the_lies_are_those_of_the_application(places: None) -> None:
    from proof.soak import values

    assert LIES == values.LIES


# A soak


def soak(results: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """A short one: its exit code, its figures, and what it says."""
    command = [sys.executable, "-m", "proof.soak", "--results", str(results), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    [path] = results.glob("*-figures.json")
    return run.returncode, json.loads(path.read_text()), run.stdout + run.stderr


@pytest.fixture
def servers(is_thorough: bool) -> list[str]:
    return ["uvicorn", "hypercorn"] if is_thorough else ["uvicorn"]


@pytest.mark.server
@pytest.mark.slow
def test_a_short_soak_holds(tmp_path: Path, servers: list[str], is_thorough: bool) -> None:
    rounds = ["--rounds", "40"] if is_thorough else ["--rounds", "10", "--actions", "2"]
    code, figures, output = soak(tmp_path, *rounds, "--seed", "1", *servers)
    assert code == 0, output
    assert figures["problems"] == []
    for name in servers:
        server = figures["servers"][name]
        assert {kind.split()[0] for kind in server["seen"]} == {"request", "stream", "websocket"}
        assert sum(server["done"].values()) >= 30
        assert server["samples"]
    if "No plot" not in output:
        assert "file descriptors" in (tmp_path / "soak.svg").read_text()


GROWS = {
    "keeps threads": "threads grew",
    "keeps values": "values grew",
    "keeps descriptors": "descriptors grew",
    "keeps objects": "objects grew",
    "keeps memory": "memory grew",
    "leaves twice": "was left 2 times",
    "dead values": "was used after its end",
    "loses answers": "no failed request",
}


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_an_application_that_leaks_fails(tmp_path: Path, lie: str, is_thorough: bool) -> None:
    if not is_thorough and lie != "leaves twice":
        pytest.skip("takes its time")
    code, figures, output = soak(
        tmp_path, "--rounds", "10", "--actions", "2", "--seed", "1", "--lie", lie, "uvicorn"
    )
    assert code == 1
    assert any(GROWS[lie] in problem for problem in figures["problems"]), output


@pytest.mark.server
def test_an_interruption_leaves_no_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proof.soak", "--results", str(tmp_path), "uvicorn"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("round 1" in line for line in lines)
        [server] = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGINT)
        assert "interrupted" in process.stdout.read()
    assert process.returncode == 130
    assert not server.is_running()
