"""Any text has the embedding that transformers gives it by hand, through docs_src/model_serving."""

import base64
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import BUNDLED, torch, transformers

# isort: split
from docs_src.model_serving.main import app

LANGUAGES = [
    "How do I reset my password?",
    "Où est la bibliothèque ? L'été, peut-être…",
    "Die Straße ist schön, aber nass.",
    "¿Dónde está el baño, señor?",
    "Как мне сбросить пароль?",
    "كيف يمكنني إعادة تعيين كلمة المرور؟",
    "איך אני מאפס את הסיסמה?",
    "パスワードをリセットするにはどうすればよいですか。",
    "비밀번호를 어떻게 재설정하나요?",
    "我该如何重置密码",
    "मैं अपना पासवर्ड कैसे रीसेट करूँ?",
]
SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[unused7]", "##ing", "[cls]", "</s>"]
MARKS = ["\x7f", "\x85", "\u200b", "\u202e", "\ufeff", "\ufffd", "\U0010ffff", "e\u0301", "\ufb01"]
OTHERS = ["\U0001f469\u200d\U0001f467", "İ", "ß", "½", "<b>", "&amp;", "\\ud800"]
PIECES = [*LANGUAGES, *SPECIAL, *MARKS, *OTHERS, *map(chr, range(33))]


def odd_texts() -> list[str]:
    """Three hundred, the same each time."""
    choice = random.Random(15)
    texts = [
        "",
        " ",
        "\n\n",
        "x" * 8_000,
        "rain " * 1_600,
        "長" * 8_000,
        "\U0001f469" * 8_000,
        *PIECES,
    ]
    texts += [f"{text} [SEP] {text}" for text in LANGUAGES]
    texts += [special * 40 for special in SPECIAL]
    while len(texts) < 300:
        joint = choice.choice(["", " ", "\t"])
        texts.append(joint.join(choice.choices(PIECES, k=choice.randrange(1, 12))))
    return texts


TEXTS = odd_texts()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def by_hand(tokenizer: Any) -> Any:
    """As the page of the model shows it, one text after the other."""
    model = transformers.AutoModel.from_pretrained(BUNDLED).eval()
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
        rows.append(torch.nn.functional.normalize(mean, dim=0))
    return torch.stack(rows)


def test_embeddings(client: TestClient, by_hand: Any) -> None:
    for start in range(0, len(TEXTS), 100):
        answer = client.post("/embeddings", json={"texts": TEXTS[start : start + 100]})
        assert answer.status_code == 200
        found = torch.tensor(answer.json()["embeddings"])
        assert torch.allclose(found, by_hand[start : start + 100], rtol=0, atol=1e-5)


def compatible(client: TestClient, given: list[Any], encoding: str) -> Any:
    body = {"model": "all-MiniLM-L6-v2", "input": given, "encoding_format": encoding}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    rows = [item["embedding"] for item in answer.json()["data"]]
    if encoding == "base64":
        rows = [struct.unpack("<384f", base64.b64decode(row, validate=True)) for row in rows]
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("encoding", "kind"), [("float", "texts"), ("base64", "texts"), ("base64", "token ids")]
)
def test_embeddings_for_the_clients_of_openai(
    client: TestClient, tokenizer: Any, by_hand: Any, encoding: str, kind: str
) -> None:
    """There, no text may be empty: its token ids are sent, which are the marks around nothing."""
    for start in range(0, len(TEXTS), 100):
        texts = TEXTS[start : start + 100]
        ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
        if kind == "texts":
            sent = [index for index, text in enumerate(texts) if text]
            found = compatible(client, [texts[index] for index in sent], encoding)
        else:
            sent = list(range(len(texts)))
            found = compatible(client, ids, encoding)
        expected = by_hand[start : start + 100][sent]
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_scores(client: TestClient, by_hand: Any) -> None:
    """The texts come back as they were sent, best first."""
    each_seventh = [(query, range(query % 7, len(TEXTS), 7)) for query in (0, 3, 50)]
    for query, chosen in [*each_seventh, (250, range(150)), (250, range(150, len(TEXTS)))]:
        candidates = list(chosen)
        body = {"query": TEXTS[query], "candidates": [TEXTS[index] for index in candidates]}
        results = client.post("/similarity", json=body).json()["results"]
        scores = [result["score"] for result in results]
        assert scores == sorted(scores, reverse=True)
        assert len(results) == len(candidates)
        for result in results:
            index = candidates[result["index"]]
            assert result["text"] == TEXTS[index]
            expected = (by_hand[query] @ by_hand[index]).item()
            assert result["score"] == pytest.approx(expected, abs=1e-5)
