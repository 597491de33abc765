"""scripts/gpu-check says what it lacks, and its rehearsal does every step. None needs a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

SCRIPT = ROOT / "scripts" / "gpu-check"
STEPS = ["CUDA tests", "swaps", "bench bfloat16", "bench float32", "the example's tests"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def check(
    out: Path, *arguments: str, path: str = os.defpath, python: str = sys.executable
) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PATH": path, "PYTHON": python, "OUT": str(out)}
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )


def program(directory: Path, name: str, says: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{says}\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_without_a_gpu(out: Path, tmp_path: Path) -> None:
    """Nothing is installed, and nothing is written."""
    program(tmp_path, "nvidia-smi", "echo 'No devices were found'; exit 6")
    for path, found in (
        (os.defpath, "there is no nvidia-smi"),
        (f"{tmp_path}:{os.defpath}", "nvidia-smi says: No devices were found"),
    ):
        checked = check(out, path=path)
        assert (checked.returncode, checked.stdout) == (2, "")
        assert checked.stderr == (
            f"gpu-check: no CUDA device here: {found}. Run it on a machine with one, or rehearse"
            " it: scripts/gpu-check --device cpu\n"
        )
    assert not out.exists()


@pytest.mark.slow
def test_the_rehearsal(out: Path, is_thorough: bool) -> None:
    pytest.importorskip("torch")
    if not is_thorough:
        pytest.skip("takes minutes: --thorough")
    checked = check(out, "--device", "cpu", "--limit", "3000")
    assert checked.returncode == 0, (
        checked.stdout + checked.stderr + (out / "gpu-check.log").read_text()
    )
    result = json.loads((out / "gpu-check.json").read_text())
    assert list(result["steps"]) == STEPS
    assert all(step["passed"] for step in result["steps"].values())
    assert result["steps"]["CUDA tests"]["found"]["skipped"] == 0
    policies = result["steps"]["swaps"]["found"]["policies"]
    assert list(policies) == ["availability_preserving", "resource_preserving"]
    assert policies["availability_preserving"]["failed"] == 0
    for dtype in ("bfloat16", "float32"):
        assert result["steps"][f"bench {dtype}"]["found"]["rows"]
    assert "| swaps | passed |" in (out / "gpu-check.md").read_text()


@pytest.mark.slow
def test_when_the_time_is_up(out: Path, is_thorough: bool) -> None:
    """No step is begun that has no time left, and what was found is written."""
    pytest.importorskip("torch")
    if not is_thorough:
        pytest.skip("takes long: --thorough")
    checked = check(out, "--device", "cpu", "--limit", "1")
    assert checked.returncode == 1
    result = json.loads((out / "gpu-check.json").read_text())
    assert {step["said"] for step in result["steps"].values()} == {"no time left"}
