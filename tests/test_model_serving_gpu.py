"""The example application on a GPU: `scripts/gpu-check` runs this where there is one.

`scripts/gpu-check --device cpu` rehearses it: GPU_CHECK_DEVICE says so.
"""

import gc
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import BUNDLED, save_second_version, torch

# isort: split
from docs_src.model_serving.embedding import DeviceDep, get_model
from docs_src.model_serving.files import BUNDLED_SHA256, ModelFilesDep
from docs_src.model_serving.main import app
from docs_src.model_serving.settings import SettingsDep

DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cuda")
IS_CUDA = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.slow,
]

PATIENCE = 30.0  # seconds for what is waited for
MiB = 2**20
# What is kept beside the weights, in bytes. The smaller model has 35 MB of them in bfloat16.
LEFTOVERS = 4 * MiB
COUNT = 240 if IS_CUDA else 30
# Of all sizes, and none like the other.
TEXTS = [f"{index} " + "rivers run to the sea " * (index % 60) for index in range(COUNT)]
LONG_TEXTS = ["the sea " * 300] * (64 if IS_CUDA else 2)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", DEVICE)
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "s3cret")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a second version of the model, of half as many layers."""
    return save_second_version(tmp_path_factory.mktemp("models") / "second")


def size_of(directory: Path, dtype: str = "float32") -> int:
    size = (directory / "model.safetensors").stat().st_size
    return size if dtype == "float32" else size // 2


def allocated() -> int:
    """What tensors take on the device, in bytes."""
    if IS_CUDA:
        torch.cuda.synchronize()
        # Each thread that multiplies matrices has a work space, for as long as the process lives.
        torch._C._cuda_clearCublasWorkspaces()
        return int(torch.cuda.memory_allocated())
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def fail(self: object, inputs: object) -> None:
    raise torch.OutOfMemoryError("out of memory, as a rehearsal has it")


@contextmanager
def no_room() -> Iterator[None]:
    """Have no memory to speak of on the device, beside what is taken."""
    if not IS_CUDA:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Embedding, "forward", fail)
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + MiB) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def embed(client: TestClient, *texts: str) -> Any:
    return client.post("/embeddings", json={"texts": texts or ["a text"]})


def row_of(client: TestClient, text: str) -> Any:
    answer = embed(client, text)
    assert answer.status_code == 200, answer.text
    [row] = answer.json()["embeddings"]
    return torch.tensor(row)


def swap(client: TestClient, directory: Path | None) -> Any:
    token = {"Authorization": "Bearer s3cret"}
    body = {"directory": directory and str(directory)}
    return client.post("/admin/model", json=body, headers=token)


# What it computes


@pytest.fixture(scope="module")
def of_the_cpu() -> Any:
    """The embeddings of `TEXTS` as the CPU computes them, one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_SERVING_DEVICE", "cpu")
        with TestClient(app) as client:
            return torch.stack([row_of(client, text) for text in TEXTS])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_each_of_many_requests_gets_the_embedding_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, of_the_cpu: Any, dtype: str, tolerance: float
) -> None:
    """They come at the same time, and so go through the model together."""
    monkeypatch.setenv("MODEL_SERVING_DTYPE", dtype)
    with TestClient(app) as client, ThreadPoolExecutor(32) as threads:
        found = torch.stack(list(threads.map(lambda text: row_of(client, text), TEXTS)))
    assert (found - of_the_cpu).abs().max().item() < tolerance
    # Scores differ in the third digit at most.
    scores = found @ found.T - of_the_cpu @ of_the_cpu.T
    assert scores.abs().max().item() < (1e-4 if dtype == "float32" else 1e-2)


def test_health_tells_the_device() -> None:
    with TestClient(app) as client:
        health = client.get("/healthz").json()
    assert (health["status"], health["device"]) == ("ready", DEVICE)


# Memory


def test_metrics_tell_the_memory_of_the_gpu() -> None:
    with TestClient(app) as client:
        assert embed(client).status_code == 200
        metrics = client.get("/metrics").text
    pattern = r'model_serving_gpu_memory_bytes{device="(.+)",kind="(.+)"} (.+)'
    found = re.findall(pattern, metrics)
    assert {device for device, _, _ in found} == ({DEVICE} if IS_CUDA else set())
    if IS_CUDA:
        sizes = {kind: float(size) for _, kind, size in found}
        assert size_of(BUNDLED) <= sizes["allocated"] <= sizes["reserved"]
        assert sizes["reserved"] <= sizes["used"] <= sizes["total"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_given_back_at_shutdown(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("MODEL_SERVING_DTYPE", dtype)
    with TestClient(app) as client:  # What CUDA and its libraries keep is taken here.
        assert embed(client).status_code == 200
    before = allocated()
    reserved = torch.cuda.memory_reserved() if IS_CUDA else 0
    with TestClient(app) as client:
        assert embed(client).status_code == 200
        taken = allocated() - before
        assert taken == pytest.approx(size_of(BUNDLED, dtype), abs=LEFTOVERS)
    assert allocated() == pytest.approx(before, abs=LEFTOVERS)
    if IS_CUDA:
        assert torch.cuda.memory_reserved() <= reserved + size_of(BUNDLED, dtype) // 2


@pytest.mark.parametrize("policy", ["availability_preserving", "resource_preserving"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_before_during_and_after_swaps(
    monkeypatch: pytest.MonkeyPatch, second: Path, policy: str, dtype: str
) -> None:
    """By one policy both models are there for a while; by the other, never."""
    monkeypatch.setenv("MODEL_SERVING_DTYPE", dtype)
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", policy)
    loaded: list[int] = []

    def noted(files: ModelFilesDep, device: DeviceDep, settings: SettingsDep) -> Iterator[Any]:
        with contextmanager(get_model)(files, device, settings) as model:
            # The most since the swap has begun; on a CPU, nobody counts that.
            loaded.append(torch.cuda.max_memory_allocated() if IS_CUDA else allocated())
            yield model

    monkeypatch.setitem(app.dependency_overrides, get_model, noted)
    with TestClient(app) as client:
        assert embed(client).status_code == 200
    before = allocated()
    with TestClient(app) as client:
        serving = BUNDLED
        for wanted in (second, None, second, None):
            assert embed(client).status_code == 200
            now = allocated()
            assert now - before == pytest.approx(size_of(serving, dtype), abs=LEFTOVERS)
            if IS_CUDA:
                torch.cuda.reset_peak_memory_stats()
            assert swap(client, wanted).status_code == 200
            last, serving = serving, wanted or BUNDLED
            sizes = size_of(last, dtype), size_of(serving, dtype)
            if policy == "availability_preserving":
                most = sum(sizes)
            else:
                most = max(sizes) if IS_CUDA else sizes[1]
            assert loaded[-1] - before == pytest.approx(most, abs=LEFTOVERS)
    assert allocated() == pytest.approx(before, abs=LEFTOVERS)


# No memory


def test_a_pass_without_room_fails_its_requests_and_the_server_serves_on() -> None:
    with TestClient(app, raise_server_exceptions=False) as client:
        expected = row_of(client, "a text")
        before = allocated()
        with no_room():
            assert embed(client, *LONG_TEXTS).status_code == 500
        assert allocated() == pytest.approx(before, abs=LEFTOVERS)
        assert torch.equal(row_of(client, "a text"), expected)
        assert embed(client, *LONG_TEXTS).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_swap_without_room_leaves_the_old_model_serving(second: Path) -> None:
    with TestClient(app) as client:
        assert embed(client).status_code == 200
        before = allocated()
        with no_room():
            answer = swap(client, second)
        assert answer.status_code == 409, answer.text
        assert "out of memory" in answer.text
        assert "serves on" in answer.text
        # The answer doesn't wait until the one that failed is gone.
        end = time.monotonic() + PATIENCE
        while allocated() > before + LEFTOVERS and time.monotonic() < end:
            assert embed(client).status_code == 200
        assert allocated() == pytest.approx(before, abs=LEFTOVERS)
        assert embed(client).json()["version"] == BUNDLED_SHA256[:12]
        assert swap(client, second).status_code == 200
        assert embed(client).json()["version"] != BUNDLED_SHA256[:12]
