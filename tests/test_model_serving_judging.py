"""Which models docs_src/model_serving serves, how, and which it refuses, saying what and why."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import BUNDLED, CountWords, save_small_model, torch, transformers

# isort: split
from safetensors.torch import load_file, save_file

from docs_src.model_serving.embedding import (
    Encoder,
    get_device,
    get_model,
    get_tokenizer,
    positions_of,
)
from docs_src.model_serving.errors import ModelLoadError
from docs_src.model_serving.files import ModelChoice, ModelFilesDep, check_model
from docs_src.model_serving.main import app
from docs_src.model_serving.recipe import Recipe, read_recipe
from docs_src.model_serving.settings import Settings

TOKEN = {"Authorization": "Bearer s3cret"}
PREFIX = "sentence_transformers.models"
TRANSFORMER = {"type": f"{PREFIX}.Transformer", "path": ""}
POOLING = {"type": f"{PREFIX}.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": f"{PREFIX}.Normalize", "path": "2_Normalize"}
ON = {"pooling_mode_mean_tokens": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def model(small: Path, tmp_path: Path) -> Path:
    """A directory with a model, for a test to change."""
    return shutil.copytree(small, tmp_path / "model")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "s3cret")
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")


def write(directory: Path, name: str, content: Any) -> None:
    file = directory / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def change_weights(directory: Path, change: Callable[[str, Any], Any]) -> None:
    file = directory / "model.safetensors"
    weights = {name: change(name, weight) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def check(directory: Path) -> Recipe:
    choice = ModelChoice.of_request(Settings(), directory, None)
    return check_model(choice).recipe


def embed(client: TestClient, text: str) -> Any:
    answer = client.post("/embeddings", json={"texts": [text]})
    assert answer.status_code == 200, answer.text
    return torch.tensor(answer.json()["embeddings"][0])


# What is asked for, and done


def test_the_bundled_model() -> None:
    assert check(BUNDLED) == Recipe("mean", 256, lower_case=False)


def test_a_directory_that_asks_for_nothing(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) == Recipe()


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({}, "mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        (ON | {"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 384}, "cls"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_poolings(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    write(tmp_path, "1_Pooling/config.json", config)
    assert read_recipe(tmp_path).pooling == pooling
    write(tmp_path, "modules.json", [TRANSFORMER, POOLING | {"path": "elsewhere"}])
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode": "max"})
    write(tmp_path, "elsewhere/config.json", config)
    assert read_recipe(tmp_path).pooling == pooling


@pytest.mark.parametrize(
    "modules",
    [
        [],
        [TRANSFORMER, POOLING],
        [TRANSFORMER, POOLING, NORMALIZE],
        [
            {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""},
            {"type": "sentence_transformers.other.pooling.Pooling", "path": "1_Pooling"},
        ],
    ],
)
def test_modules(tmp_path: Path, modules: list[Any]) -> None:
    write(tmp_path, "modules.json", modules)
    write(tmp_path, "1_Pooling/config.json", {})
    assert read_recipe(tmp_path) == Recipe()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "xlm-roberta"])
def test_older_releases_name_a_file_after_the_kind_of_model(tmp_path: Path, kind: str) -> None:
    write(tmp_path, f"sentence_{kind}_config.json", {"max_seq_length": 8, "do_lower_case": True})
    assert read_recipe(tmp_path) == Recipe("mean", 8, lower_case=True)


def test_the_first_word_piece_counts_where_the_files_say_so(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    write(model, "1_Pooling/config.json", ON | {"pooling_mode_cls_token": True})
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model))
    with TestClient(app) as client:
        found = embed(client, "a short text")
    inputs = transformers.AutoTokenizer.from_pretrained(model)("a short text", return_tensors="pt")
    with torch.inference_mode():
        loaded = transformers.AutoModel.from_pretrained(model).eval()
        hidden = loaded(**inputs).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden[0], dim=0)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_texts_are_cut_where_the_files_say_so(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    write(model, "sentence_bert_config.json", {"max_seq_length": 8})
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model))
    with TestClient(app) as client:
        short, long = (
            embed(client, "one two three four five six"),
            embed(client, "one two three four five six seven eight"),
        )
    assert short.tolist() == pytest.approx(long.tolist(), abs=1e-5)


def test_lower_case(model: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, do_lower_case=False)
    tokenizer.backend_tokenizer.normalizer = None
    encoder = Encoder(
        tokenizer,
        CountWords(),
        torch.device("cpu"),
        recipe=Recipe(lower_case=True),
        max_tokens=10,
    )
    assert encoder.tokenize(["A CAT"]) == [tokenizer("a cat")["input_ids"]]


def test_no_text_is_longer_than_the_model_has_positions_for() -> None:
    """RoBERTa and its kind have fewer than the table has rows."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=40))
    assert positions_of(bert) == 40
    config = transformers.RobertaConfig(**sizes, max_position_embeddings=40, pad_token_id=1)
    roberta = transformers.RobertaModel(config)
    longest = positions_of(roberta)
    assert longest == 38
    roberta(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, longest + 1), 5))
    assert positions_of(CountWords()) is None


@pytest.mark.parametrize(("n_positions", "longest"), [(20, 20), (-1, None)])
def test_a_table_of_positions_may_have_any_name(n_positions: int, longest: int | None) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=20)
    model = transformers.GPT2Model(config)
    model.config.n_positions = n_positions
    assert positions_of(model) == longest


# What is asked for, and isn't done


def modules(*added: str) -> list[Any]:
    return [TRANSFORMER, POOLING, *({"type": kind, "path": "3"} for kind in added)]


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("modules.json", modules(f"{PREFIX}.Dense"), "the modules Transformer, Pooling, Dense"),
        ("modules.json", modules("own.Normalize"), "the modules Transformer, Pooling, own.Norm"),
        ("modules.json", [TRANSFORMER], "the modules Transformer"),
        ("modules.json", [TRANSFORMER | {"path": "0_Transformer"}, POOLING], "the modules Transf"),
        ("1_Pooling/config.json", ON | {"pooling_mode_max_tokens": True}, "the pooling max"),
        ("1_Pooling/config.json", ON | {"pooling_mode_lasttoken": True}, "the pooling lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "the pooling mean and cls"),
        ("1_Pooling/config.json", ON, "the pooling none"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "the pooling max"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query", "prompts": {"query": "Find: "}},
            "the prompt 'query' before each text",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "euclidean"},
            "the similarity 'euclidean'",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "dot"},
            "the similarity 'dot' of embeddings that aren't normalized",
        ),
        (
            "modules.json",
            [TRANSFORMER, POOLING],
            "a pooling that should be described in 1_Pooling/",
        ),
        (
            "sentence_bert_config.json",
            {"model_args": {"a": 1}, "x_kwargs": {"b": 2}},
            "'model_args', ",
        ),
        ("sentence_roberta_config.json", {"transformer_task": "fill-mask"}, "the task 'fill-mask'"),
        (
            "config.json",
            {"transformers_weights": "other.safetensors"},
            "weights in 'other.safetens",
        ),
        ("adapter_config.json", {}, "weights on top of another model's"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "a.B"}}, "Python code of its own"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path: Path, name: str, content: Any, asked: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(ModelLoadError) as caught:
        read_recipe(tmp_path)
    assert str(caught.value).startswith(f"'{tmp_path / name}' asks for {asked}")
    assert "but this server doesn't do that" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"default_prompt_name": "none", "prompts": {"none": "", "query": "Find: "}},
        {"prompts": {"query": "Find: "}, "similarity_fn_name": None},
        {"similarity_fn_name": "cosine"},
        {"similarity_fn_name": "dot"},
    ],
)
def test_what_comes_to_the_same_is_not_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, "config_sentence_transformers.json", config)
    write(tmp_path, "config.json", {"transformers_weights": "model.safetensors"})
    transformer = {"model_args": {}, "transformer_task": "feature-extraction"}
    write(tmp_path, "sentence_bert_config.json", transformer)
    write(tmp_path, "1_Pooling/config.json", {})
    write(tmp_path, "modules.json", [TRANSFORMER, POOLING, NORMALIZE])
    assert read_recipe(tmp_path) == Recipe()


@pytest.mark.parametrize("content", [{"a": 1}, 5, ["Transformer"], [{"path": ""}]])
def test_files_of_another_form(model: Path, content: Any) -> None:
    write(model, "modules.json", content)
    with pytest.raises(ModelLoadError, match="but it cannot be loaded"):
        check(model)


def test_a_message_can_be_sent_whatever_the_files_hold(model: Path) -> None:
    (model / "modules.json").write_text(r'[{"type": "\ud800", "path": ""}]')
    with pytest.raises(ModelLoadError) as caught:
        check(model)
    assert r"the modules \ud800, but" in str(caught.value)


# Files that don't work


def vocabulary_of_another_model(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    write(directory, "config.json", config | {"vocab_size": 20_000})


def one_token_more(directory: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(directory)


def fill(value: float, name: str) -> Callable[[Path], None]:
    def change(key: str, weight: Any) -> Any:
        return torch.full_like(weight, value) if name in key else weight

    return lambda directory: change_weights(directory, change)


def one_row(directory: Path) -> None:
    def change(key: str, weight: Any) -> Any:
        if "word_embeddings" in key:
            weight[5_000, 3] = float("inf")
        return weight

    change_weights(directory, change)


def other_weights(directory: Path) -> None:
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")
    config = json.loads((directory / "config.json").read_text())
    write(directory, "config.json", config | {"transformers_weights": "other.safetensors"})


def length_in_quotes(directory: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    write(directory, "tokenizer_config.json", config | {"model_max_length": "64"})


def no_room(directory: Path) -> None:
    write(directory, "sentence_bert_config.json", {"max_seq_length": 2})


BAD = [
    pytest.param(vocabulary_of_another_model, "number 30,521, but the model has", id="vocab"),
    pytest.param(one_token_more, "has the word piece '[NEW]', number 30,522, but", id="one more"),
    pytest.param(fill(float("nan"), "layer.0"), "16 of them have NaN or infinity", id="nan"),
    pytest.param(one_row, "but 1 of them have NaN or infinity in them.", id="one infinity"),
    pytest.param(
        fill(3e38, "LayerNorm.weight"),
        "was tried with 8 texts of 64 word pieces, but the embeddings have NaN or infinity in them",
        id="overflow",
    ),
    pytest.param(
        fill(0, ""), "but one of its embeddings has the length 0, not 1.", id="all the same"
    ),
    pytest.param(no_room, "Texts of 2 word pieces are asked for, but the tokenizer", id="no room"),
    pytest.param(other_weights, "asks for weights in 'other.safetensors', but", id="elsewhere"),
    pytest.param(length_in_quotes, "for the tokenizer in ", id="quotes"),
    pytest.param(
        lambda path: shutil.rmtree(path / "1_Pooling"),
        "asks for a pooling that should be described in 1_Pooling/config.json, but",
        id="files only",
    ),
    pytest.param(
        lambda path: write(path, "modules.json", modules(f"{PREFIX}.Dense")),
        "asks for the modules Transformer, Pooling, Dense, but",
        id="dense",
    ),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD)
def test_such_a_model_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, model: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(model)
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model))
    with pytest.raises(ModelLoadError) as caught, TestClient(app):
        pass
    assert reason in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(("spoil", "reason"), BAD)
def test_such_a_model_leaves_the_old_one_serving(
    monkeypatch: pytest.MonkeyPatch,
    small: Path,
    model: Path,
    spoil: Callable[[Path], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer, the log and a metric tell of it."""
    spoil(model)
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(small))
    with TestClient(app) as client:
        before = embed(client, "a text")
        answer = client.post("/admin/model", json={"directory": str(model)}, headers=TOKEN)
        assert answer.status_code == 409
        assert "The old model, small " in answer.json()["detail"]
        assert reason in answer.json()["detail"]
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert any(reason in record.getMessage() for record in errors)
        metrics = client.get("/metrics").text
        bad = [f'swap_seconds_count{{result="{result}"}} 1.0' for result in ("refused", "failed")]
        assert sum(line in metrics for line in bad) == 1
        assert embed(client, "a text").tolist() == pytest.approx(before.tolist(), abs=1e-6)


def test_weights_that_are_written_after_they_were_checked(
    monkeypatch: pytest.MonkeyPatch, small: Path, model: Path
) -> None:
    """They don't serve under the checksum of others."""
    changes: list[Path] = []

    def change_it(files: ModelFilesDep) -> Any:
        if files.directory in changes:
            change_weights(files.directory, lambda name, weight: weight + 1)
        return torch.device("cpu")

    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(small))
    monkeypatch.setitem(app.dependency_overrides, get_device, change_it)
    with TestClient(app) as client:

        def swap() -> Any:
            return client.post("/admin/model", json={"directory": str(model)}, headers=TOKEN)

        changes.append(model)
        refused = swap()
        assert refused.status_code == 409
        assert "were checked, but they have been written since" in refused.json()["detail"]
        assert client.get("/healthz").json()["model"] == "small"
        changes.clear()
        assert swap().status_code == 200


# The trial


class Noting(CountWords):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def forward(self, **inputs: Any) -> SimpleNamespace:
        self.batches.append(inputs["input_ids"].tolist())
        return super().forward(**inputs)


@pytest.mark.parametrize(
    ("max_tokens", "shapes"), [("256", [(2, 256)]), ("4", [(32, 4)]), ("3", [(32, 3)])]
)
def test_the_trial_has_the_longest_texts_and_all_that_is_special(
    monkeypatch: pytest.MonkeyPatch, max_tokens: str, shapes: list[tuple[int, int]]
) -> None:
    noting = Noting()
    monkeypatch.setenv("MODEL_SERVING_MAX_TOKENS", max_tokens)
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: noting)
    with TestClient(app):
        pass
    assert [(len(batch), len(batch[0])) for batch in noting.batches] == shapes
    tried = {token for batch in noting.batches for text in batch for token in text}
    tokenizer = get_tokenizer(check_model(ModelChoice.of_settings(Settings())))
    assert tried >= {*tokenizer.all_special_ids, len(tokenizer) - 1}
