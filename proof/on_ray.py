"""A Ray of its own, which does what each line of the standard input asks for.

In a process of its own, since Ray starts threads, and sets handlers of signals and of the exit. A
line is an object: `do` is "deploy", with `name`, `workers` and `environment`, or
"delete", with `name`. An answer is a line that begins with an @.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

_writing = threading.Lock()


def tell(**facts: object) -> None:
    with _writing:
        print(f"\n@{json.dumps(facts)}", flush=True)


def make_app() -> Any:
    """Each replica calls this, so that nothing of the application is pickled."""
    import importlib
    import os

    return importlib.import_module(os.environ["PROOF_APPLICATION"]).app


class Replica:
    """Ray runs the lifespan of what `make_app` returns as long as it lives."""


def deploy(name: str, workers: int, environment: dict[str, str]) -> None:
    deployment = serve.deployment(
        name="Replica",
        num_replicas=workers,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        max_ongoing_requests=100,
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=60,
    )(serve.ingress(make_app)(Replica))
    error = ""
    try:
        serve.run(deployment.bind(), name=name)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    tell(done="deploy", name=name, error=error)


def delete(name: str) -> None:
    error = ""
    try:
        serve.delete(name)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    tell(done="delete", name=name, error=error)


def main(directory: str) -> None:
    ray.init(
        "local",
        num_cpus=4,  # they are only counted
        object_store_memory=80 * 2**20,  # in /dev/shm, of which a container has little
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=directory,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    serve.start(http_options={"host": host, "port": port})
    tell(port=port)
    does: dict[str, Callable[..., None]] = {"deploy": deploy, "delete": delete}
    for line in sys.stdin:
        wish = json.loads(line)
        threading.Thread(target=does[wish.pop("do")], kwargs=wish, daemon=True).start()
    serve.shutdown()  # type: ignore[no-untyped-call, unused-ignore]
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
