"""The model and what it needs, as lifespan dependencies that depend on each other."""

import gc
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, TypeAlias

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from fastapi_lifespan_deps import Depends

from .errors import ModelLoadError
from .files import (
    FROM_DIRECTORY,
    ModelFiles,
    ModelFilesDep,
    check_unchanged,
    explain_failure,
)
from .recipe import WEIGHTS, Recipe
from .settings import SettingsDep

logger = logging.getLogger(__name__)

# A text, or the numbers of its word pieces, if the client has cut it already.
Input: TypeAlias = str | list[int]


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


def get_tokenizer(model_files: ModelFilesDep) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the model was trained with."""
    with explain_failure("tokenizer", model_files.directory, model_files.choice):
        tokenizer = AutoTokenizer.from_pretrained(model_files.directory, **FROM_DIRECTORY)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


TokenizerDep = Annotated[PreTrainedTokenizerBase, Depends(get_tokenizer, scope="lifespan")]


# --8<-- [start:model]
def get_model(
    model_files: ModelFilesDep, device: DeviceDep, settings: SettingsDep
) -> Iterator[torch.nn.Module]:
    """Hold the model in memory, from its load to its end."""
    model = _load_model(model_files, getattr(torch, settings.dtype)).eval()
    # On the CPU, weights are the file itself, mapped into memory: whoever writes to it in place
    # changes what is served, or crashes the process. So they are copied.
    for weights in (*model.parameters(), *model.buffers()):
        weights.data = weights.data.to(device, copy=True)
    check_unchanged(model_files)
    _forget_imports()
    logger.info("Loaded the model %s %s on %s", model_files.name, model_files.version, device)
    yield model
    # The weights go now, whoever still holds the module: `empty_cache` gives back to the device
    # only what is free.
    model.to("meta")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    logger.info("Released the model %s %s", model_files.name, model_files.version)


# --8<-- [end:model]


@cache
def _forget_imports() -> None:
    """Let go of what the first load of a process leaves behind.

    It imports more of torch. That leaves a cycle which holds the frames above it, and so the model.
    """
    gc.collect()


def _load_model(model_files: ModelFiles, dtype: torch.dtype) -> torch.nn.Module:
    # The type checker is told to look away: transformers leaves this function untyped.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    directory = model_files.directory
    with explain_failure("model", directory, model_files.choice):
        model, info = AutoModel.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **FROM_DIRECTORY,
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


# --8<-- [start:encoder]
class Encoder:
    """Turns texts into embeddings of unit length, in whatever thread calls it.

    Call it in one thread at a time: a tokenizer isn't thread-safe, and one forward pass uses
    every core already.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: torch.nn.Module,
        device: torch.device,
        *,
        recipe: Recipe,
        max_tokens: int,
    ) -> None:
        self.device = device
        self.tokenizer = tokenizer
        self.max_tokens = min(
            limit
            for limit in (
                max_tokens,
                recipe.max_tokens,
                tokenizer.model_max_length,
                positions_of(model),
            )
            if limit is not None
        )
        self.vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        self._marks = marks_of(tokenizer)
        self._model = model
        self._recipe = recipe

    def tokenize(self, inputs: Sequence[Input]) -> list[list[int]]:
        """Cut each text into the numbers of its word pieces, `max_tokens` at most.

        To those that are cut already, the marks are added that the tokenizer puts around a text,
        unless they are there.
        """
        texts = [text for text in inputs if isinstance(text, str)]
        if self._recipe.lower_case:
            texts = [text.lower() for text in texts]
        cut: Iterator[list[int]] = iter(())
        if texts:
            encoded = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)
            cut = iter(encoded["input_ids"])
        return [next(cut) if isinstance(given, str) else self._mark(given) for given in inputs]

    def _mark(self, token_ids: list[int]) -> list[int]:
        before, after = self._marks
        marks = len(before) + len(after)
        end = len(token_ids) - len(after)
        if end >= len(before) and token_ids[: len(before)] == before and token_ids[end:] == after:
            token_ids = token_ids[len(before) : end]
        room = self.max_tokens - marks
        if self.tokenizer.truncation_side == "left":
            return before + token_ids[-room:] + after
        return before + token_ids[:room] + after

    def encode(self, token_ids: Sequence[list[int]]) -> torch.Tensor:
        """Embed tokenized texts in one forward pass: one row for each, on the CPU."""
        rows = [torch.tensor(ids, dtype=torch.long) for ids in token_ids]
        lengths = torch.tensor([len(ids) for ids in token_ids])
        padding = self.tokenizer.pad_token_id or 0
        padded = pad_sequence(rows, batch_first=True, padding_value=padding)
        real = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
        with torch.inference_mode():
            input_ids, mask = self._to_device(padded), self._to_device(real.long())
            hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
            if self._recipe.pooling == "cls":
                pooled = hidden[:, 0].float()
            else:
                total = (hidden.float() * mask.unsqueeze(-1)).sum(dim=1)
                pooled = total / mask.sum(dim=1, keepdim=True)
            return torch.nn.functional.normalize(pooled, dim=1).cpu()

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            # From pinned memory the copy runs beside what the GPU still computes.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def positions_of(model: torch.nn.Module) -> int | None:
    """How many word pieces of a text a model has positions for, if that has an end."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kind count from the number after that of the padding.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    # Others call their table something else, or compute the positions that they were trained with.
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def marks_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before a text, and what after it."""
    word = list(tokenizer("warm", add_special_tokens=False)["input_ids"])
    marked = list(tokenizer("warm")["input_ids"])
    start = next(i for i in range(len(marked)) if marked[i : i + len(word)] == word)
    return marked[:start], marked[start + len(word) :]


def get_encoder(
    settings: SettingsDep,
    model_files: ModelFilesDep,
    tokenizer: TokenizerDep,
    model: ModelDep,
    device: DeviceDep,
) -> Encoder:
    with explain_failure("tokenizer", model_files.directory, model_files.choice):
        encoder = Encoder(
            tokenizer, model, device, recipe=model_files.recipe, max_tokens=settings.max_tokens
        )
        marks = tokenizer.num_special_tokens_to_add()  # around each text
    if encoder.max_tokens <= marks:
        raise ModelLoadError(
            f"Texts of {encoder.max_tokens} word pieces are asked for",
            f"the tokenizer puts {marks} of its own around each, and none is left",
            where={"directory": model_files.directory, "setting": "MODEL_SERVING_MAX_TOKENS"},
            advice="Set MODEL_SERVING_MAX_TOKENS to more; or correct max_seq_length in"
            " sentence_bert_config.json, or model_max_length in tokenizer_config.json.",
        )
    return encoder


EncoderDep = Annotated[Encoder, Depends(get_encoder, scope="lifespan")]
# --8<-- [end:encoder]
