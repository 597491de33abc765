"""Another model takes over in docs_src/model_serving, while it serves."""

import gc
import json
import re
import shutil
import signal
import threading
import time
import urllib.request
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import BUNDLED, CountWords, ServerProcess, save_second_version, watching

# isort: split
from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.files import (
    BUNDLED_SHA256,
    ModelChoice,
    ModelFiles,
    ModelFilesDep,
    check_model,
)
from docs_src.model_serving.main import app, create_app
from docs_src.model_serving.settings import Settings
from docs_src.model_serving.shutdown import get_shutdown
from docs_src.model_serving.swapping import get_swapper

PATIENCE = 60.0  # seconds for each thing that is waited for
V1 = BUNDLED_SHA256[:12]
TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a second version of the model."""
    return save_second_version(tmp_path_factory.mktemp("models") / "second")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "s3cret")


class Models:
    """Stand-ins for the model, one for each load; none but those that serve may be alive."""

    def __init__(self) -> None:
        self.loaded: list[weakref.ref[Any]] = []
        self.most_alive = 0
        self.broken = False
        self.begun, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def provide(self, files: ModelFilesDep) -> Iterator[Any]:
        model = Watched(self)
        self.loaded.append(weakref.ref(model))
        self.most_alive = max(self.most_alive, self.alive)
        yield model

    @property
    def alive(self) -> int:
        return sum(model() is not None for model in self.loaded)


class Watched(CountWords):
    def __init__(self, models: Models) -> None:
        super().__init__()
        self.models, self.is_up = models, False
        self.gate = models.gate

    def forward(self, **inputs: Any) -> SimpleNamespace:
        if self.models.broken:
            raise RuntimeError("this model is broken")
        if self.is_up:
            self.models.begun.release()
            assert self.gate.wait(PATIENCE)
        self.is_up = True
        return super().forward(**inputs)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cpu")
    models = Models()
    monkeypatch.setitem(app.dependency_overrides, get_model, models.provide)
    return models


def swap(client: TestClient, directory: Path | None, sha256: str | None = None) -> Any:
    body = {"directory": directory and str(directory), "sha256": sha256}
    return client.post("/admin/model", json=body, headers=TOKEN)


def embed(client: TestClient, text: str = "a text") -> Any:
    return client.post("/embeddings", json={"texts": [text]})


def version(client: TestClient) -> str:
    answer = embed(client)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


def swaps(client: TestClient) -> dict[str, int]:
    found = re.findall(
        r'^model_serving_swap_seconds_count\{result="(.*)"\} (.*)$',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    return {result: int(float(count)) for result, count in found}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


# Who may


def test_without_a_token_in_the_settings_nobody_swaps(
    monkeypatch: pytest.MonkeyPatch, models: Models
) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "")
    with TestClient(app) as client:
        for headers in ({}, TOKEN, {"Authorization": "Bearer "}):
            answer = client.post("/admin/model", json={}, headers=headers)
            assert answer.status_code == 404
            assert "MODEL_SERVING_ADMIN_TOKEN" in answer.json()["detail"]
        assert len(models.loaded) == 1


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "Bearer s3cret\xe9", "s3cret"]
)
def test_without_the_right_token_nobody_swaps(models: Models, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with TestClient(app) as client:
        answer = client.post("/admin/model", json={}, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert len(models.loaded) == 1


def test_a_token_may_have_any_letters(monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "ključ")
    with TestClient(app) as client:
        header = "Bearer ključ".encode()
        answer = client.post("/admin/model", json={}, headers={"Authorization": header})  # type: ignore[arg-type]
        assert answer.status_code == 200


# A swap


def test_another_model_serves_and_back(second: Path) -> None:
    """The real models: their answers differ."""
    with TestClient(app) as client:
        before = embed(client).json()
        assert (before["model"], before["version"]) == ("all-MiniLM-L6-v2", V1)

        answer = swap(client, second)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "second"
        after = embed(client).json()
        assert after["version"] == answer.json()["version"] != V1
        assert after["model"] == "second"
        assert after["embeddings"] != pytest.approx(before["embeddings"][0], abs=1e-2)
        assert client.get("/healthz").json()["version"] == after["version"]
        assert f'model_info{{model="second",version="{after["version"]}"}} 1.0' in (
            client.get("/metrics").text
        )

        assert swap(client, None).json() == {"model": "all-MiniLM-L6-v2", "version": V1}
        again = embed(client).json()
        assert again["embeddings"][0] == pytest.approx(before["embeddings"][0], abs=1e-5)
        assert swaps(client) == {"ok": 2, "refused": 0, "failed": 0}


@pytest.mark.parametrize("policy", ["availability_preserving", "resource_preserving"])
def test_the_old_model_is_freed_when_the_answer_comes(
    monkeypatch: pytest.MonkeyPatch, second: Path, policy: str
) -> None:
    """By reference count, without the garbage collector's help; the real model."""
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", policy)
    loaded: list[weakref.ref[Any]] = []
    monkeypatch.setitem(app.dependency_overrides, get_model, watching(loaded))
    gc.disable()
    try:
        with TestClient(app) as client:
            for directory in (second, None, second):
                version(client)
                assert swap(client, directory).status_code == 200
                assert [model() is not None for model in loaded] == [False] * (len(loaded) - 1) + [
                    True
                ]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("policy", "at_once"), [("availability_preserving", 2), ("resource_preserving", 1)]
)
def test_how_many_models_are_in_memory(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path, policy: str, at_once: int
) -> None:
    """However many swaps are asked for at once: they take turns."""
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", policy)
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        version(client)
        directories = [second, None, second, None, second]
        answers = list(threads.map(lambda directory: swap(client, directory), directories))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert len(models.loaded) == 6
        assert models.alive == 1
    assert models.most_alive == at_once
    assert models.alive == 0


@pytest.mark.parametrize("drain_timeout", ["30", "0.01"])
def test_requests_of_the_old_model_end_with_it_while_others_have_the_new(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path, drain_timeout: str
) -> None:
    """Also when the drain timeout is over: the old batcher finishes what it has."""
    monkeypatch.setenv("MODEL_SERVING_DRAIN_TIMEOUT", drain_timeout)
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        old_gate = models.gate
        old_gate.clear()
        try:
            held = threads.submit(embed, client)
            assert models.begun.acquire(timeout=PATIENCE)
            queued = threads.submit(embed, client)
            wait_until(lambda: "model_serving_queue_size 1.0" in client.get("/metrics").text)
            models.gate = threading.Event()  # The next model is not held up.
            models.gate.set()
            swapping = threads.submit(swap, client, second)
            wait_until(lambda: client.get("/healthz").json()["version"] != V1)
            assert version(client) != V1
            assert not swapping.done()
            assert not held.done()
            assert models.alive == 2
        finally:
            old_gate.set()
        assert held.result(PATIENCE).json()["version"] == V1
        assert queued.result(PATIENCE).json()["version"] == V1
        assert swapping.result(PATIENCE).status_code == 200
        assert models.alive == 1


def test_a_swap_goes_on_when_its_client_has_gone(models: Models, second: Path) -> None:
    async def swap_and_go_away() -> None:
        swapper = app.lifespan_container[get_swapper]
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(swapper.swap, ModelChoice.of_request(Settings(), second, None))
                with anyio.fail_after(PATIENCE):
                    while len(models.loaded) < 2:
                        await anyio.lowlevel.checkpoint()
                scope.cancel()

    with TestClient(app) as client:
        assert client.portal
        client.portal.call(swap_and_go_away)
        assert version(client) != V1
        assert swap(client, None).status_code == 200
        assert version(client) == V1
        assert swaps(client) == {"ok": 2, "refused": 0, "failed": 0}


def test_nothing_is_swapped_when_the_application_is_about_to_stop(
    models: Models, second: Path
) -> None:
    def tell() -> None:
        app.lifespan_container[get_shutdown].is_coming = True

    with TestClient(app) as client:
        assert client.portal
        client.portal.call(tell)
        answer = swap(client, second)
        assert answer.status_code == 503
        assert answer.json() == {"detail": "The application is about to stop."}
        assert version(client) == V1


# Models that aren't good


@pytest.mark.parametrize("policy", ["availability_preserving", "resource_preserving"])
@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (shutil.rmtree, "but there is no such directory."),
        (lambda path: (path / "tokenizer.json").unlink(), "there is no tokenizer.json in it."),
        (lambda path: (path / "config.json").write_text("{"), "for the configuration in"),
        (lambda path: (path / "config.json").write_text("{}"), "for the configuration in"),
        (
            lambda path: (path / "model.safetensors").write_bytes(
                (path / "model.safetensors").read_bytes()[:-1_000]
            ),
            "for the weights in",
        ),
    ],
    ids=["gone", "incomplete", "cut configuration", "empty configuration", "cut weights"],
)
def test_bad_files_are_refused_before_anything_happens(
    monkeypatch: pytest.MonkeyPatch,
    models: Models,
    second: Path,
    tmp_path: Path,
    policy: str,
    break_it: Callable[[Path], Any],
    reason: str,
) -> None:
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", policy)
    bad = shutil.copytree(second, tmp_path / "bad")
    break_it(bad)
    with TestClient(app) as client:
        answer = swap(client, bad)
        assert answer.status_code == 409
        assert reason in answer.json()["detail"]
        assert str(bad) in answer.json()["detail"]
        assert version(client) == V1
        assert len(models.loaded) == 1
        assert swaps(client) == {"ok": 0, "refused": 1, "failed": 0}


def test_the_checksum_is_checked_when_it_is_given(models: Models, second: Path) -> None:
    with TestClient(app) as client:
        answer = swap(client, second, sha256="0" * 64)
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith(
            f"The model is refused. The old model, all-MiniLM-L6-v2 {V1}, serves on.\n\n"
            f"`directory` asks for the model in '{second}', but its weights have another checksum"
            " than expected."
        )
        assert "or set `sha256` to the checksum" in answer.json()["detail"]
        assert version(client) == V1
        right = re.search(r"found sha256 *(\w+)", answer.json()["detail"])
        assert right
        assert swap(client, second, sha256=right[1].upper()).status_code == 200


@pytest.fixture
def without_weights(second: Path, tmp_path: Path) -> Path:
    """Files that look good; only the load finds that they don't belong together."""
    path = shutil.copytree(second, tmp_path / "without-weights")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return path


def test_a_load_that_fails_leaves_the_old_model_serving(without_weights: Path) -> None:
    with TestClient(app) as client:
        answer = swap(client, without_weights)
        assert answer.status_code == 409
        detail = answer.json()["detail"]
        assert re.match(
            r"The model without-weights \w{12} could not be loaded. The old model,"
            rf" all-MiniLM-L6-v2 {V1}, serves on.\n\n",
            detail,
        )
        assert "asks for a BertModel, but 16 of its weights are missing." in detail
        assert version(client) == V1
        assert client.get("/readyz").status_code == 200
        assert swaps(client) == {"ok": 0, "refused": 0, "failed": 1}


def test_a_load_that_fails_leaves_no_model_if_the_old_one_had_to_go_first(
    monkeypatch: pytest.MonkeyPatch, without_weights: Path, second: Path
) -> None:
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", "resource_preserving")
    with TestClient(app) as client:
        answer = swap(client, without_weights)
        assert answer.status_code == 503
        assert "No model is loaded" in answer.json()["detail"]
        assert "16 of its weights are missing" in answer.json()["detail"]

        refused = embed(client)
        assert refused.status_code == 503
        assert "Retry-After" not in refused.headers  # It doesn't get better by itself.
        assert refused.json() == {
            "detail": "No model is loaded: the last one that was asked for could not be loaded."
        }
        again = swap(client, without_weights / "typo")
        assert again.status_code == 503
        assert "The model is refused. No model is loaded." in again.json()["detail"]
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        health = client.get("/healthz")
        assert health.status_code == 503
        assert health.json()["status"] == "no model"
        assert "model_info{" not in client.get("/metrics").text

        assert swap(client, second).status_code == 200
        assert client.get("/healthz").json()["model"] == "second"
        assert version(client) != V1


def test_while_another_model_is_loaded_clients_are_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(files: ModelFilesDep) -> Iterator[Any]:
        if files.directory == second.resolve():
            loading.set()
            assert go_on.wait(PATIENCE)
        yield from models.provide(files)

    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", "resource_preserving")
    monkeypatch.setitem(app.dependency_overrides, get_model, load)
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        swapping = threads.submit(swap, client, second)
        try:
            assert loading.wait(PATIENCE)
            refused = embed(client)
        finally:
            go_on.set()
        assert refused.status_code == 503
        assert refused.json() == {"detail": "Another model is being loaded."}
        assert int(refused.headers["Retry-After"]) >= 1
        assert swapping.result(PATIENCE).status_code == 200
        assert version(client) != V1


def test_the_new_model_is_tried_before_it_serves(
    models: Models, second: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is left of it is freed, though pytest keeps the error that was logged."""
    gc.disable()
    try:
        with TestClient(app) as client:
            models.broken = True
            answer = swap(client, second)
            assert answer.status_code == 409
            assert "this model is broken" in answer.json()["detail"]
            wait_until(lambda: models.alive == 1)  # The worker thread may be about to forget it.
            assert any(record.exc_info for record in caplog.records)
            models.broken = False
            assert version(client) == V1
    finally:
        gc.enable()


def test_code_in_the_directory_is_not_run(models: Models, second: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(second, tmp_path / "bad")
    (bad / "custom.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Config: ...\n")
    config = {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Config"}}
    (bad / "config.json").write_text(json.dumps(config))
    with TestClient(app) as client:
        answer = swap(client, bad)
        assert answer.status_code == 409
        assert "trust_remote_code" in answer.json()["detail"]
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("directory", ["~nobody-of-this-name/model", "a\0b"])
def test_paths_that_cannot_be(models: Models, directory: str) -> None:
    with TestClient(app) as client:
        answer = client.post("/admin/model", json={"directory": directory}, headers=TOKEN)
        assert answer.status_code == 409
        assert "but it cannot be loaded." in answer.json()["detail"]
        assert swaps(client) == {"ok": 0, "refused": 1, "failed": 0}


@pytest.mark.parametrize(
    "body",
    [{"directory": 1}, {"sha256": ""}, {"sha256": "abc"}, [], {"dir": "/"}, {"sha265": "0" * 64}],
)
def test_bodies_of_another_form(models: Models, body: Any) -> None:
    """A typo swaps nothing in, and skips no check."""
    with TestClient(app) as client:
        assert client.post("/admin/model", json=body, headers=TOKEN).status_code == 422
        assert len(models.loaded) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"directory": null}'])
def test_who_says_nothing_asks_for_what_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path, body: bytes
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(second))
    with TestClient(app) as client:
        assert swap(client, BUNDLED).json()["version"] == V1
        headers = {**TOKEN, "content-type": "application/json"}
        answer = client.post("/admin/model", content=body, headers=headers)
        assert answer.json()["model"] == "second"


def test_a_checksum_alone_is_that_of_the_settings_model(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(second))
    with TestClient(app) as client:
        answer = swap(client, None, sha256=BUNDLED_SHA256)
        assert answer.status_code == 409
        assert str(second) in answer.json()["detail"]
        assert "or set `sha256` to the checksum" in answer.json()["detail"]


# From a timer


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch, second: Path, tmp_path: Path) -> Path:
    """A link to the model that is to serve, looked at again and again."""
    link = tmp_path / "current"
    link.symlink_to(BUNDLED)
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(link))
    monkeypatch.setenv("MODEL_SERVING_REFRESH_EVERY", "0.01")
    return link


def relink(link: Path, directory: Path) -> None:
    link.with_name("new").symlink_to(directory)
    link.with_name("new").rename(link)


def test_a_new_model_is_found_by_itself(models: Models, second: Path, current: Path) -> None:
    with TestClient(app) as client:
        assert version(client) == V1
        relink(current, second)
        wait_until(lambda: version(client) != V1)
        relink(current, BUNDLED)
        wait_until(lambda: version(client) == V1)
        # It was looked at many times, and loaded only when it was another one.
        assert len(models.loaded) == 3
        assert swaps(client)["ok"] == 2


def test_a_reload_that_fails_is_logged_and_the_old_model_serves_on(
    models: Models, second: Path, current: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(app) as client:
        relink(current, tmp_path / "nothing")
        wait_until(lambda: swaps(client)["refused"] >= 2)
        assert "The model is refused. The old model, " in caplog.text
        assert "there is no such directory" in caplog.text
        assert version(client) == V1
        relink(current, second)
        wait_until(lambda: version(client) != V1)


def test_the_timer_brings_a_model_back_after_a_failed_swap(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path, current: Path
) -> None:
    """Though the files are the ones that served before."""
    monkeypatch.setenv("MODEL_SERVING_SWAP_POLICY", "resource_preserving")
    with TestClient(app) as client:
        version(client)
        models.broken = True
        assert swap(client, second).status_code == 503
        refused = embed(client)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"  # Then the timer will have looked.
        models.broken = False
        wait_until(lambda: embed(client).status_code == 200)
        assert version(client) == V1


def test_an_application_stops_while_its_timer_reloads(
    monkeypatch: pytest.MonkeyPatch,
    models: Models,
    second: Path,
    current: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loading, stopping = threading.Event(), threading.Event()

    def load(files: ModelFilesDep) -> Iterator[Any]:
        if files.directory == second.resolve():
            loading.set()
            assert stopping.wait(PATIENCE)
        yield from models.provide(files)

    own = create_app()
    add_event_handler: Any = own.router.add_event_handler
    add_event_handler("shutdown", stopping.set)
    own.dependency_overrides[get_model] = load
    with TestClient(own):
        relink(current, second)
        assert loading.wait(PATIENCE)
    wait_until(lambda: models.alive == 0)
    assert "The model was not reloaded" not in caplog.text


def test_nothing_is_loaded_when_the_stop_comes_while_the_files_are_checked(
    monkeypatch: pytest.MonkeyPatch, models: Models, second: Path
) -> None:
    async def get() -> Any:
        return app.lifespan_container[get_shutdown]

    def check(choice: ModelChoice) -> ModelFiles:
        shutdown.is_coming = True
        return check_model(choice)

    with TestClient(app) as client:
        assert client.portal
        shutdown = client.portal.call(get)
        monkeypatch.setattr("docs_src.model_serving.swapping.check_model", check)
        assert swap(client, second).status_code == 503
        assert version(client) == V1


def test_the_timer_does_not_begin_when_the_application_is_about_to_stop(
    models: Models, second: Path, current: Path
) -> None:
    async def tell_and_reload() -> None:
        app.lifespan_container[get_shutdown].is_coming = True
        relink(current, second)
        await app.lifespan_container[get_swapper].reload()

    with TestClient(app) as client:
        assert client.portal
        client.portal.call(tell_and_reload)
        assert version(client) == V1


# Under load


@pytest.mark.slow
def test_many_requests_over_many_swaps(
    monkeypatch: pytest.MonkeyPatch, second: Path, is_thorough: bool
) -> None:
    """The real models: no request fails, each is answered by one of them, none is left behind."""
    wanted = 20 if is_thorough else 4
    count = wanted * 100
    loaded: list[weakref.ref[Any]] = []

    def request(index: int) -> None:
        answer = embed(client, f"text number {index % 10}")
        seen[answer.json()["version"], index % 10] = answer.json()["embeddings"][0]
        statuses[answer.status_code] += 1

    seen: dict[tuple[str, int], list[float]] = {}
    statuses: Counter[int] = Counter()
    monkeypatch.setitem(app.dependency_overrides, get_model, watching(loaded))
    with TestClient(app) as client, ThreadPoolExecutor(16) as threads:
        requests = [threads.submit(request, index) for index in range(count)]
        swapped = 0
        while not all(future.done() for future in requests) or swapped < wanted:
            if swapped * 100 <= sum(statuses.values()) and swapped < wanted:
                assert swap(client, None if swapped % 2 else second).status_code == 200
                swapped += 1
                assert sum(model() is not None for model in loaded) == 1
        for future in requests:
            future.result()
        assert swaps(client) == {"ok": wanted, "refused": 0, "failed": 0}
    assert statuses == {200: count}
    assert len(loaded) == wanted + 1
    assert not any(model() is not None for model in loaded)
    assert len({version for version, _ in seen}) == 2
    for index in range(10):
        first, other = (seen[key] for key in seen if key[1] == index)
        assert first != pytest.approx(other, abs=1e-3)


# Files that change under the server


@pytest.mark.server
def test_who_writes_over_the_weights_in_place_does_not_crash_the_server(tmp_path: Path) -> None:
    directory = shutil.copytree(BUNDLED, tmp_path / "model")
    with ServerProcess(MODEL_SERVING_MODEL_DIR=str(directory)) as server:
        url = server.read_until(r"curl -s (http://127\.0\.0\.1:\d+)/similarity")
        (directory / "model.safetensors").write_bytes(b"")
        body = json.dumps({"texts": ["a text"]}).encode()
        request = urllib.request.Request(
            f"{url}/embeddings", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer)["version"] == V1
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
