"""The faults: how each is brought about, and what must hold then."""

import os
from collections.abc import Callable, Iterator
from signal import SIGINT, SIGKILL, SIGTERM, Signals

from . import claims
from .claims import Violation
from .stage import STOPPED, Stage

Fault = Callable[[Stage], Iterator[Violation]]


def start_fails(stage: Stage) -> Iterator[Violation]:
    """The model raises in its start."""
    return _start_does_not_come(stage, "start fails", "RuntimeError: the model is broken")


def start_hangs(stage: Stage) -> Iterator[Violation]:
    """The model waits without end, and has a limit for its start."""
    return _start_does_not_come(stage, "start hangs", "LifespanTimeout: `get_model`")


def _start_does_not_come(stage: Stage, model: str, error: str) -> Iterator[Violation]:
    stage.start(model)
    stage.workers_that("starting", 1)
    yield from stage.end("start failed")
    yield from stage.values()
    yield from claims.left_in_reverse(stage.record)
    yield from stage.output_has(error)
    for event in stage.record.of("enter"):
        if not event["name"].startswith("engine"):
            yield Violation("nothing starts", f"{event['name']} was entered all the same")


def interrupted_start(number: Signals) -> Fault:
    """A signal comes while the model starts. The start goes on to its end, then all is stopped."""

    def interrupt(stage: Stage) -> Iterator[Violation]:
        stage.start("start waits")
        stage.workers_that("starting")
        stage.signal(number)
        stage.tell("go")
        yield from stage.end("int" if number == SIGINT else "term")
        yield from stage.values()
        yield from claims.left_in_reverse(stage.record)
        yield from stage.log_of_workers_ends(STOPPED)
        if stage.record.of("begin"):
            yield Violation("nothing is served", "a request was begun")

    return interrupt


def stop_fails(stage: Stage) -> Iterator[Violation]:
    """The model raises after its `yield`."""
    return _stop_does_not_come(stage, "stop fails", "RuntimeError: the model can't be released")


def stop_hangs(stage: Stage) -> Iterator[Violation]:
    """The model waits without end after its `yield`, and has a limit for its stop."""
    return _stop_does_not_come(stage, "stop hangs", "LifespanTimeout: `get_model`")


def _stop_does_not_come(stage: Stage, model: str, error: str) -> Iterator[Violation]:
    stage.start(model)
    stage.serving()
    stage.running.stop()
    yield from stage.end("stop failed")
    yield from stage.values()
    yield from claims.left_in_reverse(stage.record)
    yield from stage.log_of_workers_ends(STOPPED)
    yield from stage.output_has(error)


def value_dies(stage: Stage) -> Iterator[Violation]:
    """The feed's task fails while it serves: only what needs it fails, and only in its worker."""
    stage.start()
    workers = stage.serving()
    with stage.load() as load:
        load.flow()
        load.wait_for_more("before the feed dies")
        victim: int = stage.ask("POST", "/kill")[1]["pid"]
        stage.workers_that("log", 1, level="ERROR")
        for pid in workers:
            status, answer = stage.ask_of(pid, "GET", "/reader")
            expected = 500 if pid == victim else 200
            if status != expected:
                yield Violation("fails alone", f"/reader of {pid} answers {status} {answer}")
        load.wait_for_more("after the feed has died")
    stage.running.stop()
    yield from stage.end("stop failed")
    yield from stage.requests(load)
    yield from claims.served_on(load.seen)
    yield from stage.values()
    yield from stage.log_of_workers_ends(STOPPED)
    yield from stage.output_has("RuntimeError: the feed is broken")


def refresh_fails(stage: Stage) -> Iterator[Violation]:
    """The model's new instance doesn't start: the old one goes on, the new engine is stopped."""
    stage.start()
    pid, *_ = workers = stage.serving()
    with stage.load() as load:
        load.flow()
        load.wait_for_more("before the refresh")
        old = stage.ask_of(pid, "GET", "/model")[1]
        stage.tell("broken")
        status, answer = stage.ask_of(pid, "POST", "/refresh")
        if (status, answer["error"]) != (200, "the model is broken"):
            yield Violation("refresh raises", f"/refresh answers {status} {answer}")
        new = stage.ask_of(pid, "GET", "/model")[1]
        if new != old:
            yield Violation("old goes on", f"it was {old}, and is {new}")
        load.wait_for_more("after the refresh")
        stage.untell("broken")
    stage.has_drained(2 * len(workers))
    engines = [event["name"] for event in stage.record.of("enter") if event.pid == pid]
    if not any(name.startswith("engine") for name in engines[4:]):
        yield Violation("refresh begins", f"no engine was started anew: {engines}")
    yield from stage.stop()
    yield from stage.requests(load)
    yield from claims.served_on(load.seen)
    yield from stage.values()
    yield from stage.log_of_workers_ends(STOPPED)


def refresh_under_load(stage: Stage) -> Iterator[Violation]:
    """Each worker refreshes its engine ten times while clients of all kinds are served."""
    refreshes = 10
    stage.start()
    workers = stage.serving()
    with stage.load() as load:
        load.flow(streams=2, websockets=2)
        for _ in range(refreshes):
            for pid in workers:
                status, answer = stage.ask_of(pid, "POST", "/refresh")
                if status != 200 or answer["error"]:
                    yield Violation("refresh succeeds", f"/refresh answers {status} {answer}")
            load.wait_for_more("after a refresh", 5)
    stage.has_drained(2 * len(workers))  # an engine and a model
    yield from stage.stop()
    yield from stage.requests(load)
    yield from claims.served_on(load.seen)
    yield from stage.values()
    yield from stage.log_of_workers_ends(STOPPED)
    for name in ("engine", "model"):
        found = [event for event in stage.record.of("enter") if event["name"].startswith(name)]
        # whoever asks while one is under way waits for that one
        if len(found) < (refreshes + 1) * len(workers):
            yield Violation("refresh succeeds", f"only {len(found)} of {name} were entered")


def term_under_load(stage: Stage) -> Iterator[Violation]:
    """SIGTERM, with requests, streams and WebSockets open, which end after the server began to."""
    stage.start()
    stage.serving()
    with stage.load() as load:
        load.flow()
        load.hold(2)
        stage.has_begun(load.held)
        load.wait_for_more("before SIGTERM")
        wait_until_draining = stage.running.draining()
        stage.running.stop()
        wait_until_draining()
        stage.tell("release")
    yield from stage.end("term")
    yield from stage.requests(load)
    yield from stage.values()
    yield from claims.left_in_reverse(stage.record)
    yield from stage.log_of_workers_ends(STOPPED)


def worker_killed(stage: Stage) -> Iterator[Violation]:
    """SIGKILL to a worker under load. It cannot stop its values; all others do, and serve on."""
    stage.start()
    workers = stage.serving()
    with stage.load() as load:
        load.flow()
        load.wait_for_more("before SIGKILL")
        os.kill(victim := workers[0], SIGKILL)
        if stage.server.replaces:
            stage.serving(len(workers) + 1)
            load.wait_for_more("after SIGKILL")
    if not stage.server.replaces:
        # The server ends with it. Whatever supervises the server starts it again.
        yield from stage.end("killed")
        stage.start()
        stage.serving(len(workers) + 1)
    yield from stage.stop()
    yield from stage.requests(load, killed=[victim])
    yield from stage.values(killed=[victim])
    yield from stage.log_of_workers_ends(STOPPED, killed=[victim])
    for event in stage.record.of("leave"):
        if event.pid == victim:
            yield Violation("cannot stop", f"{event['name']} was left by a process that was killed")


def reload(stage: Stage) -> Iterator[Violation]:
    """The server is told to replace its workers, under load."""
    stage.start()
    workers = stage.serving()
    with stage.load() as load:
        load.flow()
        load.wait_for_more("before the reload")
        stage.running.reload()
        stage.serving(2 * len(workers))
        stage.has_stopped(workers)
        load.wait_for_more("after the reload")
    yield from stage.stop()
    yield from stage.requests(load)
    yield from stage.values()
    yield from claims.left_in_reverse(stage.record)
    yield from stage.log_of_workers_ends(STOPPED)


FAULTS: dict[str, Fault] = {
    "start fails": start_fails,
    "start hangs": start_hangs,
    "SIGINT in the start": interrupted_start(SIGINT),
    "SIGTERM in the start": interrupted_start(SIGTERM),
    "stop fails": stop_fails,
    "stop hangs": stop_hangs,
    "value dies": value_dies,
    "refresh fails": refresh_fails,
    "refresh under load": refresh_under_load,
    "SIGTERM under load": term_under_load,
    "worker killed": worker_killed,
    "reload": reload,
}
