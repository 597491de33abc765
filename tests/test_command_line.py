"""The command `fastapi-lifespan-deps`."""

import contextlib
import io
import os
import runpy
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastapi_lifespan_deps import LifespanTimeout
from fastapi_lifespan_deps.command import cli as command_line
from fastapi_lifespan_deps.command.cli import cli
from tests.at_prompt import normalized
from tests.processes import ROOT, ServerProcess

MAIN = """
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio

from fastapi_lifespan_deps import Depends, LifespanContainer


def get_model() -> Iterator[str]:
    print("started", flush=True)
    yield "model"
    print("stopped", flush=True)


def get_fake() -> str:
    return "fake"


ModelDep = Annotated[str, Depends(get_model, scope="lifespan")]
SETS = {"real": [get_model], "fake": {get_model: get_fake}}

container, other = LifespanContainer(), LifespanContainer()


async def numbers() -> AsyncIterator[int]:
    yield 1
    yield 2


queue = numbers()


@container.inject
async def endless(model: ModelDep) -> AsyncIterator[int]:
    yield 1
    await anyio.sleep_forever()


@other.inject
async def of_another(model: ModelDep) -> AsyncIterator[int]:
    yield 1


@container.inject
async def injected(message: int, model: ModelDep) -> None:
    print(f"handled {message} with the {model}", flush=True)


async def plain(message: int, model: ModelDep) -> str:
    if message == 2:
        raise ValueError("two is too much")
    return f"{message} with the {model}"


def get_slow() -> Iterator[None]:
    print("starting", flush=True)
    sys.stdin.readline()
    yield
    print("stopping", flush=True)
    sys.stdin.readline()
    print("stopped", flush=True)


@LifespanContainer().inject
async def started_slowly(
    message: int, slow: Annotated[None, Depends(get_slow, scope="lifespan")]
) -> None: ...


async def slow(message: int) -> None:
    await anyio.sleep_forever()


def acknowledge(message: int, result: str) -> None:
    print(f"acknowledged {result}")


def give_up(message: int, error: Exception) -> None:
    print(f"gave up {message}: {error}")
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a program, and the current one."""
    (tmp_path / "worker_main.py").write_text(MAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("worker_main", None)


@pytest.fixture
def run(main: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(command: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, command.split())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def offer(directory: Path, sets: str = "worker_main:SETS") -> None:
    found = directory / "worker_main-1.0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: worker-main\nVersion: 1.0\n")
    (found / "entry_points.txt").write_text(f"[fastapi_lifespan_deps]\nmain = {sets}\n")


def test_a_handler_brings_its_container(run: Run) -> None:
    assert run("worker worker_main:injected --messages worker_main:queue") == (
        0,
        "started\nhandled 1 with the model\nhandled 2 with the model\nstopped\n"
        "2 taken, 2 done, 0 failed, 0 cancelled: no more messages\n",
    )


def test_a_plain_handler_gets_one(run: Run) -> None:
    code, output = run(
        "worker worker_main:plain --messages worker_main:numbers "
        "--on-done worker_main:acknowledge --on-error worker_main:give_up"
    )
    assert code == 0
    assert output == (
        "started\nacknowledged 1 with the model\ngave up 2: two is too much\nstopped\n"
        "2 taken, 1 done, 1 failed, 0 cancelled: no more messages\n"
    )


@pytest.mark.parametrize("handler", ["plain", "injected"])
def test_a_set_is_added(run: Run, main: Path, handler: str) -> None:
    offer(main)
    code, output = run(
        f"worker worker_main:{handler} --messages worker_main:numbers --dependencies fake "
        "--on-done worker_main:acknowledge --on-error worker_main:give_up"
    )
    assert code == 0
    assert "with the fake" in output
    assert "started" not in output


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_sets_that_are_shown(run: Run, main: Path, name: str) -> None:
    shown = tomllib.loads((ROOT / "docs_src/workers/entry_points.toml").read_text())
    [entry_point] = shown["project"]["entry-points"]["fastapi_lifespan_deps"].values()
    offer(main, entry_point.replace("shop.", "docs_src.workers."))
    workers = "docs_src.workers.classify"
    command = f"worker {workers}:classify --messages {workers}:texts --dependencies {name}"
    assert run(command) == (
        0,
        f"so good: good, by {name}\nso so: bad, by {name}\n"
        "2 taken, 2 done, 0 failed, 0 cancelled: no more messages\n",
    )


@pytest.mark.parametrize("handler", ["plain", "injected"])
def test_an_unknown_set_is_told(run: Run, main: Path, handler: str) -> None:
    offer(main)
    code, output = run(
        f"worker worker_main:{handler} --messages worker_main:numbers --dependencies gpu"
    )
    assert code == 2
    assert output.startswith(
        "LifespanDependencyError: No set is named 'gpu'. Choose from 'fake', 'real'"
    )


def test_an_error_that_nobody_decides_about_is_raised(run: Run) -> None:
    with pytest.raises(ValueError, match="two is too much"):
        run("worker worker_main:plain --messages worker_main:numbers")


def test_an_error_of_a_running_worker_is_raised_whatever_it_is(run: Run) -> None:
    with pytest.raises(LifespanTimeout):
        run("worker worker_main:slow --messages worker_main:numbers --call-timeout 0.001")


def test_a_time_limit(run: Run) -> None:
    code, output = run(
        "worker worker_main:slow --messages worker_main:numbers --call-timeout 0.001 "
        "--on-error worker_main:give_up --concurrency 2 --grace-period 1"
    )
    assert code == 0
    assert "2 taken, 0 done, 2 failed" in output


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("worker_main --messages worker_main:numbers", "HANDLER: 'worker_main': write MODULE:NAME"),
        ("nothing:f --messages worker_main:numbers", "'nothing:f': there is no module 'nothing'"),
        ("worker_main.a:f --messages worker_main:numbers", "no module 'worker_main.a'"),
        (
            "worker_main:f --messages worker_main:numbers",
            "'worker_main:f': 'worker_main' has no 'f'",
        ),
        ("worker_main:plain.x --messages worker_main:numbers", "'worker_main:plain' has no 'x'"),
        ("worker_main:SETS --messages worker_main:numbers", "'worker_main:SETS' is not a function"),
        ("worker_main:plain --messages worker_main:f", "Invalid value for --messages"),
        ("worker_main:injected --messages worker_main:of_another", "by different containers"),
        ("worker_main:slow --messages worker_main:queue --call-timeout 0", "more than 0 seconds"),
    ],
)
def test_what_is_wrong_is_told(run: Run, command: str, text: str) -> None:
    code, output = run(f"worker {command}")
    assert code == 2
    assert text in " ".join(output.replace("│", "").split())


def test_a_module_that_imports_what_is_not_there(run: Run, main: Path) -> None:
    Path("worker_broken.py").write_text("import not_installed")
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed'"):
        run("worker worker_broken:f --messages worker_main:numbers")


@pytest.mark.unix
def test_sigterm_stops_it(main: Path) -> None:
    command = "-m fastapi_lifespan_deps worker worker_main:injected --messages worker_main:endless"
    with ServerProcess(command.split(), PYTHONPATH=f"{ROOT}:{main}") as worker:
        worker.read_until("(handled 1 with the model)")
        worker.process.terminate()
        assert worker.wait() == 0
    assert normalized(worker.output).splitlines() == [
        "started",
        "INFO: Started 1 lifespan dependency in 0.00 s: `get_model` 0.00 s",
        "handled 1 with the model",
        "INFO: SIGTERM: the worker takes no more messages",
        "stopped",
        "INFO: Stopped 1 lifespan dependency in 0.00 s",
        "1 taken, 1 done, 0 failed, 0 cancelled: stopped by SIGTERM",
    ]


@pytest.mark.unix
def test_a_signal_while_it_starts_or_stops_lets_it_stop(main: Path) -> None:
    command = "-m fastapi_lifespan_deps worker worker_main:started_slowly --messages "
    command += "worker_main:numbers"
    reading, writing = os.pipe()
    with (
        os.fdopen(writing, "w") as told,
        ServerProcess(command.split(), stdin=reading, PYTHONPATH=f"{ROOT}:{main}") as worker,
    ):
        os.close(reading)
        for seen in ("(starting)", "(stopping)"):
            worker.read_until(seen)
            worker.process.terminate()
            print(file=told, flush=True)
        assert worker.wait() == 0
    assert normalized(worker.output).splitlines()[-3:] == [
        "stopped",
        "INFO: Stopped 1 lifespan dependency in 0.00 s",
        "0 taken, 0 done, 0 failed, 0 cancelled: stopped by SIGTERM",
    ]


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(command_line.__file__)
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "The command line needs typer and rich: pip install 'fastapi-lifespan-deps[cli]'\n"
    )


def test_what_is_written_to_need_not_be_a_file() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as written:
        command = "graph docs_src.index:app"
        assert not cli(command.split(), standalone_mode=False)
    assert written.getvalue().startswith("1. get_client")


def test_it_is_a_module_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastapi-lifespan-deps", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("fastapi_lifespan_deps", run_name="__main__")
    assert not caught.value.code
    assert "Usage: fastapi-lifespan-deps" in capsys.readouterr().out
