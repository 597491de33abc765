"""What an operator of docs_src/model_serving sees of requests: metrics, ids, log lines."""

import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import ROOT, Fussy, Held, ServerProcess

# isort: split
from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.logs import AddRequestId, make_formatter
from docs_src.model_serving.main import ANSWERED_EARLY, app
from docs_src.model_serving.metrics import Metrics
from docs_src.model_serving.settings import Settings

PATIENCE = 60.0
HEADER = "X-Request-ID"
TEXTS = {"texts": ["one"]}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: Fussy())


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def sample(client: TestClient, name: str, **labels: str) -> float:
    written = ",".join(f'{label}="{value}"' for label, value in labels.items())
    wanted = f"model_serving_{name}{{{written}}}" if labels else f"model_serving_{name}"
    metrics = client.get("/metrics").text
    found = re.search(f"^{re.escape(wanted)} (.*)$", metrics, re.MULTILINE)
    assert found, f"{wanted} is not in\n{metrics}"
    return float(found[1])


# Metrics


def test_requests_are_timed_by_route_and_kind_of_answer(client: TestClient) -> None:
    for texts in (["water and beer"], [], ["fail"]):
        client.post("/embeddings", json={"texts": texts})
    for status in ("2xx", "4xx", "5xx"):
        labels = {"path": "/embeddings", "status": status}
        assert sample(client, "request_seconds_count", **labels) == 1
        assert sample(client, "request_seconds_sum", **labels) > 0
        assert sample(client, "request_seconds_bucket", le="+Inf", **labels) == 1


def test_word_pieces_of_requests_and_batches_are_counted(client: TestClient) -> None:
    """A batch has the padding besides."""
    client.post("/embeddings", json={"texts": ["water", "water and beer"]})
    assert sample(client, "request_tokens_sum") == 3 + 5
    assert sample(client, "batch_tokens_sum") == 5 + 5
    assert sample(client, "request_tokens_count") == sample(client, "batch_tokens_count") == 1
    assert sample(client, "tokenizing_seconds_count") == 1
    assert sample(client, "tokenizing_seconds_sum") > 0


def test_requests_in_progress_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: held)
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        try:
            answer = threads.submit(client.post, "/embeddings", json=TEXTS)
            assert held.begun.acquire(timeout=PATIENCE)
            assert sample(client, "requests_in_progress") == 2  # the one that asks, too
        finally:
            held.gate.set()
        assert answer.result(PATIENCE).status_code == 200
        assert sample(client, "requests_in_progress") == 1


def test_batches_that_fail_are_counted_by_what_was_done_with_them(
    client: TestClient,
) -> None:
    assert sample(client, "failed_batches_total", step="inference") == 0
    assert client.post("/embeddings", json={"texts": ["fail"]}).status_code == 500
    assert sample(client, "failed_batches_total", step="inference") == 1
    assert sample(client, "failed_batches_total", step="tokenizing") == 0


def test_what_is_answered_before_a_route_is_found_is_counted_by_its_path(
    client: TestClient,
) -> None:
    client.get("/livez")
    client.post("/v1/embeddings", content=b" " * (2 * 2**20 + 1))
    client.post("/v1/nothing/at/all")
    assert sample(client, "requests_total", method="GET", path="/livez", status="200") == 1
    too_large = {"path": "/v1/embeddings", "status": "413"}
    assert sample(client, "requests_total", method="POST", **too_large) == 1
    assert sample(client, "requests_total", method="POST", path="(none)", status="404") == 1


def test_a_key_that_is_wrong_is_counted_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's clients may list the models first."""
    monkeypatch.setenv("MODEL_SERVING_API_KEY", "right")
    with TestClient(app, headers={"Authorization": "Bearer wrong"}) as client:
        for path in ("/v1/models", "/v1/embeddings", "/embeddings", "/similarity"):
            assert client.get(path).status_code == 401
            assert sample(client, "requests_total", method="GET", path=path, status="401") == 1


@pytest.mark.parametrize("path", ["/embeddings", "/nowhere"])
def test_nothing_is_left_of_requests_that_nobody_waits_for(client: TestClient, path: str) -> None:
    """Half of them hang up with a body that isn't whole, the others while their texts wait."""
    portal = client.portal
    assert portal is not None
    whole = b'{"texts": ["water and beer"]}'

    async def hang_up(body: bytes, is_whole: bool) -> None:
        messages = [
            {"type": "http.request", "body": body, "more_body": not is_whole},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        await app({**scope, "query_string": b""}, receive, send)

    async def hang_up_all() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                is_whole = number % 2 == 0
                tasks.start_soon(hang_up, whole if is_whole else whole[:9], is_whole)

    portal.call(hang_up_all)
    assert sample(client, "requests_in_progress") == 1  # the one that asks
    assert sample(client, "queue_size") == 0
    named = path if path == "/embeddings" else "(none)"
    counted = sample(client, "requests_total", method="POST", path=named, status="499")
    assert counted == (200 if path == "/embeddings" else 100)


def test_what_a_client_makes_up_makes_no_series(client: TestClient) -> None:
    def names() -> set[str]:
        return {line.rpartition(" ")[0] for line in client.get("/metrics").text.splitlines()}

    def make_up(word: str) -> None:
        client.headers["X-Request-ID"] = word
        client.get(f"/{word}")
        client.get(f"/v1/models/{word}")
        client.request(word, f"/{word}")
        client.post("/v1/embeddings", json={"model": word, "input": word})

    client.get("/metrics")
    make_up("first")
    before = names()
    for number in range(20):
        make_up(f"word{number}")
    assert names() == before


def test_pages_name_the_metrics_that_there_are() -> None:
    there = {metric.name for metric in Metrics().registry.collect()}
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(r"`(model_serving_[a-z_]+[a-z])`", pages))
    assert named
    assert {re.sub("_(bucket|sum|count|total)$", "", name) for name in named} <= there


def test_what_may_be_answered_early_are_routes(client: TestClient) -> None:
    for path in ANSWERED_EARLY:
        asked = client.get(path)
        assert asked.status_code in {200, 404, 405}
        assert asked.text != client.get("/nowhere").text


def test_there_are_no_series_of_when_a_series_began(client: TestClient) -> None:
    client.post("/embeddings", json=TEXTS)
    assert "_created" not in client.get("/metrics").text


def test_on_a_cpu_there_is_no_memory_of_a_gpu(client: TestClient) -> None:
    lines = client.get("/metrics").text.splitlines()
    assert not [line for line in lines if line.startswith("model_serving_gpu_memory_bytes")]


# The dashboard


def test_the_dashboard_asks_for_what_there_is() -> None:
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    told = {
        metric.name + suffix
        for metric in Metrics().registry.collect()
        for suffix in suffixes[metric.type]
    }
    dashboard = json.loads((ROOT / "docs_src/deploy/grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b((?:model_serving|process)_\w+)", target["expr"])
    }
    assert asked <= told
    # And for all of it, but what belongs to the process.
    families = {re.sub("_(bucket|sum|count|total)$", "", name) for name in asked}
    wanted = {metric.name for metric in Metrics().registry.collect()}
    assert {name for name in wanted if name.startswith("model_serving")} <= families
    # What nobody asks for embeddings with is left out everywhere, or nowhere.
    left_out = re.findall(
        r'path!~"([^"]+)"', " ".join(t["expr"] for p in panels for t in p["targets"])
    )
    assert set(left_out) == {"/livez|/readyz|/healthz|/metrics"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


# Ids


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/embeddings", b'{"texts": ["water and beer"]}', 200),
        ("/v1/embeddings", b" " * (2 * 2**20 + 1), 413),
        ("/embeddings", b"[[[", 422),
        ("/admin/model", b"", 404),
        ("/embeddings", b'{"texts": ["fail"]}', 500),
    ],
)
def test_each_answer_has_the_id_of_its_request(
    client: TestClient, path: str, body: bytes, status: int
) -> None:
    client.headers["Content-Type"] = "application/json"
    given = client.post(path, content=body, headers={HEADER: "from-the-proxy/17"})
    assert given.status_code == status
    assert given.headers.get_list(HEADER) == ["from-the-proxy/17"]
    made = [client.post(path, content=body).headers[HEADER] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", made_id) for made_id in made)


def test_below_v1_an_unforeseen_error_has_the_form_of_openai(client: TestClient) -> None:
    body = {"model": "all-MiniLM-L6-v2", "input": "fail"}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 500
    error = {"message": "Internal Server Error", "type": "server_error"}
    assert answer.json() == {"error": {**error, "param": None, "code": None}}
    assert answer.headers[HEADER]


FORGED = b'1]: 127.0.0.1:1 - "POST /admin/model HTTP/1.1" 200'


@pytest.mark.parametrize(
    "given", [b"x" * 129, b"a\tb", b"a\x1b[31mb", b"a\nb", b"a\n", "ä".encode(), FORGED]
)
def test_an_id_that_is_none_is_not_taken(
    client: TestClient, caplog: pytest.LogCaptureFixture, given: bytes
) -> None:
    """And nobody can fill the log with warnings of it."""
    taken = client.get("/livez", headers={HEADER.encode(): given}).headers[HEADER]
    assert re.fullmatch("[0-9a-f]{32}", taken)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_of_several_ids_the_first_counts(client: TestClient) -> None:
    headers = [(HEADER, "one"), (HEADER, "two")]
    assert client.head("/livez", headers=headers).headers.get_list(HEADER) == ["one"]


# Log lines


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.server
def test_each_log_line_of_a_request_has_its_id_and_is_json_if_asked_for() -> None:
    command = ["-m", "tests.served_stand_in", "--port", "0"]
    with ServerProcess(command, MODEL_SERVING_LOG_FORMAT="json") as server:
        url = server.read_until(r"Serving on (http://127\.0\.0\.1:\d+)")
        for texts in (["water and beer"], ["fail"]):
            named = {HEADER: texts[0].replace(" ", "-")}
            httpx.post(f"{url}/embeddings", json={"texts": texts}, headers=named, timeout=PATIENCE)
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0

    lines = lines_of(server.output)
    assert {"timestamp", "level", "logger", "message", "process"} <= set.intersection(
        *(set(line) for line in lines)
    )
    assert {line["request_id"] for line in lines} == {None, "water-and-beer", "fail"}
    of_request = [line for line in lines if line["request_id"] == "fail"]
    assert {line["logger"] for line in of_request} == {"uvicorn.access", "uvicorn.error"}
    (error,) = [line for line in of_request if line["level"] == "ERROR"]
    assert "one of three word pieces" in error["exc_info"]
    (up,) = [line for line in lines if line.get("lifespan_event") == "up"]
    assert up["seconds"] > 0


def test_a_line_of_text_has_the_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged in the task of a request, or in a thread that it waits for."""
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "secret")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.addFilter(AddRequestId())
    handler.setFormatter(make_formatter())
    logger = logging.getLogger("docs_src.model_serving")
    logger.addHandler(handler)
    try:
        logger.error("no request")
        with TestClient(app) as client:
            wanted = {"directory": "/nowhere"}
            headers = {HEADER: "17", "Authorization": "Bearer secret"}
            assert client.post("/admin/model", json=wanted, headers=headers).status_code == 409
    finally:
        logger.removeHandler(handler)
    assert re.search(r"\] ERROR docs_src\.model_serving: no request$", lines[0])
    refused = r"\] ERROR docs_src\.model_serving\.swapping \[17\]: The model is refused\."
    assert re.search(refused, lines[-1])


@pytest.mark.parametrize(
    "server",
    [
        "docs_src.model_serving --port 0",
        "gunicorn -c docs_src/deploy/gunicorn_conf.py docs_src.model_serving.main:app",
    ],
)
def test_a_log_format_that_there_is_not_ends_the_start(server: str) -> None:
    pytest.importorskip(server.split()[0])
    command = [sys.executable, "-m", *server.split()]
    environment = {"MODEL_SERVING_LOG_FORMAT": "xml"}
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 1
    assert "Input should be 'text' or 'json'" in ended.stderr


# Settings


def test_a_setting_that_is_misspelt_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a server whose key has a typo would take any."""
    monkeypatch.setenv("MODEL_SERVING_API_KYE", "secret")
    monkeypatch.setenv("model_serving_max_texts", "7")
    assert Settings().max_texts == 7
    assert caplog.messages == [
        "MODEL_SERVING_API_KYE is set, but no setting has this name: it is ignored."
    ]
