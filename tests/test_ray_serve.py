"""docs_src/ray_serve.py: the example application in replicas of Ray Serve, with its real model."""

import http.client
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Self
from uuid import uuid4

import pytest

pytest.importorskip("pydantic_settings")
with warnings.catch_warnings():
    # Ray 2.60 declares fields in a way that pydantic deprecates.
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
    pytest.importorskip("ray.serve", reason="needs the dependency group `ray`")
    from docs_src.ray_serve import Arguments, build, configure

from docs_src.model_serving.settings import Settings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
SECONDS = 180  # What anything may take, on a busy machine.
CLIENTS = 4


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


NODE: dict[str, Any] = {
    "num_cpus": 1,  # It is only counted: room for one replica.
    "object_store_memory": 80 * 2**20,  # In /dev/shm, of which a container has little.
}


def drive(directory: str) -> None:
    """Have a Ray of two nodes, and do what each line of the standard input asks for.

    In a process of its own: Ray starts threads, and sets handlers of signals and of the exit.
    """
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    def tell(**facts: object) -> None:
        print(f"\n@{json.dumps(facts)}", flush=True)

    Path(directory, "ray").mkdir()  # where a cluster writes its address, unasked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    cluster, nodes = Cluster(), []

    def add_node(**options: Any) -> None:
        """A node that Ray can't start within a limit of its own is told of."""
        try:
            nodes.append(cluster.add_node(**NODE, **options))
        except Exception as caught:  # of several types
            if "timed out" not in str(caught).lower():
                raise
            tell(late=f"{type(caught).__name__}: {caught}")
            sys.exit()

    add_node(include_dashboard=False)
    add_node()
    ray.init(cluster.address, log_to_driver=False)
    serve.start(http_options={"host": host, "port": port})
    tell(port=port)

    def deploy(arguments: dict[str, Any]) -> None:
        error = ""
        try:
            serve.run(build(Arguments(**arguments)), name="example")
        except RuntimeError as caught:
            error = str(caught)
        [deployment] = serve.status().applications["example"].deployments.values()
        tell(error=error, status=deployment.status, message=deployment.message)

    def lose_node() -> None:
        """SIGKILL to what Ray runs on the node. Its replica ends when it notices."""
        node = nodes.pop()
        raylet = node.all_processes["raylet"][0].process.pid
        replicas = children(raylet)
        ended = [os.pidfd_open(process) for process in replicas]
        cluster.remove_node(node, allow_graceful=False)
        for process in ended:
            assert select.select([process], [], [], SECONDS)[0]
            os.close(process)
        tell(processes=len(replicas))

    for line in sys.stdin:
        match json.loads(line):
            case "deploy", arguments:
                deploy(arguments)
            case "lose_node", _:
                lose_node()
            case "add_node", _:
                add_node()
                tell()
    serve.shutdown()  # type: ignore[no-untyped-call, unused-ignore]  # Ray may be absent.
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call, unused-ignore]


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in found.split()]


class Ray:
    """A Ray with the processes that it has started."""

    def __init__(self, directory: str) -> None:
        self._logs = Path(directory) / "ray/session_latest/logs/serve"
        self._driver = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from tests.test_ray_serve import drive; drive(sys.argv[1])",
                directory,
            ],
            cwd=ROOT,
            # With a token of its own, Ray writes none into the home directory.
            env=os.environ
            | {
                "RAY_TMPDIR": directory,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_TOKEN": uuid4().hex,
            },
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = ThreadPoolExecutor(1)

    def wait_for_start(self) -> None:
        self.port: int = self._told()["port"]

    def deploy(self, **arguments: object) -> dict[str, str]:
        return self._do("deploy", arguments)

    def lose_node(self) -> None:
        """Return when all of the node has ended: the replica, too."""
        assert self._do("lose_node")["processes"]

    def add_node(self) -> None:
        self._do("add_node")

    def _do(self, name: str, arguments: object = None) -> dict[str, Any]:
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps([name, arguments]) + "\n")
        self._driver.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        """What the driver says next."""

        def read() -> str:
            assert self._driver.stdout is not None
            return next((line for line in self._driver.stdout if line.startswith("@")), "")

        line = self._reader.submit(read).result(SECONDS)
        assert line, "the driver has ended"
        facts: dict[str, Any] = json.loads(line[1:])
        if late := facts.get("late"):
            pytest.skip(f"Ray didn't start a node within its own limit, on a busy machine: {late}")
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
            ray.wait_for_start()
            yield ray
        finally:
            ray.kill()


# Requests


@dataclass(frozen=True)
class Answer:
    """What a client has heard of a request."""

    phase: str
    """When it was sent."""
    request_id: str
    status: int
    """0 if the connection was closed without an answer."""
    model: str


def ask(port: int, phase: str = "", texts: Sequence[str] = ("a cat",)) -> Answer:
    request_id = uuid4().hex
    headers = {"content-type": "application/json", "x-request-id": request_id}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", "/embeddings", json.dumps({"texts": texts}), headers)
        response = connection.getresponse()
        status, answer = response.status, response.read().decode()
    except ConnectionError:
        status, answer = 0, ""
    finally:
        connection.close()
    return Answer(phase, request_id, status, json.loads(answer)["model"] if status == 200 else "")


class Load:
    """Clients that send requests all the time."""

    def __init__(self, port: int) -> None:
        self.phase = "before"
        self.answers: list[Answer] = []
        self._port, self._stop, self._answered = port, threading.Event(), threading.Condition()

    def send_requests(self) -> None:
        while not self._stop.is_set():
            # Long enough for some to be in work at any moment.
            answer = ask(self._port, self.phase, ["It takes a while to embed this. " * 40] * 4)
            with self._answered:
                self.answers.append(answer)
                self._answered.notify()

    def wait_for_answers(self) -> None:
        """Some more, of the present phase."""
        with self._answered:
            assert self._answered.wait_for(
                lambda: [a.phase for a in self.answers].count(self.phase) >= 5 * CLIENTS, SECONDS
            )

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._threads.submit(self.send_requests) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for client in self._clients:
            client.result()


def ask_until(condition: Callable[[], bool], port: int) -> set[tuple[int, str]]:
    """Send one request after the other; the status, and the model, of the answers."""
    answers, deadline = set(), monotonic() + SECONDS
    while True:
        answer = ask(port)
        answers.add((answer.status, answer.model))
        if condition():
            return answers
        assert monotonic() < deadline, answers


def wait_until(condition: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), monotonic() + SECONDS
    while not condition():
        assert monotonic() < deadline
        pause.wait(0.2)


FIRST, SECOND = "all-MiniLM-L6-v2", "v2"
HEALTHY = {"error": "", "status": "HEALTHY", "message": ""}


def that_answered(ray: Ray, model: str) -> int:
    """How many replicas with this model have answered a request, ever."""
    logs = [log for log in ray.logs() if f"Loaded the model {model} " in log]
    return sum("POST /embeddings 200" in log for log in logs)


def requests_in(log: str) -> set[str]:
    return set(re.findall(r"\b[0-9a-f]{32}\b", log))


def lose_a_node(ray: Ray) -> None:
    """Only requests that were in work at its replica may fail."""
    with Load(ray.port) as load:
        load.wait_for_answers()
        load.phase = "while it is lost"
        ray.lose_node()
        load.phase = "afterwards"
        load.wait_for_answers()
    failed = [answer for answer in load.answers if answer.status != 200]
    print(f"{len(load.answers)} requests, {len(failed)} failed: {failed}")
    assert "afterwards" not in {answer.phase for answer in failed}
    assert len(failed) <= CLIENTS
    served = {answer.request_id for answer in load.answers if answer.phase == "afterwards"}
    # A replica logs a request when its answer is on its way.
    wait_until(lambda: any(served <= requests_in(log) for log in ray.logs()))
    [survivor] = [log for log in ray.logs() if served <= requests_in(log)]
    assert not requests_in(survivor) & {answer.request_id for answer in failed}


def bring_it_back(ray: Ray, replicas: int) -> None:
    """On another node, the same that was lost: now so many have been there in all."""
    ray.add_node()
    wait_until(lambda: "\n".join(ray.logs()).count("Loaded the model") == replicas)
    answers = ask_until(lambda: that_answered(ray, FIRST) == replicas, ray.port)
    assert answers == {(200, FIRST)}


def deploy_another_model(ray: Ray, directory: Path) -> None:
    """One that can't be loaded doesn't take over. One that can does, and no request fails."""
    from tests.serving import save_second_version  # It skips without torch.

    save_second_version(directory)
    with Load(ray.port) as load:
        failed = ray.deploy(num_replicas=2, directory=str(directory / "typo"))
        assert failed["error"]
        assert failed["status"] == "DEPLOY_FAILED"
        assert f"{directory / 'typo'}', but there is no such directory." in failed["message"]

        assert ray.deploy(num_replicas=2, directory=str(directory)) == HEALTHY
        answers = ask_until(lambda: that_answered(ray, SECOND) == 2, ray.port)
        assert answers == {(200, SECOND)}
    assert {(a.status, a.model) for a in load.answers} == {(200, FIRST), (200, SECOND)}


@pytest.mark.server
@pytest.mark.slow
def test_two_nodes_from_start_to_stop(ray: Ray, tmp_path: Path, is_thorough: bool) -> None:
    """Each replica has one run of the real model, and one that was lost with its node comes back.

    Thoroughly: again and again, and then another model takes over.
    """
    assert ray.deploy(num_replicas=2) == HEALTHY
    assert ask_until(lambda: that_answered(ray, FIRST) == 2, ray.port) == {(200, FIRST)}

    lost = 5 if is_thorough else 1
    for number in range(1, lost + 1):
        lose_a_node(ray)
        bring_it_back(ray, replicas=2 + number)
    assert [log.count("Loaded the model") for log in ray.logs()] == [1] * (2 + lost)
    assert not any("Released" in log for log in ray.logs())
    if is_thorough:
        deploy_another_model(ray, tmp_path / SECOND)

    processes = ray.processes()
    assert ray.shut_down() == 0
    runs = [log for log in ray.logs() if "Loaded the model" in log]
    assert [log.count("Loaded the model") for log in runs] == [1] * len(runs)
    assert len(runs) == 2 + lost + 2 * is_thorough
    # What is lost with its node releases nothing. All others do, once.
    assert sorted(log.count("Released the model") for log in runs) == (
        [0] * lost + [1] * (len(runs) - lost)
    )
    ray.wait_for_end(processes)
    assert ray.processes() == []
