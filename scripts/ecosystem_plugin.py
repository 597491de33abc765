"""Pytest plugin of scripts/ecosystem: notes the outcomes, and swaps FastAPI for this library."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from swap import applications, swap, swapped

from fastapi_lifespan_deps import Depends, LifespanFastAPI
from fastapi_lifespan_deps.call.view import open_calls
from fastapi_lifespan_deps.declare.collect import collect_routes
from fastapi_lifespan_deps.declare.params import SCOPE_KEY
from fastapi_lifespan_deps.live import run as live_run
from fastapi_lifespan_deps.live.run import Run, RunOptions
from fastapi_lifespan_deps.see.spans import Spans
from fastapi_lifespan_deps.serve.binding import Binder

SWAP = bool(os.environ["ECOSYSTEM_SWAP"])
outcomes = {}
names = {}


async def get_proof():
    """What every application declares, so that its routes are bound and its requests pinned."""
    yield "proof"


async def call_running(self, scope, receive, send):
    """Serve a request that is sent without a start, as most tests do.

    Where nobody has entered the lifespan, a run is put around the request: of the dependencies
    alone, not of the application's own code, which stock FastAPI would not run either.
    """
    is_request = scope["type"] in ("http", "websocket")
    if not is_request or SCOPE_KEY in scope or self.router.lifespan_runs.find(scope):
        return await call(self, scope, receive, send)
    run = Run(self.router, self, self, RunOptions(), binder=Binder)
    runs = self.router.lifespan_runs
    open_calls(run)
    await run.start(collect_routes(self))
    runs.open(run)
    run.serve()
    try:
        return await call(self, scope, receive, send)
    finally:
        run.begin_to_stop()
        await run.calls.close()
        await runs.close(run)
        run.end(None)


call = LifespanFastAPI.__call__
if SWAP:
    swap(dependencies=[Depends(get_proof, scope="lifespan")])
    LifespanFastAPI.__call__ = call_running
    # Tests of OpenTelemetry count the spans of a request, and must not find those of get_proof.
    live_run.spans_of = lambda application: Spans()


def pytest_collection_modifyitems(items):
    # Not by the ids of parameters: some are random.
    counts = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        counts[name] += 1
        names[item.nodeid] = f"{name}#{counts[name]}"


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcomes[names[report.nodeid]] = report.outcome


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if SWAP and not swapped():
        print(f"not swapped: {dict(applications)}")
        outcomes.clear()  # it proves nothing
    Path(os.environ["ECOSYSTEM_RESULTS"]).write_text(json.dumps(outcomes))
