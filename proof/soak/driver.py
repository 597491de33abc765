"""Drives one server: rounds of load and random actions, and a look at what is left after each."""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import anyio
import anyio.abc
import httpx

from proof import claims
from proof.claims import Violation
from proof.load import KINDS
from proof.record import Record
from proof.tree import ROOT
from proof.waiting import PATIENCE

from .clients import CONNECTION, Clients, Plan
from .control import Control
from .flat import EXACT
from .foreseen import unforeseen

ENDING = 10.0  # seconds that the process may take to end
STEADY = 6.0  # seconds after which what hasn't gone stays
# What is under way when this one stops, may be cut off or thrown away: without FastAPI, too, as
# scripts/prove shows.
LOSING = ("hypercorn",)


@dataclass
class Driver:
    name: str
    seed: str
    directory: Path
    lie: str = ""
    actions: int = 12  # in a round
    each: int = 1  # clients of a kind
    points: list[dict[str, float]] = field(default_factory=list)  # calm ones
    samples: list[dict[str, float]] = field(default_factory=list)  # under load
    done: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    pid: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.began = monotonic()
        self.random = Random(f"{self.seed}/{self.name}")
        self.record = Record(self.directory / "record")
        self.locks = {name: anyio.Lock() for name in ("feed", "gauge", "scarce", "restart")}

    # The process

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The server process, with its control connection; at the end nothing is left of it."""
        ours, theirs = socket.socketpair()
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, theirs:
            self.port = listener.getsockname()[1]
            process = self._start(listener.fileno(), theirs.fileno())
        self.pid = process.pid
        try:
            async with (
                await anyio.abc.UNIXSocketStream.from_socket(ours) as stream,
                anyio.create_task_group() as tasks,
            ):
                self.control = Control(stream)
                tasks.start_soon(self.control.listen)
                await self.begin()
                yield
                await self.control.do("end")
                tasks.cancel_scope.cancel()
            with anyio.move_on_after(ENDING):
                await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            if process.poll() != 0:
                self.tell([Violation("exit code", f"it is {process.poll()}")])
            self.tell(list(claims.all_left_once_in_order(self.record)))
            self.tell(unforeseen(self.record.of("log")))
            missing = [kind for kind in KINDS if not self.seen[f"{kind} complete"]]
            self.tell(
                [Violation("load", f"there was no {kind} that went well") for kind in missing]
            )
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def _start(self, *descriptors: int) -> "subprocess.Popen[bytes]":
        with (self.directory / "output").open("ab") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-X", "faulthandler", "-m", "proof.soak.server"),
                    *(self.name, *map(str, descriptors)),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "SOAK_DIRECTORY": str(self.directory),
                    "SOAK_LIE": self.lie,
                },
                pass_fds=descriptors,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the process that drives
            )

    async def begin(self) -> None:
        """Wait until a run serves, with another clock than the first, which it goes on to hold."""
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False, verify=False) as client:
            with suppress(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{self.port}/ready")
        await self.control.do("refresh", provider="clock")

    async def restart(self, *, looks: bool = False) -> None:
        """Leave the run, and begin another. Without load, nothing may be left between the two."""
        with self.plan.failing(CONNECTION):
            left = await self.control.do("restart", looks=looks)
        found = [f"{number} {name}" for name, number in left.items() if number]
        if found:
            self.tell([Violation("nothing outlives a run", ", ".join(found))])
        await self.begin()

    # A round

    async def round(self) -> None:
        """Load, and random actions meanwhile; then a calm point, and what must hold."""
        clients = Clients(
            self.port,
            f"{self.seed}-{self.name}-{len(self.points)}",
            self.plan,
            may_lose=self.name in LOSING,
        )
        since = monotonic()
        async with anyio.create_task_group() as flowing:
            clients.start(flowing, each=self.each)
            async with anyio.create_task_group() as acting:
                for action in self._chosen():
                    await self._act(action, acting)
            clients.stop.set()
        await self.control.do("clear")
        await clients.ask_once()  # which takes the overrides back
        self.seen.update(f"{one.kind} {one.outcome}" for one in clients.seen)
        self.points.append({"time": self.seconds, **await self._settled()})
        self.tell(self._found(clients, since))
        self._forget()
        if len(self.points) == 1 or self.random.random() < 0.2:
            await self.restart(looks=True)
            self.done["restart without load"] += 1

    def _chosen(self) -> list[str]:
        """The actions of a round; each once in the first, so that all caches are filled."""
        if not self.points:
            return self.random.sample(list(ACTIONS), len(ACTIONS))
        weights = [weight for weight, _ in ACTIONS.values()]
        return self.random.choices(list(ACTIONS), weights, k=self.actions)

    async def _act(self, action: str, tasks: anyio.abc.TaskGroup) -> None:
        """One action: to its end, or while others go on."""

        async def act() -> None:
            outcome = await ACTIONS[action][1](self)
            self.done[f"{action}: {outcome}" if outcome else action] += 1

        if self.random.random() < 0.4:
            tasks.start_soon(act)
        else:
            await act()
        await anyio.sleep(self.random.uniform(0, 0.1))

    async def _settled(self) -> dict[str, float]:
        """What is there when all that was begun has ended: the least of what is counted.

        Then it is no more than at the calm point before, or gets no less: what is kept, stays.
        """
        before = self.points[-1] if self.points else None
        fell = monotonic()
        least: dict[str, float] = await self.control.do("measure")
        while monotonic() < fell + STEADY:
            if before and all(least[name] <= before[name] for name in EXACT):
                break
            await anyio.sleep(0.2)
            found = await self.control.do("measure")
            if any(found[name] < least[name] for name in EXACT):
                fell = monotonic()
            least = found | {name: min(found[name], least[name]) for name in EXACT}
        if before and any(least[name] > before[name] for name in EXACT):
            await self._tell_kept()
        return least

    async def _tell_kept(self) -> None:
        for line in await self.control.do("kept"):
            print(f"{self.seconds:6.0f} s  {self.name:10} still there: {line}", flush=True)

    def _found(self, clients: Clients, since: float) -> list[Violation]:
        """What doesn't hold in this round, which began then."""
        alive = {self.pid}  # its values need not be left
        lost = claims.nothing_lost(self.record, clients.seen)
        return [
            *(one for one in lost if one.claim != "load"),  # of all rounds together
            *claims.all_left_once_in_order(self.record, alive),
            *claims.never_dead(self.record),
            *unforeseen(self.record.of("log"), has_restarted=self.plan.covers(CONNECTION, since)),
        ]

    def _forget(self) -> None:
        """Go on with what is alive."""
        events = self.record.read()
        left = {event["name"] for event in events if event.what == "leave"}
        self.record.events = [
            event for event in events if event.what == "enter" and event["name"] not in left
        ]

    @property
    def seconds(self) -> float:
        return monotonic() - self.began

    def tell(self, violations: list[Violation]) -> None:
        for one in violations:
            print(f"{self.seconds:6.0f} s  {self.name:10} {one.claim}: {one.text}", flush=True)
            self.violations.append(
                {
                    "server": self.name,
                    "claim": one.claim,
                    "text": one.text,
                    "round": len(self.points),
                    "seconds": round(self.seconds, 1),
                }
            )


REFRESHED = ("engine", "model", "service", "own", "settings", "ledger", "gauge", "journal")

# What is done at random, how often beside the others, and how.


async def refresh(driver: Driver) -> str:
    """Refreshes, up to three at once."""
    chosen = driver.random.choices(REFRESHED, k=driver.random.choice((1, 1, 1, 2, 3)))
    async with anyio.create_task_group() as tasks:
        for provider in chosen:
            tasks.start_soon(partial(driver.control.do, "refresh", provider=provider))
    return ""


async def failing_refresh(driver: Driver) -> str:
    """The start fails, of what is refreshed or of what depends on it: the old values serve on."""
    async with driver.locks["restart"]:  # the start of a run would fail
        outcome: str = await driver.control.do(
            "refresh", provider="archive", fails=driver.random.choice(("archive", "journal"))
        )
    return outcome


async def scarce(driver: Driver) -> str:
    """A refresh that stops the old before it starts the new, and fails at first perhaps."""
    fails = driver.random.random() < 0.3
    async with driver.locks["scarce"], driver.locks["restart"]:
        with driver.plan.failing("/scarce"):
            await driver.control.do("scarce", fails=fails)
    return "failed at first" if fails else ""


async def override(driver: Driver) -> str:
    """A fake, another fake, or the same ones in a new dict; it stays until it is cleared."""
    random = driver.random
    await driver.control.do(
        "override", fake=random.choice(("fake", "other")), anew=random.random() < 0.3
    )
    return ""


async def clear(driver: Driver) -> str:
    await driver.control.do("clear")
    return ""


async def gauge(driver: Driver) -> str:
    """A fake that doesn't start: what needs it fails, and nothing else."""
    pause = driver.random.uniform(0, 0.2)
    async with driver.locks["gauge"], driver.locks["restart"]:  # the start of a run would fail
        with driver.plan.failing("/gauge"):
            await driver.control.do("break_gauge")
            await anyio.sleep(pause)
            await driver.control.do("mend_gauge")
    return ""


async def crash(driver: Driver) -> str:
    """The feed dies, and comes back. If it were dead, the end of a run would fail."""
    async with driver.locks["feed"]:
        with driver.plan.failing("/reader"):
            await driver.control.do("crash")
    return ""


async def restart(driver: Driver) -> str:
    """Another run in the same process, under load."""
    async with driver.locks["feed"], driver.locks["restart"]:
        await driver.restart()
    return ""


def doing(what: str, **facts: tuple[object, ...]) -> Callable[[Driver], Awaitable[str]]:
    async def do(driver: Driver) -> str:
        chosen = {name: driver.random.choice(some) for name, some in facts.items()}
        await driver.control.do(what, **chosen)
        return ", ".join(map(str, chosen.values()))

    return do


ACTIONS: dict[str, tuple[float, Callable[[Driver], Awaitable[str]]]] = {
    "refresh": (6, refresh),
    "refresh that fails": (2, failing_refresh),
    "refresh without room": (2, scarce),
    "override": (4, override),
    "clear": (4, clear),
    "override that fails": (1, gauge),
    "crash": (2, crash),
    "call": (3, doing("call", message=("", "fails", "hangs"))),
    "call in a thread": (2, doing("call_in_thread", message=("", "fails"))),
    "call from a thread": (2, doing("call_from_thread", message=("", "fails"))),
    "worker": (1, doing("worker")),
    "container": (1, doing("container")),
    "health": (1, doing("health")),
    "graph": (1, doing("graph")),
    "restart": (0.7, restart),
}
