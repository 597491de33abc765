"""What docs_src/model_serving tells those who operate it: how it is, and what it does."""

import re

import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import CountWords

# isort: split
from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.files import BUNDLED_SHA256
from docs_src.model_serving.main import app, create_app
from docs_src.model_serving.shutdown import get_shutdown
from docs_src.model_serving.stand_in import test_the_best_comes_first

__all__ = ["test_the_best_comes_first"]  # shown on the page "Serve a model"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    monkeypatch.setitem(app.dependency_overrides, get_model, lambda: CountWords())


def samples(client: TestClient) -> dict[str, float]:
    """What `/metrics` says."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = re.findall(r"^(model_serving_\S+) (.*)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


# Health


def test_health_says_what_serves_and_where() -> None:
    with TestClient(app) as client:
        assert client.get("/readyz").json() == {"status": "pass"}
        answer = client.get("/healthz")
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ready",
            "model": "all-MiniLM-L6-v2",
            "version": BUNDLED_SHA256[:12],
            "device": "cpu",
        }


def test_an_application_that_has_not_started_lives_and_is_not_ready() -> None:
    client = TestClient(app)
    assert client.head("/livez").status_code == client.get("/livez").status_code == 200
    assert client.head("/readyz").status_code == client.get("/readyz").status_code == 503
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "starting"


def test_an_application_that_is_about_to_stop_serves_and_is_not_ready() -> None:
    def tell() -> None:
        app.lifespan_container[get_shutdown].is_coming = True

    with TestClient(app) as client:
        assert client.portal
        assert client.get("/readyz").status_code == 200
        client.portal.call(tell)
        assert client.get("/livez").status_code == 200
        assert client.post("/embeddings", json={"texts": ["text"]}).status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.get("/healthz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "draining"


# Metrics


def test_metrics_count_what_was_done() -> None:
    with TestClient(app) as client:
        assert client.post("/embeddings", json={"texts": list("abc")}).status_code == 200
        assert client.post("/embeddings", json={"texts": []}).status_code == 422
        assert client.get("/nowhere/at/all").status_code == 404
        assert client.request("MADE-UP", "/nowhere").status_code == 404
        seen = samples(client)

    assert seen["model_serving_queue_size"] == 0
    assert seen["model_serving_batch_size_count"] == 1
    assert seen["model_serving_batch_size_sum"] == 3
    assert seen["model_serving_inference_seconds_count"] == 1
    assert seen["model_serving_inference_seconds_sum"] > 0
    assert seen["model_serving_queue_seconds_count"] == 3
    assert seen["model_serving_queue_seconds_sum"] > 0
    version = BUNDLED_SHA256[:12]
    assert seen[f'model_serving_model_info{{model="all-MiniLM-L6-v2",version="{version}"}}'] == 1
    assert {name: count for name, count in seen.items() if "requests_total" in name} == {
        'model_serving_requests_total{method="POST",path="/embeddings",status="200"}': 1,
        'model_serving_requests_total{method="POST",path="/embeddings",status="422"}': 1,
        'model_serving_requests_total{method="GET",path="(none)",status="404"}': 1,
        'model_serving_requests_total{method="(other)",path="(none)",status="404"}': 1,
    }
    assert {name: count for name, count in seen.items() if "swap_seconds_count" in name} == {
        'model_serving_swap_seconds_count{result="ok"}': 0,
        'model_serving_swap_seconds_count{result="refused"}': 0,
        'model_serving_swap_seconds_count{result="failed"}': 0,
    }


def test_metrics_are_those_of_a_run() -> None:
    """And of an application: none are shared in the process."""
    for _ in range(2):
        with TestClient(app) as client:
            client.post("/embeddings", json={"texts": ["one"]})
            assert samples(client)["model_serving_batch_size_count"] == 1
    other = create_app()
    other.dependency_overrides = app.dependency_overrides
    with TestClient(app) as client, TestClient(other) as other_client:
        client.post("/embeddings", json={"texts": ["one"]})
        assert samples(client)["model_serving_batch_size_count"] == 1
        assert samples(other_client)["model_serving_batch_size_count"] == 0


def test_the_page_is_there() -> None:
    """tests/test_model_serving_page.py uses it, in a browser."""
    with TestClient(app) as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
