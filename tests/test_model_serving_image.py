"""docs_src/deploy/Dockerfile and kubernetes.yaml: no image is built, but what they say is so."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# isort: split
# First, for it skips this file where what follows can't be imported.
from tests.serving import ROOT, ServerProcess

# isort: split
from huggingface_hub import constants
from uvicorn.main import main as uvicorn_command

from docs_src.model_serving.main import app
from docs_src.model_serving.settings import Settings
from tests.dockerfile import (
    all_of,
    command,
    copies,
    environment,
    health_check,
    instructions,
    is_sent,
    lay_out,
    of_kubernetes,
    pod,
)

PAGE = (ROOT / "docs/how-to/deploy.md").read_text()
FILES = [path for path in (ROOT / "docs_src").rglob("*") if path.is_file()]


def test_what_is_installed_has_a_group_and_the_versions_of_scripts_install() -> None:
    installing = "\n".join(all_of("RUN"))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = re.findall(r"--group /src/pyproject\.toml:(\S+)", installing)
    assert named == ["serving"]
    assert set(named) <= groups.keys()
    # The pip that comes with Python 3.11 doesn't know groups.
    assert installing.index("'pip>=25.1'") < installing.index("--group")

    pinned = r"[\w-]+==[\w.]+"
    script = re.sub(
        "^torch=", "torch==", (ROOT / "scripts/install").read_text(), flags=re.MULTILINE
    )
    assert set(re.findall(pinned, installing)) == set(re.findall(pinned, script))
    # torch first, so that no range brings another build of it.
    assert installing.index("torch==") < installing.index("--group")
    for argument in all_of("ARG"):
        name = argument.partition("=")[0]
        assert name.startswith("PIP_") or f"${name}" in installing or name == "PYTHON"


def test_what_is_copied_is_sent_and_nothing_else_is() -> None:
    sources = [source for sources, _ in copies() for source in sources]
    for source in sources:
        path = ROOT / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        kept = [str(file.relative_to(ROOT)) for file in files if file.parent.name != "__pycache__"]
        assert kept
        assert [file for file in kept if not is_sent(file)] == []
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(sources)

    for file in (
        ".git/config",
        ".venv/bin/python",
        ".env",
        "tests/conftest.py",
        "docs/index.md",
        "docs_src/index.py",
        "docs_src/deploy/Dockerfile",
        "docs_src/model_serving/__pycache__/main.cpython-311.pyc",
        "fastapi_lifespan_deps/__pycache__/run.cpython-311.pyc",
    ):
        assert not is_sent(file), file


def test_whoever_runs_it_is_not_root() -> None:
    names = [instruction.name for instruction in instructions()]
    [user] = all_of("USER")
    number = user.partition(":")[0]
    assert int(number) > 0  # By a name Kubernetes couldn't tell.
    assert f"--uid {number} " in "\n".join(all_of("RUN"))
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_variables_are_known() -> None:
    options = {f"UVICORN_{option.name}".upper() for option in uvicorn_command.params}
    settings = {f"MODEL_SERVING_{name}".upper() for name in Settings.model_fields}
    others = {"HF_HUB_OFFLINE", "OMP_NUM_THREADS"}
    assert "HF_HUB_OFFLINE" in vars(constants)
    [container] = pod()["containers"]
    of_pod = {variable["name"] for variable in container["env"]}
    of_image = {name for name in environment() if not name.startswith("PIP_")}
    assert of_pod | of_image <= options | settings | others


def test_the_image_serves_is_healthy_and_stops(tmp_path: Path) -> None:
    """With the files that it has, and no home."""
    python, *arguments = command()
    asks = health_check()
    assert python == asks[0] == "python"
    [exposed] = all_of("EXPOSE")
    variables = environment()
    assert exposed == variables["UVICORN_PORT"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        variables["UVICORN_PORT"] = port = str(listener.getsockname()[1])

        def is_healthy() -> bool:
            check = subprocess.run(
                [sys.executable, *asks[1:]],
                env={"UVICORN_PORT": port, "http_proxy": "http://127.0.0.1:9"},
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
            return check.returncode == 0

        assert not is_healthy()
        listener.listen()
        with ServerProcess(
            arguments,
            cwd=lay_out(tmp_path / "app"),
            pass_fds=[listener.fileno()],
            **variables | {"UVICORN_FD": str(listener.fileno()), "HOME": "/nonexistent"},
        ) as process:
            process.read_until("(Application startup complete)")
            assert is_healthy()
            process.process.send_signal(signal.SIGTERM)
            # The first process of a container ends with 0: a signal that it sends itself, when all
            # is done, doesn't end that one.
            assert process.wait() == -signal.SIGTERM
    assert f"in '{tmp_path}" not in process.output
    for event in ("Loaded the model", "GET /livez", "Released the model"):
        assert event in process.output


def test_kubernetes_runs_the_image() -> None:
    spec = pod()
    [container] = spec["containers"]
    [tag] = re.findall(r"docker build .*-t (\S+) \.", PAGE)
    assert container["image"] == tag
    # What the image says, it needn't say again.
    assert not {"command", "args"} & container.keys()
    assert spec["securityContext"]["runAsNonRoot"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    [mount] = container["volumeMounts"]
    [volume] = spec["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/tmp"}

    [port] = container["ports"]
    assert str(port["containerPort"]) == environment()["UVICORN_PORT"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert asked["path"] in [getattr(route, "path", None) for route in app.routes]


def test_the_service_of_kubernetes_finds_the_pods() -> None:
    declared = of_kubernetes()
    labels = declared["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert declared["Service"]["spec"]["selector"] == labels
    [port] = declared["Service"]["spec"]["ports"]
    assert [port["targetPort"]] == [told["name"] for told in pod()["containers"][0]["ports"]]


def test_kubernetes_gives_a_stop_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pod()
    [container] = spec["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    [graceful] = re.findall(r"--timeout-graceful-shutdown=(\d+)", shlex.join(command()))
    assert spec["terminationGracePeriodSeconds"] > Settings().shutdown_delay + int(graceful)
    assert os.environ["MODEL_SERVING_SHUTDOWN_DELAY"]
