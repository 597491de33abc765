"""OpenAI's own client asks docs_src/model_serving for embeddings."""

import base64
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

pytest.importorskip("openai")

# isort: split
# These skip this file where what follows can't be imported.
import openai
from openai import OpenAI

from tests.serving import BUNDLED, CountWords, Held, ServerProcess, torch, transformers

# isort: split
from docs_src.model_serving import client as example
from docs_src.model_serving.embedding import Encoder, get_model
from docs_src.model_serving.files import BUNDLED_SHA256
from docs_src.model_serving.main import app, create_app
from docs_src.model_serving.recipe import Recipe
from tests.clients import PATIENCE, Patience

NAME = "all-MiniLM-L6-v2"
KEY = "k3y"
BEARER = {"authorization": f"Bearer {KEY}"}
TEXTS = ["How do I log in?", "Bake bread", "word " * 300]


def url_of(server: ServerProcess) -> str:
    return server.read_until(r"Open (http://\S+)/ in a browser")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with a key, for all tests that change nothing."""
    with ServerProcess(
        MODEL_SERVING_DEVICE="cpu",
        MODEL_SERVING_API_KEY="secret",
        MODEL_SERVING_MAX_TEXTS="4",
        MODEL_SERVING_MAX_TEXT_LENGTH="2000",
        MODEL_SERVING_MAX_BODY_BYTES="100000",
    ) as server:
        yield url_of(server)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(url: str) -> list[list[float]]:
    """What `/embeddings` answers."""
    answer = httpx.post(
        f"{url}/embeddings",
        json={"texts": TEXTS},
        headers={"authorization": "Bearer secret"},
        timeout=PATIENCE,
    )
    rows: list[list[float]] = answer.json()["embeddings"]
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(BUNDLED, local_files_only=True)


def rows_of(answer: Any) -> list[list[float]]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def assert_same(rows: list[list[float]], expected: list[list[float]]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-6)


# What the client sends


@pytest.mark.server
def test_texts(client: OpenAI, expected: list[list[float]], tokenizer: Any) -> None:
    """The client asks for base64, and turns it into numbers again."""
    answer = client.embeddings.create(model=NAME, input=TEXTS)
    assert_same(rows_of(answer), expected)
    assert answer.model == NAME
    assert answer.to_dict()["version"] == BUNDLED_SHA256[:12]
    # What the model has read: its marks are counted, what was cut off isn't.
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert lengths[2] > 256
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths[:2]) + 256

    alone = client.embeddings.create(model=NAME, input=TEXTS[0])
    assert_same(rows_of(alone), expected[:1])
    assert alone.usage.prompt_tokens == lengths[0]


@pytest.mark.server
def test_both_encodings(client: OpenAI, url: str, expected: list[list[float]]) -> None:
    floats = client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float")
    assert_same(rows_of(floats), expected)
    written = client.embeddings.create(
        model=NAME, input=TEXTS, encoding_format="base64", dimensions=384, user="somebody"
    )
    for row, text in zip(rows_of(floats), rows_of(written), strict=True):
        raw = base64.b64decode(str(text), validate=True)
        assert [*struct.unpack("<384f", raw)] == row


@pytest.mark.server
@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_token_ids(
    client: OpenAI, expected: list[list[float]], tokenizer: Any, add_special_tokens: bool
) -> None:
    """With the marks of the tokenizer or without, they mean the same, and are cut like a text."""
    ids = tokenizer(TEXTS, add_special_tokens=add_special_tokens)["input_ids"]
    answer = client.embeddings.create(model=NAME, input=ids)
    assert_same(rows_of(answer), expected)
    texts = client.embeddings.create(model=NAME, input=TEXTS)
    assert answer.usage == texts.usage
    assert_same(rows_of(client.embeddings.create(model=NAME, input=ids[1])), expected[1:2])


@pytest.mark.server
def test_models(client: OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object, model.to_dict()["version"]) == (
        NAME,
        "model",
        BUNDLED_SHA256[:12],
    )
    assert model.created > 0
    assert client.models.retrieve(NAME) == model


@pytest.mark.server
def test_the_example(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    example.main()
    assert re.fullmatch(r"0\.49\n0\.11\n\d+ tokens, all-MiniLM-L6-v2\n", capsys.readouterr().out)


# What is refused


@pytest.mark.server
def test_a_model_that_is_not_there(client: OpenAI) -> None:
    for ask in (
        lambda: client.embeddings.create(model="text-embedding-3-small", input="text"),
        lambda: client.models.retrieve("text-embedding-3-small"),
        lambda: client.models.retrieve("of/somebody"),
    ):
        with pytest.raises(openai.NotFoundError, match="Ask for 'all-MiniLM-L6-v2'") as caught:
            ask()
        error = caught.value
        assert (error.type, error.param, error.code) == (
            "invalid_request_error",
            "model",
            "model_not_found",
        )


@pytest.mark.server
@pytest.mark.parametrize(
    ("sent", "param", "message"),
    [
        ({"input": []}, "input", "input: Send a text, a list of texts,"),
        ({"input": ""}, "input", "input: Send no text"),
        ({"input": ["a", ""]}, "input", "input: Send no text"),
        ({"input": [[]]}, "input", "input: Send no text and no list of token ids that is empty."),
        ({"input": None}, "input", "input: Send a text, a list of texts,"),
        ({"input": [1.5]}, "input", "input: Send a text, a list of texts,"),
        ({"input": ["a", 1]}, "input", "input[1]: Input should be a valid string"),
        ({"input": [1, True]}, "input", "input[1]: Input should be a valid integer"),
        ({"input": [[1], [2, "3"]]}, "input", "input[1][1]: Input should be a valid integer"),
        ({"input": [-1]}, "input", "The token ids of 'all-MiniLM-L6-v2' are from 0 to 30,521."),
        ({"input": [[1], [30_522]]}, "input", "The token ids of"),
        ({"input": [10**30]}, "input", "The token ids of"),
        ({"input": ["a"] * 5}, "input", "input: Send at most 4 texts: the list has 5."),
        ({"input": [[7]] * 5}, "input", "input: Send at most 4 texts: the list has 5."),
        ({"input": "a" * 2_001}, "input", "input: Send at most 2,000 characters"),
        ({"input": ["a", "a" * 2_001]}, "input", "input[1]: Send at most 2,000 characters"),
        ({"input": [7] * 2_001}, "input", "input: Send at most 2,000 token ids"),
        ({"dimensions": 256}, "dimensions", "The embeddings of 'all-MiniLM-L6-v2' have 384"),
        ({"dimensions": "all"}, "dimensions", "dimensions: Input should be a valid integer"),
        ({"encoding_format": "hex"}, "encoding_format", "encoding_format: Input should be"),
    ],
)
def test_a_bad_request(client: OpenAI, sent: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        request: dict[str, Any] = {"model": NAME, "input": "text"}
        client.embeddings.create(**request | sent)
    error = caught.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, None)
    assert isinstance(error.body, dict)
    assert error.body["message"].startswith(message)


@pytest.mark.server
def test_a_key_that_is_wrong(client: OpenAI) -> None:
    stranger = client.with_options(api_key="another")
    for ask in (
        lambda: stranger.embeddings.create(model=NAME, input="text"),
        lambda: stranger.models.list(),
        # It isn't read, whatever it is.
        lambda: stranger.embeddings.create(model=NAME, input="long " * 30_000),
    ):
        with pytest.raises(openai.AuthenticationError, match="Send the API key") as caught:
            ask()
        assert caught.value.code == "invalid_api_key"


@pytest.mark.server
def test_a_body_that_is_too_large(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="Send at most 100,000 bytes") as caught:
        client.embeddings.create(model=NAME, input="long " * 30_000)
    assert caught.value.status_code == 413
    assert caught.value.type == "invalid_request_error"


@pytest.mark.server
def test_a_queue_that_is_full() -> None:
    """Two texts wait for others to come; there is room for one more."""
    with ServerProcess(
        MODEL_SERVING_DEVICE="cpu",
        MODEL_SERVING_MAX_TEXTS="2",
        MODEL_SERVING_MAX_QUEUE_SIZE="3",
        MODEL_SERVING_REQUEST_TIMEOUT="600",
        MODEL_SERVING_BATCH_WAIT_TIMEOUT_S="599",
    ) as server:
        url = url_of(server)
        host, port = url.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), PATIENCE) as other,
            OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        ):
            body = b'{"texts": ["one", "two"]}'
            head = f"POST /embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n"
            other.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            patience = Patience()
            while "queue_size 2.0" not in httpx.get(f"{url}/metrics").text:
                patience.look(None)
            with pytest.raises(openai.InternalServerError, match="2 texts are waiting") as caught:
                client.embeddings.create(model=NAME, input=["three", "four"])
    error = caught.value
    assert (error.status_code, error.type) == (503, "server_error")
    assert error.response.headers["retry-after"] == "1"


# The forms of errors, and who is let in


def use(application: FastAPI, monkeypatch: pytest.MonkeyPatch, model: Callable[[], Any]) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setitem(application.dependency_overrides, get_model, model)


def test_a_key_is_asked_for_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(app, monkeypatch, CountWords)
    monkeypatch.setenv("MODEL_SERVING_API_KEY", KEY)
    texts, similar = {"texts": ["a"]}, {"query": "a", "candidates": ["b"]}
    compatible = {"model": NAME, "input": "a"}
    with TestClient(app) as client:
        for path, body in (
            ("/embeddings", texts),
            ("/embeddings/", texts),
            ("/similarity", similar),
            ("/v1/embeddings", compatible),
            ("/v1/nowhere", {}),
        ):
            refused = client.post(path, json=body)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json().keys() == ({"error"} if path.startswith("/v1") else {"detail"})
            let_in = client.post(path, json=body, headers=BEARER)
            assert let_in.status_code == (404 if path == "/v1/nowhere" else 200)
        assert client.get("/v1/models").status_code == 401
        for path in ("/", "/healthz", "/livez", "/readyz", "/metrics", "/v1x"):
            assert client.get(path).status_code == (404 if path == "/v1x" else 200)


def test_routes_ask_for_the_key_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do where somebody uses them without the middleware."""
    own = create_app()
    own.user_middleware.clear()
    use(own, monkeypatch, CountWords)
    monkeypatch.setenv("MODEL_SERVING_API_KEY", KEY)
    body = {"model": NAME, "input": "a"}
    with TestClient(own) as client:
        assert client.post("/v1/embeddings", json=body).status_code == 401
        assert client.get("/v1/models").status_code == 401
        assert client.post("/embeddings", json={"texts": ["a"]}).status_code == 401
        assert client.post("/v1/embeddings", json=body, headers=BEARER).status_code == 200


def test_a_mounted_application_answers_in_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    use(app, monkeypatch, CountWords)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/v1", app)
    with TestClient(outer) as client:
        assert client.post("/v1/embeddings", json={}).json().keys() == {"detail"}
        assert client.post("/v1/v1/embeddings", json={}).json().keys() == {"error"}


def test_bodies_that_are_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    use(app, monkeypatch, CountWords)
    with TestClient(app) as client:

        def post(content: bytes) -> Any:
            answer = client.post(
                "/v1/embeddings", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400
            return answer.json()["error"]

        assert post(b"{") == {
            "message": "JSON decode error",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        assert post(b"[]")["param"] is None
        assert post(b'{"input": "a"}')["param"] == "model"
        assert post(b'{"model": "%s", "input": "\\ud800"}' % NAME.encode())["message"].startswith(
            "input: Send valid Unicode"
        )
        assert client.get("/v1/embeddings").json()["error"]["message"] == "Method Not Allowed"
        assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    use(app, monkeypatch, lambda: held)
    monkeypatch.setenv("MODEL_SERVING_REQUEST_TIMEOUT", "1")
    with TestClient(app) as client, ThreadPoolExecutor() as threads:

        def embed() -> Any:
            return client.post("/v1/embeddings", json={"model": NAME, "input": "text"})

        try:
            computed = threads.submit(embed)
            assert held.begun.acquire(timeout=PATIENCE)
            waited = embed()
            assert waited.status_code == 503
            assert waited.json()["error"]["message"].startswith(
                "The time for this request was over"
            )
            assert computed.result(PATIENCE).status_code == 504
            assert computed.result().json()["error"] == {
                "message": "The model took too long.",
                "type": "server_error",
                "param": None,
                "code": None,
            }
        finally:
            held.gate.set()


def test_while_no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [CountWords()]
    use(app, monkeypatch, lambda: models.pop())
    with TestClient(app) as client:

        async def lose_it() -> None:
            with pytest.raises(IndexError):
                await app.lifespan_container.refresh(get_model, policy="resource_preserving")

        assert client.portal
        client.portal.call(lose_it)
        body = {"model": NAME, "input": "text"}
        for answer in (client.get("/v1/models"), client.post("/v1/embeddings", json=body)):
            assert answer.status_code == 503
            assert answer.json()["error"]["message"].startswith("No model is loaded")


def test_the_schema_says_what_an_input_may_be() -> None:
    schemas = app.openapi()["components"]["schemas"]
    assert len(schemas["CompatibleRequest"]["properties"]["input"]["oneOf"]) == 4


def test_token_ids_are_cut_where_the_tokenizer_cuts() -> None:
    own = transformers.AutoTokenizer.from_pretrained(BUNDLED, local_files_only=True)
    encoder = Encoder(own, CountWords(), torch.device("cpu"), recipe=Recipe(), max_tokens=5)
    ids = own("one two three four five", add_special_tokens=False)["input_ids"]
    for side in ("right", "left"):
        own.truncation_side = side
        marked, text = encoder.tokenize([ids, "one two three four five"])
        assert len(marked) == 5
        assert marked == text
