"""Pytest plugin of scripts/fastapi-suite: FastAPI's tests meet this library instead of FastAPI.

Importing it makes the swap. It also proves the swap, by counting the applications that were made,
and runs what failed again, alone: a few of FastAPI's tests disturb each other when run in parallel.
"""

import os
import subprocess
import sys

import pytest
from swap import applications, swap, swapped

# More failures than this aren't the tests' own.
RUN_AGAIN_AT_MOST = 20
RUNNING_AGAIN = "FASTAPI_SUITE_RUNNING_AGAIN"

swap()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    applications.update(getattr(node, "workeroutput", {}).get("applications", {}))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of xdist's workers
        session.config.workeroutput["applications"] = dict(applications)
        return
    if RUNNING_AGAIN in os.environ:
        return
    if session.exitstatus == pytest.ExitCode.TESTS_FAILED:
        run_failed_again(session)
    if session.exitstatus == pytest.ExitCode.OK and not swapped():
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def run_failed_again(session):
    """Move what passes alone from failed to passed, before pytest counts."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    failed = {r.nodeid: r for key in ("failed", "error") for r in reporter.stats.get(key, [])}
    if len(failed) > RUN_AGAIN_AT_MOST:
        return
    for nodeid, report in failed.items():
        if passes_alone(nodeid, session):
            reporter.write_line(f"failed in parallel, passed alone: {nodeid}")
            for key in ("failed", "error", "passed"):
                reporter.stats[key] = [r for r in reporter.stats.get(key, []) if r.nodeid != nodeid]
            reporter.stats["passed"].append(report)
    if not reporter.stats.get("failed") and not reporter.stats.get("error"):
        session.exitstatus = pytest.ExitCode.OK


def passes_alone(nodeid, session):
    # xdist appends a test's group: tests/test_x.py::test_y[z]@group
    if nodeid.rfind("@") > nodeid.rfind("]"):
        nodeid = nodeid[: nodeid.rfind("@")]
    command = [sys.executable, "-m", "pytest", "-p", __name__, "-p", "no:sugar", "-q", nodeid]
    environment = {**os.environ, RUNNING_AGAIN: "1"}
    return subprocess.run(command, cwd=session.config.rootpath, env=environment).returncode == 0


def pytest_terminal_summary(terminalreporter, config):
    if not hasattr(config, "workerinput"):
        terminalreporter.write_line(
            f"applications made: {applications['ours']} LifespanFastAPI, "
            f"{applications['stock']} FastAPI{'' if swapped() else ': NOT SWAPPED'}"
        )
