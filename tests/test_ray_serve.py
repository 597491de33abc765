"""docs_src/ray_serve.py: the example application in replicas of Ray Serve, with its real model."""

import http.client
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pydantic_settings")
with warnings.catch_warnings():
    # Ray 2.60 declares fields in a way that pydantic deprecates.
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
    pytest.importorskip("ray.serve", reason="needs the extra `ray`")
    from docs_src.ray_serve import Arguments, build, configure

from docs_src.model_serving.settings import Settings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
SECONDS = 120  # What anything may take, on a busy machine.


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MODEL_SERVING_"):
            monkeypatch.delenv(name)


# What is asked of Ray


def actor_options(**arguments: Any) -> dict[str, Any]:
    options = configure(Arguments(**arguments)).ray_actor_options
    assert options is not None
    return options


def settings_of_replica(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Settings:
    for name, value in actor_options(**arguments)["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_replicas_take_as_many_requests_as_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configure(Arguments()).max_ongoing_requests == 2 * Settings().max_batch_size
    monkeypatch.setenv("MODEL_SERVING_MAX_BATCH_SIZE", "100")
    assert configure(Arguments()).max_ongoing_requests == 200


def test_replicas_have_the_settings_of_whoever_deploys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", "~/v1")
    monkeypatch.setenv("MODEL_SERVING_BATCH_WAIT_TIMEOUT_S", "0.25")
    monkeypatch.setenv("MODEL_SERVING_DTYPE", "bfloat16")
    monkeypatch.setenv("MODEL_SERVING_API_KEY", "secret")
    expected = Settings()
    expected.model_dir = Path.home() / "v1"
    expected.device = "cpu"
    assert settings_of_replica(monkeypatch) == expected


def test_what_is_unset_stays_unset_on_a_node_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    env_vars = actor_options()["runtime_env"]["env_vars"]
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", "/elsewhere")
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "secret")
    for name, value in env_vars.items():
        monkeypatch.setenv(name, value)
    assert Settings().model_dir is None
    assert Settings().admin_token is None


def test_arguments_name_the_model_and_its_checksum_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", "/models/v1")
    monkeypatch.setenv("MODEL_SERVING_MODEL_SHA256", "0" * 64)
    settings = settings_of_replica(monkeypatch, directory="v2")
    assert settings.model_dir == Path.cwd() / "v2"
    assert settings.model_sha256 is None


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_device_is_what_was_reserved(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float, device: str
) -> None:
    assert actor_options(num_gpus=num_gpus)["num_gpus"] == num_gpus
    assert settings_of_replica(monkeypatch, num_gpus=num_gpus).device == device
    monkeypatch.setenv("MODEL_SERVING_DEVICE", "cuda:1")
    assert settings_of_replica(monkeypatch, num_gpus=num_gpus).device == "cuda:1"


@pytest.mark.parametrize(
    "arguments", [{"num_replicas": 0}, {"num_cpus": 0.5}, {"num_gpus": -1}, {"replicas": 2}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Arguments(**arguments)


def test_admin_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVING_ADMIN_TOKEN", "secret")
    with pytest.raises(ValueError, match="MODEL_SERVING_ADMIN_TOKEN is set") as caught:
        configure(Arguments())
    assert "secret" not in str(caught.value)


def test_a_model_that_cannot_serve_ends_a_replica_before_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that `serve status` says why."""
    pytest.importorskip("torch")
    from docs_src.model_serving.errors import ModelLoadError
    from docs_src.ray_serve import make_app
    from tests.serving import save_small_model

    directory = save_small_model(tmp_path / "max")
    (directory / "1_Pooling/config.json").write_text('{"pooling_mode": "max"}')
    monkeypatch.setenv("MODEL_SERVING_MODEL_DIR", str(directory))
    logger = logging.getLogger("docs_src.model_serving")
    monkeypatch.setattr(logger, "parent", logger.parent)
    monkeypatch.setattr(logger, "level", logger.level)
    with pytest.raises(ModelLoadError, match="asks for the pooling max, but this server doesn't"):
        make_app()


# On Ray


def drive(directory: str) -> None:
    """Have a Ray, and deploy what each line of the standard input asks for.

    In a process of its own: Ray starts threads, and sets handlers of signals and of the exit.
    """
    import ray
    from ray import serve

    def tell(**facts: object) -> None:
        print(f"\n@{json.dumps(facts)}", flush=True)

    ray.init(
        "local",
        num_cpus=4,  # They are only counted.
        object_store_memory=80 * 2**20,  # In /dev/shm, of which a container has little.
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=directory,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    serve.start(http_options={"host": host, "port": port})
    tell(port=port)
    for line in sys.stdin:
        error = ""
        try:
            serve.run(build(Arguments(**json.loads(line))), name="example")
        except RuntimeError as caught:
            error = str(caught)
        [deployment] = serve.status().applications["example"].deployments.values()
        tell(error=error, status=deployment.status, message=deployment.message)
    serve.shutdown()  # type: ignore[no-untyped-call, unused-ignore]  # Ray may be absent.
    ray.shutdown()


class Ray:
    """A Ray with the processes that it has started."""

    def __init__(self, directory: str) -> None:
        self._logs = Path(directory) / "session_latest/logs/serve"
        self._driver = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from tests.test_ray_serve import drive; drive(sys.argv[1])",
                directory,
            ],
            cwd=ROOT,
            # With a token of its own, Ray writes none into the home directory.
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": uuid4().hex},
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = ThreadPoolExecutor(1)

    def deploy(self, **arguments: object) -> dict[str, str]:
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(arguments) + "\n")
        self._driver.stdin.flush()
        return self.told()

    def told(self) -> dict[str, Any]:
        """What the driver says next."""

        def read() -> str:
            assert self._driver.stdout is not None
            return next((line for line in self._driver.stdout if line.startswith("@")), "")

        line = self._reader.submit(read).result(SECONDS)
        assert line, "the driver has ended"
        facts: dict[str, Any] = json.loads(line[1:])
        return facts

    def logs(self) -> list[str]:
        """What each replica has logged, also those that have ended."""
        return [path.read_text() for path in self._logs.glob("replica_example_Embeddings_*.log")]

    def processes(self) -> list[int]:
        """Those that live, on Linux: all are in the session of the driver, even after its end."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # It has ended meanwhile.
                state, _, _, session = path.read_text().rpartition(") ")[2].split()[:4]
                if int(session) == self._driver.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def shut_down(self) -> int:
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        return self._driver.wait(SECONDS)

    def wait_for_end(self, processes: list[int]) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                ended = os.pidfd_open(process)
                assert select.select([ended], [], [], SECONDS)[0], process
                os.close(ended)

    def kill(self) -> None:
        """Whatever is left, and whatever that starts meanwhile."""
        while processes := self.processes():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        with self._driver:  # It closes the pipes, and waits.
            self._driver.kill()
            self._reader.shutdown()


@pytest.fixture
def ray() -> Iterator[Ray]:
    # Not in tmp_path: the path of a Unix socket may have about a hundred characters.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray = Ray(directory)
        try:
            yield ray
        finally:
            ray.kill()


@pytest.fixture
def second_version(tmp_path: Path) -> Path:
    """The model, half as deep."""
    from tests.serving import save_second_version  # It skips without torch.

    return save_second_version(tmp_path / "v2")


# Requests


def ask(port: int) -> tuple[int, str]:
    """The status, and the model that has answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        body = json.dumps({"texts": ["a cat"]})
        connection.request("POST", "/embeddings", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read().decode()
    finally:
        connection.close()
    return response.status, json.loads(answer)["model"] if response.status == 200 else answer


@contextmanager
def asking(port: int) -> Iterator[Counter[tuple[int, str]]]:
    """Two clients that send requests all the time, and count the answers."""
    stop = threading.Event()
    answers: Counter[tuple[int, str]] = Counter()

    def client() -> list[tuple[int, str]]:
        answers = []
        while not stop.is_set():
            answers.append(ask(port))
        return answers

    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(client) for _ in range(2)]
        try:
            yield answers
        finally:
            stop.set()
    for finished in clients:
        answers.update(finished.result())


def ask_until(condition: Callable[[], bool], port: int) -> set[tuple[int, str]]:
    answers, deadline = {ask(port)}, monotonic() + SECONDS
    while not condition():
        assert monotonic() < deadline, answers
        answers.add(ask(port))
    return answers


@pytest.mark.server
@pytest.mark.slow
def test_two_replicas_from_start_to_stop(ray: Ray, second_version: Path, tmp_path: Path) -> None:
    """Each has one run of the real model. Another one takes over, and no request fails.

    A model that can't be loaded doesn't take over.
    """

    def replicas_that_answered(model: str) -> int:
        logs = [log for log in ray.logs() if f"Loaded the model {model} " in log]
        return sum("POST /embeddings 200" in log for log in logs)

    port = ray.told()["port"]
    assert ray.deploy(num_replicas=2) == {"error": "", "status": "HEALTHY", "message": ""}
    answers = ask_until(lambda: replicas_that_answered("all-MiniLM-L6-v2") == 2, port)
    assert answers == {(200, "all-MiniLM-L6-v2")}
    assert [log.count("Loaded the model") for log in ray.logs()] == [1, 1]
    assert not any("Released" in log for log in ray.logs())

    with asking(port) as meanwhile:
        failed = ray.deploy(num_replicas=2, directory=str(tmp_path / "typo"))
        assert failed["error"]
        assert failed["status"] == "DEPLOY_FAILED"
        assert f"{tmp_path / 'typo'}', but there is no such directory." in failed["message"]

        deployed = ray.deploy(num_replicas=2, directory=str(second_version))
        assert deployed == {"error": "", "status": "HEALTHY", "message": ""}
        answers = ask_until(lambda: replicas_that_answered("v2") == 2, port)
        assert answers == {(200, "v2")}
    assert set(meanwhile) == {(200, "all-MiniLM-L6-v2"), (200, "v2")}

    processes = ray.processes()
    assert ray.shut_down() == 0
    runs = [log for log in ray.logs() if "Loaded the model" in log]
    assert len(runs) == 4
    assert [log.count("Loaded the model") for log in runs] == [1] * 4
    assert [log.count("Released the model") for log in runs] == [1] * 4
    ray.wait_for_end(processes)
    assert ray.processes() == []
