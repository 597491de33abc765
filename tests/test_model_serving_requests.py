"""What clients send to docs_src/model_serving, however odd, slow or large, and what it answers."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import CountWords, Held, ServerProcess

# isort: split
from docs_src.model_serving import swapping
from docs_src.model_serving.batching import get_batcher
from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.main import app, create_app
from docs_src.model_serving.settings import Settings
from fastapi_lifespan_deps import LifespanFastAPI

PATIENCE = 60.0  # seconds for each thing that is waited for
JSON = {"content-type": "application/json"}
TOKEN = {"authorization": "Bearer s3cret"}
TEXTS = b'{"texts": ["a text"]}'


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "s3cret")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: CountWords())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """An application for all tests that change nothing."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MODEL_SERVING_DEVICE", "cpu")
        environment.setenv("MODEL_SERVING_ADMIN_TOKEN", "s3cret")
        own = create_app()
        own.dependency_overrides[get_model] = lambda: CountWords()
        with TestClient(own) as client:
            yield client


def requests(client: TestClient) -> dict[str, int]:
    """How many were answered, by path and status."""
    found = re.findall(
        r'^model_serving_requests_total\{.*path="(.*)",status="(.*)"\} (.*)$',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    return {f"{path} {status}": int(float(count)) for path, status, count in found}


class Upload:
    """A request whose body comes as the test says, to an application that runs in a TestClient."""

    def __init__(
        self, client: TestClient, path: str, headers: dict[str, str], *messages: Message
    ) -> None:
        assert client.portal
        self.portal = client.portal
        self.sent: list[Message] = []
        self.messages, self.received = list(messages), 0
        self.is_stalled = threading.Event()
        self.more = self.portal.call(anyio.Event)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.served: Future[None] = self.portal.start_task_soon(
            client.app, scope, self._receive, self._send
        )

    async def _receive(self) -> Message:
        while not self.messages:
            self.is_stalled.set()
            await self.more.wait()
        self.received += 1
        return self.messages.pop(0)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def go_on(self, *messages: Message) -> None:
        self.messages += messages
        self.portal.call(self.more.set)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body."""
        self.served.result(PATIENCE)
        start, *rest = self.sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b"".join(message.get("body", b"") for message in rest)
        return start["status"], headers, json.loads(body)


def chunk(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


# Odd bodies


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts": [NaN]}',
        b'{"texts": [-Infinity]}',
        b'{"texts": [1e999]}',
        b'{"texts": "\\ud800"}',
        b'{"texts": ["\\ud800"]}',
        b'{"\\ud800": NaN}',
        b'{"texts": ["\xed\xa0\x80"]}',
        b'{"texts": [12345678901234567890123456789012345678901234567890]}',
        b"NaN",
        b"null",
        b"",
        b"{",
    ],
)
@pytest.mark.parametrize("path", ["/embeddings", "/similarity"])
def test_what_is_no_list_of_texts(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert {*answer.json()["detail"][0]} <= {"type", "loc", "msg", "ctx"}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
        b'{"texts":' + b"[" * 1_000_000,
        b'{"texts": [' + b"9" * 10_000 + b"]}",
        b'{"texts": ["\xff"]}',
    ],
    ids=["lists", "objects", "texts", "a huge number", "no UTF-8"],
)
def test_what_cannot_be_parsed(client: TestClient, body: bytes) -> None:
    answer = client.post("/embeddings", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json() == {"detail": "There was an error parsing the body"}


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/x"])
def test_other_content_types(client: TestClient, content_type: str) -> None:
    answer = client.post("/embeddings", content=TEXTS, headers={"content-type": content_type})
    assert answer.status_code == 422
    assert "a text" not in answer.text


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b"[" + b"1," * 900_000 + b"1]", "string_type"),
        (b'["' + b'","' * 600_000 + b'"]', "too_long"),
    ],
)
def test_a_million_texts_have_one_error(client: TestClient, body: bytes, type_: str) -> None:
    for content in (b'{"texts": ' + body + b"}", b'{"query": "", "candidates": ' + body + b"}"):
        path = "/similarity" if b"query" in content else "/embeddings"
        answer = client.post(path, content=content, headers=JSON)
        assert answer.status_code == 422
        assert [problem["type"] for problem in answer.json()["detail"]] == [type_]
        assert len(answer.content) < 300


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"texts": "my secret"}),
        ("/embeddings", {"texts": ["fine", {"my secret": "my secret"}]}),
        ("/embeddings", ["my secret"]),
        ("/similarity", {"query": ["my secret"], "candidates": "my secret"}),
        ("/admin/model", {"sha256": "my secret"}),
        ("/admin/model", {"directory": ["my secret"]}),
    ],
)
def test_what_was_sent_does_not_come_back(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, json=body, headers=TOKEN)
    assert answer.status_code == 422
    assert "my secret" not in answer.text


def test_names_of_fields_come_back_in_short(client: TestClient) -> None:
    body = {"x" * 1_000_000: 1} | {f"field {number}": 2 for number in range(1_000)}
    problems = client.post("/admin/model", json=body, headers=TOKEN).json()["detail"]
    assert problems[0]["loc"] == ["body", "x" * 100]
    assert len(problems) == 100


@pytest.mark.parametrize("directory", ["/\udcff", "/" + "x" * 5_000])
def test_paths_that_cannot_be_sent_back(client: TestClient, directory: str) -> None:
    answer = client.post(
        "/admin/model", content=json.dumps({"directory": directory}), headers=JSON | TOKEN
    )
    assert answer.status_code == 422


# How large a body may be


def test_the_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_MAX_BODY_BYTES", "2000")
    with TestClient(app) as client:
        for size, status in ((2_000, 200), (2_001, 413)):
            answer = client.post("/embeddings", content=TEXTS.ljust(size), headers=JSON)
            assert answer.status_code == status
        assert answer.json() == {"detail": "Send at most 2,000 bytes in a body."}
        assert requests(client) == {"/embeddings 200": 1, "/embeddings 413": 1}


@pytest.mark.parametrize("length", ["2097153", "9" * 5_000])
@pytest.mark.parametrize("path", ["/embeddings", "/nowhere"])
def test_what_says_that_it_is_too_large_is_not_read(
    client: TestClient, path: str, length: str
) -> None:
    upload = Upload(client, path, JSON | {"content-length": length}, chunk(b"["))
    status, _, body = upload.answer()
    assert (status, body) == (413, {"detail": "Send at most 2,097,152 bytes in a body."})
    assert upload.received == 0


@pytest.mark.parametrize("headers", [{}, {"content-length": "5"}, {"content-length": "many"}])
def test_what_does_not_say_how_large_it_is_is_counted(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MAX_BODY_BYTES", "2000")
    with TestClient(app) as client:
        chunks = [chunk(b"[" * 300, more=True)] * 100
        upload = Upload(client, "/embeddings", JSON | headers, *chunks)
        assert upload.answer()[0] == 413
        assert upload.received == 7


# Who may not send anything


@pytest.mark.parametrize(("token", "status"), [("", 404), ("another", 401)])
@pytest.mark.parametrize("headers", [{}, {"content-length": "99999999"}, JSON | TOKEN])
def test_nothing_is_read_from_who_may_not_swap(
    monkeypatch: pytest.MonkeyPatch, token: str, status: int, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", token)
    with TestClient(app) as client:
        for path in ("/admin/model", "/admin/model/", "/mounted/admin/model"):
            upload = Upload(client, path, headers)
            assert upload.answer()[0] == status
            assert upload.received == 0


def test_the_route_itself_asks_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is around it."""
    bare = LifespanFastAPI()
    bare.include_router(swapping.router)
    monkeypatch.setitem(bare.dependency_overrides, get_model, lambda: CountWords())
    with TestClient(bare) as client:
        assert client.post("/admin/model").status_code == 401
        monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "")
    with TestClient(bare) as client:
        assert client.post("/admin/model", headers=TOKEN).status_code == 404


# Settings


@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_TOKEN"])
@pytest.mark.parametrize("token", ["s3cret\n", " s3cret", "   ", "s3\ncret"])
def test_a_token_that_no_header_can_hold(
    monkeypatch: pytest.MonkeyPatch, name: str, token: str
) -> None:
    """Nobody could send it. It isn't shown."""
    monkeypatch.setenv(f"MODEL_SERVING_{name}", token)
    with pytest.raises(ValueError, match="No header can hold this") as caught:
        Settings()
    assert "s3" not in str(caught.value)


def test_settings_that_are_wrong_do_not_show_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_API_KEY", "k3y")
    monkeypatch.setenv("MODEL_SERVING_MAX_TEXTS", "5000")
    with pytest.raises(ValueError, match="has no room for the largest request") as caught:
        Settings()
    assert "k3y" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_timer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After` says when it is."""
    monkeypatch.setenv("MODEL_SERVING_REFRESH_EVERY", "inf")
    with pytest.raises(ValueError, match="refresh_every"):
        Settings()


# Slow uploads


def swap(client: TestClient) -> Any:
    return client.post("/admin/model", json={}, headers=TOKEN)


@pytest.mark.parametrize("path", ["/embeddings", "/admin/model"])
def test_an_upload_that_stalls_holds_neither_a_model_nor_a_swap(
    client: TestClient, path: str
) -> None:
    """It gets the model that serves when it is all there."""
    own: Any = client.app
    assert client.portal

    def batcher() -> Any:
        return own.lifespan_container[get_batcher]

    upload = Upload(client, path, JSON | TOKEN, chunk(b"  ", more=True))
    assert upload.is_stalled.wait(PATIENCE)
    before = client.portal.call(batcher)
    assert swap(client).status_code == 200  # That is after the old model was freed.
    assert client.portal.call(batcher) is not before
    assert not upload.served.done()
    body = TEXTS if path == "/embeddings" else b"{}"
    upload.go_on(chunk(body[:1], more=True), chunk(body[1:]))
    assert upload.answer()[0] == 200
    assert upload.received == 3


def test_an_upload_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_REQUEST_TIMEOUT", "0.05")
    with TestClient(app) as client:
        upload = Upload(client, "/embeddings", JSON, chunk(b"{", more=True))
        status, headers, body = upload.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert body == {"detail": "The body has not come whole within 0.05 seconds."}
        assert requests(client) == {"/embeddings 408": 1}


def test_a_client_that_hangs_up_during_its_upload() -> None:
    with TestClient(app) as client:
        messages: list[Message] = [chunk(b"{", more=True), {"type": "http.disconnect"}]
        assert Upload(client, "/embeddings", JSON, *messages).answer()[0] == 499
        assert requests(client) == {"/embeddings 499": 1}


# Time limits


def test_a_request_has_its_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """504 if the model works on it, 503 if it waits; its place is free again then."""
    held = Held()
    monkeypatch.setenv("MODEL_SERVING_REQUEST_TIMEOUT", "2")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: held)
    with TestClient(app) as client, ThreadPoolExecutor() as threads:

        def embed() -> Any:
            return client.post("/embeddings", json={"texts": ["one", "two"]})

        try:
            computed = threads.submit(embed)
            assert held.begun.acquire(timeout=PATIENCE)
            waited = embed()
            assert waited.status_code == 503
            assert waited.headers["Retry-After"] == "1"
            assert waited.json()["detail"].startswith("The time for this request was over before")
            assert computed.result(PATIENCE).status_code == 504
            assert computed.result(PATIENCE).json() == {"detail": "The model took too long."}
            assert "model_serving_queue_size 0.0" in client.get("/metrics").text
        finally:
            held.gate.set()
        assert embed().status_code == 200


# What isn't touched


def test_other_scopes_and_methods(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/admin/model"):
        pass
    for method, status in (("HEAD", 405), ("OPTIONS", 405), ("GET", 405), ("DELETE", 405)):
        assert client.request(method, "/embeddings").status_code == status


def test_health_may_be_asked_for_without_its_body(client: TestClient) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/embeddings", "/admin/model"])
def test_an_application_that_does_not_run(path: str) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    assert client.post(path, content=TEXTS, headers=JSON | TOKEN).status_code == 500


# On a server


@pytest.mark.server
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_server_sends_what_the_client_waits_for(http: str) -> None:
    """Nobody is asked to go on who then is refused; and a connection stays in use."""
    command = f"-W error -m uvicorn --port 0 --http {http} docs_src.model_serving.main:app"
    with ServerProcess(command.split(), MODEL_SERVING_ADMIN_TOKEN="s3cret") as server:
        port = int(server.read_until(r"running on http://127\.0\.0\.1:(\d+)"))

        def ask(length: int, path: str = "/embeddings", *lines: str) -> bytes:
            """What comes first."""
            head = f"POST {path} HTTP/1.1", "host: x", "expect: 100-continue", *lines
            head += (f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n",)
            connection.sendall("\r\n".join(head).encode())
            return connection.recv(12)

        def read_to(pattern: Callable[[bytes], bool]) -> bytes:
            answer = b""
            while not pattern(answer):
                part = connection.recv(65_536)
                assert part, answer
                answer += part
            return answer

        for length, path, line, status in (
            (3_000_000, "/embeddings", "x: y", b"413"),
            (10, "/admin/model", "x: y", b"401"),
            (10, "/admin/model", "authorization: Bearer no", b"401"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                assert ask(length, path, line) == b"HTTP/1.1 " + status
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            for _ in range(2):
                assert ask(len(TEXTS)) == b"HTTP/1.1 100"
                connection.sendall(TEXTS)
                assert b"HTTP/1.1 200" in read_to(lambda answer: answer.endswith(b"]]}"))
            connection.sendall(
                b"POST /embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                + b"10000\r\n"
                + b"[" * 0x10000
                + b"\r\n"
            )
            try:
                for _ in range(40):
                    connection.sendall(b"10000\r\n" + b"[" * 0x10000 + b"\r\n")
            except OSError:
                pass
            assert b"HTTP/1.1 413" in read_to(lambda answer: answer.endswith(b"}"))
        server.process.terminate()
        server.wait()
    assert "Traceback" not in server.output
