"""Good requests go on through docs_src/model_serving under attack, while models are swapped."""

import asyncio
import gc
import hashlib
import itertools
import json
import random
import re
import socket
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("openai")

# isort: split
# These skip this file where what follows can't be imported.
from openai import OpenAI

from tests.serving import BUNDLED, ServerProcess, save_second_version, torch, transformers, watching

# isort: split
import uvicorn
from starlette.requests import Request

from docs_src.model_serving.embedding import get_model
from docs_src.model_serving.files import ModelFilesDep
from docs_src.model_serving.main import create_app
from docs_src.model_serving.settings import SettingsDep
from tests.clients import PATIENCE, Patience

pytestmark = [pytest.mark.server, pytest.mark.slow]

NAME = "model"  # of both directories
TOKEN = {"authorization": "Bearer s3cret"}
ENVIRONMENT: dict[str, Any] = {
    "MODEL_SERVING_ADMIN_TOKEN": "s3cret",
    "MODEL_SERVING_DEVICE": "cpu",
    "MODEL_SERVING_MODEL_DIR": str(BUNDLED),
    # Uploads stall as long as the attack lasts.
    "MODEL_SERVING_REQUEST_TIMEOUT": "3600",
}
TEXTS = [f"{'word ' * length}number {length}" for length in (0, 1, 2, 3, 5, 8, 13, 40, 120, 300)]
LONG = ["nobody waits for this " * 40] * 4
STALLED = json.dumps({"model": NAME, "input": TEXTS[0]}).encode()
HOSTILE = [
    # The status, whether its length is told, and the body.
    (413, True, b"[" * 6_000_000),
    (413, False, b'{"texts":' + b"[" * 6_000_000),
    (413, False, b'{"texts": [' + b"1234," * 1_200_000 + b"1]}"),
    (400, True, b"[" * 2_000_000),
    (422, True, b'{"texts": [' + b"1," * 1_000_000 + b"1]}"),
    (422, False, b'{"texts": ["' + b'","' * 600_000 + b'"]}'),
]


@dataclass(frozen=True)
class Version:
    version: str
    directory: Path
    expected: Any
    """By hand, one row for each of TEXTS."""


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    second = save_second_version(tmp_path_factory.mktemp("second") / NAME)
    return [read_version(directory) for directory in (BUNDLED, second)]


def read_version(directory: Path) -> Version:
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
        rows.append(torch.nn.functional.normalize(mean, dim=0))
    return Version(digest[:12], directory, torch.stack(rows))


def head(path: str, *headers: str) -> bytes:
    lines = f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers
    return "\r\n".join([*lines, "\r\n"]).encode()


def with_length(path: str, body: bytes) -> bytes:
    return head(path, f"content-length: {len(body)}") + body


@dataclass
class Attack:
    """Clients of all kinds, good and bad, who come at the same time."""

    url: str
    versions: list[Version]
    served: Counter[str] = field(default_factory=Counter)
    """Good requests, by the version that has answered."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the hostile ones."""
    alive: int = 0
    """How often `/livez` has answered."""
    hung_up: int = 0

    def __post_init__(self) -> None:
        self.port = int(self.url.rpartition(":")[2])
        self.over = threading.Event()
        self.progress = threading.Condition()
        self.always: list[Future[None]] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def run(self, *, swaps: int, hang_ups: int, stalled: int) -> None:
        """Swap to and fro; during each swap, some hang up and all that is hostile is sent."""
        other = itertools.cycle(reversed(self.versions))
        with ExitStack() as stack, ThreadPoolExecutor(16) as threads:
            uploads = [stack.enter_context(self.connect()) for _ in range(stalled)]
            for upload in uploads:
                upload.sendall(with_length("/v1/embeddings", STALLED)[:-10])
            self.over.clear()
            self.always = [threads.submit(self.ask_well, seed) for seed in range(3)]
            self.always.append(threads.submit(self.ask_whether_it_lives))
            try:
                for _ in range(swaps):
                    self.wait_for_good_requests()
                    swapping = threads.submit(self.swap, next(other))
                    going = [threads.submit(self.hang_up, n) for n in range(hang_ups // swaps)]
                    jobs = [threads.submit(self.send_hostile, *hostile) for hostile in HOSTILE]
                    for gone in going:
                        gone.result()
                    self.hung_up += len(going)
                    self.statuses.update(job.result() for job in jobs)
                    swapping.result()
                self.wait_for_good_requests()
            finally:
                self.over.set()
            for future in self.always:
                future.result()
            for upload in uploads:
                self.finish(upload)

    def ask_well(self, seed: int) -> None:
        """As a good client does, who is never disappointed."""
        choice = random.Random(seed)
        with OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0) as client:
            while not self.over.is_set():
                wanted = choice.choices(range(len(TEXTS)), k=choice.randrange(1, 5))
                # Left out, the client asks for base64, and makes numbers of it.
                encoding: dict[str, Any] = choice.choice([{}, {"encoding_format": "float"}])
                answer = client.embeddings.create(
                    model=NAME,
                    input=[TEXTS[index] for index in wanted],
                    **encoding,
                    timeout=PATIENCE,
                )
                named = (answer.model_extra or {})["version"]
                [version] = [each for each in self.versions if each.version == named]
                found = torch.tensor([item.embedding for item in answer.data])
                assert torch.allclose(found, version.expected[wanted], rtol=0, atol=1e-5)
                with self.progress:
                    self.served[version.version] += 1
                    self.progress.notify()

    def ask_whether_it_lives(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not self.over.is_set():
                assert client.get("/livez").status_code == 200
                self.alive += 1

    def wait_for_good_requests(self) -> None:
        """Until some more were answered. One that fails says so."""
        for _ in range(3):
            with self.progress:
                came = self.progress.wait_for(self.one_more_than(self.served.total()), PATIENCE)
            for future in self.always:
                if future.done():
                    future.result()
            assert came

    def one_more_than(self, before: int) -> Callable[[], bool]:
        return lambda: self.served.total() > before or any(each.done() for each in self.always)

    def swap(self, version: Version) -> None:
        body = {"directory": str(version.directory)}
        answer = httpx.post(f"{self.url}/admin/model", json=body, headers=TOKEN, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == version.version

    def hang_up(self, number: int) -> None:
        """In the middle of an upload, or without waiting for the answer; with notice or without."""
        request = with_length("/embeddings", json.dumps({"texts": LONG}).encode())
        with self.connect() as connection:
            connection.sendall(request[: len(request) // 2] if number % 3 == 0 else request)
            if number % 2:  # Closing resets the connection then.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def send_hostile(self, status: int, tells_length: bool, body: bytes) -> int:
        with self.connect() as connection:
            try:
                if tells_length:
                    connection.sendall(with_length("/embeddings", body))
                else:
                    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
                    connection.sendall(head("/embeddings", "transfer-encoding: chunked") + chunk)
            except OSError:
                pass  # It need not be read to its end.
            assert connection.recv(12) == b"HTTP/1.1 %d" % status
        return status

    def finish(self, upload: socket.socket) -> None:
        """What was stalled is answered by the model that serves now."""
        upload.sendall(STALLED[-10:])
        answer = b""
        while not answer.endswith(b"}}"):
            part = upload.recv(65_536)
            assert part, answer
            answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        version = json.loads(answer.partition(b"\r\n\r\n")[2])["version"]
        assert version == httpx.get(f"{self.url}/healthz", timeout=PATIENCE).json()["version"]

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text
        found = re.search(rf"^{name} (.*)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])


@dataclass(frozen=True)
class Amount:
    swaps: int
    hang_ups: int
    stalled: int


@pytest.fixture(scope="module")
def amount(is_thorough: bool) -> Amount:
    return Amount(20, 100, 20) if is_thorough else Amount(2, 10, 4)


def check(attack: Attack, amount: Amount, *, rounds: int = 1, other_swaps: int = 0) -> None:
    """What each attack comes to, wherever the server runs."""
    assert attack.hung_up == amount.hang_ups * rounds
    swaps = amount.swaps * rounds
    expected = Counter(status for status, _, _ in HOSTILE)
    assert attack.statuses == {status: count * swaps for status, count in expected.items()}
    assert set(attack.served) == {version.version for version in attack.versions}
    assert attack.alive > 0
    patience = Patience()
    while now := attack.metric("model_serving_queue_size"):
        patience.look(now)
    assert attack.metric(r'model_serving_swap_seconds_count\{result="ok"\}') == swaps + other_swaps


def test_a_server_that_is_attacked(
    versions: list[Version], amount: Amount, is_thorough: bool
) -> None:
    """No good request fails, each has the vectors of the version that it names."""
    rounds = 2 if is_thorough else 1
    with ServerProcess(**ENVIRONMENT) as server:
        attack = Attack(server.read_until(r"Open (http://\S+)/ in a browser"), versions)
        resident = []
        for _ in range(rounds):
            attack.run(**vars(amount))
            resident.append(attack.metric("process_resident_memory_bytes") / 1e6)
        check(attack, amount, rounds=rounds)
        print(  # With `-s`.
            f"{attack.served.total():,} good requests, {attack.alive:,} of /livez,"
            f" {attack.metric('model_serving_batch_size_count'):,.0f} batches,"
            f" MB resident after each round: {', '.join(f'{size:,.0f}' for size in resident)}"
        )
        # A model takes 90 MB. What C's allocator keeps grows until it has seen the worst.
        assert max(resident) - resident[0] < 90
        server.process.terminate()
        server.wait()
    assert "Traceback" not in server.output


# Seen from inside


class Server(uvicorn.Server):
    """Asks its own application whether it lives, again and again, in its event loop."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="critical", access_log=False))
        self.app, self.answers = app, 0
        self.url: Future[str] = Future()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            self.url.set_exception(RuntimeError("the server did not start"))
            return
        host, port = self.servers[0].sockets[0].getsockname()
        self.url.set_result(f"http://{host}:{port}")
        self.asking = asyncio.create_task(self.ask_whether_it_lives())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.asking.cancel()
        await super().shutdown(sockets)

    async def ask_whether_it_lives(self) -> None:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            while True:
                assert (await client.get("/livez")).status_code == 200
                self.answers += 1
                # Without a pause, the thread of the model would wait for the interpreter's lock.
                await asyncio.sleep(0.001)


@contextmanager
def serving(server: Server) -> Iterator[str]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.url.result(PATIENCE)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if server.asking.done() and not server.asking.cancelled():
        server.asking.result()


def objects() -> Counter[str]:
    """What of the application, of its models and requests is in memory."""
    gc.collect()
    return Counter(
        kind.__qualname__
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).startswith("docs_src.model_serving")
        or issubclass(kind, (torch.nn.Module, Request))
    )


def test_the_event_loop_and_the_memory_under_attack(
    monkeypatch: pytest.MonkeyPatch, versions: list[Version], amount: Amount
) -> None:
    """`/livez` is answered between any two batches, and nothing is left behind."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    app = create_app()
    server, loaded = Server(app), list[weakref.ref[Any]]()
    batches: list[list[int]] = []
    load: Callable[..., Iterator[Any]] = watching(loaded)

    def load_and_note(files: ModelFilesDep, settings: SettingsDep) -> Iterator[Any]:
        """For each batch of a model, how often `/livez` had been answered when it began."""
        answers: list[int] = []
        batches.append(answers)

        def note(*_: object) -> None:
            torch.set_num_threads(1)  # Of this thread: others have their own number.
            answers.append(server.answers)

        with contextmanager(load)(files, torch.device("cpu"), settings) as model:
            model.register_forward_pre_hook(note)
            yield model

    app.dependency_overrides[get_model] = load_and_note
    with serving(server) as url:
        attack = Attack(url, versions)
        attack.swap(versions[0])
        before = objects()
        attack.run(**vars(amount))
        attack.swap(versions[0])
        check(attack, amount, other_swaps=2)
        assert [model() is not None for model in loaded] == [False] * (len(loaded) - 1) + [True]
        patience = Patience()
        while (after := objects()) != before:
            patience.look((after - before, before - after))
    assert not any(model() is not None for model in loaded)
    steps = [later - now for answers in batches for now, later in itertools.pairwise(answers)]
    print(f"{len(steps)} times from one batch to the next, /livez {min(steps)} times or more")
    assert min(steps) >= 1
