"""What the files of a model ask to be done with it, beside its weights.

sentence-transformers writes them. What they ask for is done, or the model is refused: another
recipe gives other embeddings, and nothing would tell.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ModelLoadError

WEIGHTS = "model.safetensors"

Pooling = Literal["mean", "cls"]

# In the order of sentence-transformers. Embeddings are of unit length here, also of models whose
# last module doesn't ask for it.
SERVED = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLING_FLAG = "pooling_mode_"
# Where sentence-transformers looks, one after the other.
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
ARGUMENTS = ("_args", "_kwargs")
TASK = "feature-extraction"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become embeddings; the defaults are for a directory that says nothing."""

    pooling: Pooling = "mean"
    max_tokens: int | None = None
    """Word pieces; what follows is cut off."""
    lower_case: bool = False


def read_recipe(directory: Path) -> Recipe:
    """Read all that the directory asks for.

    Raises:
        ModelLoadError: it asks for something that the encoder doesn't do.
        Exception: of any kind, when a file isn't what it should be.
    """
    _refuse_code_and_adapters(directory)
    _refuse_other_weights(directory)
    pooling_directory, is_normalized = _read_modules(directory)
    _refuse_prompts_and_other_scores(directory, is_normalized=is_normalized)
    transformer = _read_transformer(directory)
    max_tokens = transformer.get("max_seq_length")
    return Recipe(
        _read_pooling(pooling_directory / "config.json"),
        None if max_tokens is None else int(max_tokens),
        bool(transformer.get("do_lower_case")),
    )


def _read(file: Path, default: Any = None) -> Any:
    """The JSON in a file; if there is no such file, the default, or no entries."""
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {} if default is None else default
    return json.loads(content)


def _read_transformer(directory: Path) -> Any:
    """How the first module cuts texts. Older releases name the file after the kind of model."""
    files = [directory / f"sentence_{kind}_config.json" for kind in KINDS]
    file = next((file for file in files if file.exists()), files[0])
    config = _read(file)
    arguments = [key for key, value in config.items() if key.endswith(ARGUMENTS) and value]
    task = config.get("transformer_task") or TASK
    if arguments or task != TASK:
        asked = ", ".join(map(repr, arguments)) or f"the task {task!r}"
        raise _refusal(file, asked, "Serve a model that is loaded as it is.")
    return config


def _refusal(file: Path, asks_for: str, advice: str) -> ModelLoadError:
    return ModelLoadError(
        f"{str(file)!r} asks for {asks_for}",
        "this server doesn't do that, and without it the embeddings would be others",
        where={"file": file},
        advice=advice,
    )


# --8<-- [start:recipe]
def _read_modules(directory: Path) -> tuple[Path, bool]:
    """Return where the pooling is described, and whether the model normalizes its embeddings."""
    file = directory / "modules.json"
    modules = _read(file, default=[])
    if not modules:
        return directory / "1_Pooling", False
    names = [_name_of(module["type"]) for module in modules]
    if names not in SERVED or modules[0]["path"]:
        raise _refusal(
            file,
            f"the modules {', '.join(names)}",
            "Serve a model of the modules Transformer (in the directory itself), Pooling and, if"
            " it has one, Normalize.",
        )
    pooling = directory / modules[1]["path"]
    # Whoever copies only the files of a directory leaves it behind: `mean` would be a guess.
    if not (pooling / "config.json").is_file():
        raise _refusal(
            file,
            f"a pooling that should be described in {modules[1]['path']}/config.json",
            "Put the whole model there, with the directories in it.",
        )
    return pooling, len(names) == 3


def _name_of(kind: str) -> str:
    # Where a class of theirs is has changed over time. One of somebody else may have any name.
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _read_pooling(file: Path) -> Pooling:
    config = _read(file)
    modes = config.get("pooling_mode") or []  # of newer releases; older ones have flags
    if not isinstance(modes, list):
        modes = [modes]
    if not modes:
        flags = {f"{POOLING_FLAG}mean_tokens": True} | config
        modes = [
            key.removeprefix(POOLING_FLAG).removesuffix("_tokens").removesuffix("_token")
            for key, is_on in flags.items()
            if key.startswith(POOLING_FLAG) and is_on
        ]
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "cls"
    asked = " and ".join(map(str, modes)) or "none"
    raise _refusal(file, f"the pooling {asked}", "Serve a model with `mean` or `cls`.")


# --8<-- [end:recipe]


def _refuse_prompts_and_other_scores(directory: Path, *, is_normalized: bool) -> None:
    file = directory / "config_sentence_transformers.json"
    config = _read(file)
    name = config.get("default_prompt_name")
    if name is not None and config.get("prompts", {}).get(name) != "":
        raise _refusal(
            file,
            f"the prompt {name!r} before each text",
            "Serve a model without a default prompt. Clients can put one before their texts.",
        )
    score = config.get("similarity_fn_name") or "cosine"
    # Of embeddings of unit length, the dot product is the cosine.
    if score != "cosine" and not (score == "dot" and is_normalized):
        raise _refusal(
            file,
            f"the similarity {score!r} of embeddings that aren't normalized"
            if score == "dot"
            else f"the similarity {score!r}",
            "Serve a model whose similarity is the cosine.",
        )


def _refuse_code_and_adapters(directory: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if code := _read(directory / name).get("auto_map"):
            raise _refusal(
                directory / name,
                f"Python code of its own, {json.dumps(code)}",
                "No code of a model is run (trust_remote_code is off). Serve a model that"
                " transformers has the code of, without `auto_map`.",
            )
    if (adapter := directory / "adapter_config.json").exists():
        raise _refusal(
            adapter,
            "weights on top of another model's",
            "Merge the adapter into the weights of that model, and serve these.",
        )


def _refuse_other_weights(directory: Path) -> None:
    """What is checked, and named as the version, is this file."""
    name = _read(directory / "config.json").get("transformers_weights")
    if name not in (None, WEIGHTS):
        raise _refusal(
            directory / "config.json",
            f"weights in {name!r}",
            f"Put them into {WEIGHTS}, and leave `transformers_weights` out.",
        )
