"""Health: whether what lives is in order, by the checks that its declarations give."""

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable
from threading import Thread
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

from anyio import CancelScope, CapacityLimiter, Event, current_time, move_on_after

from fastapi_lifespan_deps._compat import Kind
from fastapi_lifespan_deps.absence import invalid_override, stopped
from fastapi_lifespan_deps.declare.options import Check
from fastapi_lifespan_deps.declare.params import Key
from fastapi_lifespan_deps.declare.plan import Node, OverridesProvider, Plan, Provider
from fastapi_lifespan_deps.declare.provider import how_to_call
from fastapi_lifespan_deps.exceptions import (
    LifespanDependencyError,
    UninitializedLifespanDependency,
    location_of,
    name_of,
)
from fastapi_lifespan_deps.live.asking import Standing, under
from fastapi_lifespan_deps.live.generation import Generation, Pin
from fastapi_lifespan_deps.live.instance import Instance
from fastapi_lifespan_deps.live.run import Run
from fastapi_lifespan_deps.live.tasks import call_soon

from .order import CallHolder

HealthStatus = Literal["pass", "fail"]

# How many synchronous checks of one run may be under way, those among them that hang.
THREADS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyHealth:
    """The health of a lifespan dependency at one moment.

    Attributes:
        provider: the callable, or what overrides it.
        name: its qualified name.
        where: its `file:line`, as far as it can be known.
        status: `"pass"` or `"fail"`. Without a check of its own it passes while it is alive.
        seconds: how long the check took; None where none was made.
        error: why it fails: what the check has raised, or a `TimeoutError`, or the
            `UninitializedLifespanDependency` that requests get. It may say what no client should
            read, and its traceback leads to the value: don't keep it.
    """

    provider: Callable[..., Any]
    name: str
    where: str
    status: HealthStatus
    seconds: float | None = None
    error: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What `check_health` has found. Plain data of one moment.

    Attributes:
        status: `"fail"` if one of the dependencies fails, else `"pass"`.
        dependencies: all of them, in start order.

    Example:
        ```python
        report = await container.check_health()
        failing = [one.name for one in report.dependencies if one.status == "fail"]
        ```
    """

    status: HealthStatus
    dependencies: tuple[DependencyHealth, ...]


class Flight:
    """A check of one instance. It is settled in time; its end may come long after that."""

    def __init__(self, instance: Instance, check: Check, pin: Pin, timeout: float) -> None:
        self.instance = instance
        self.check = check
        self.pin = pin  # the value is not stopped under its check
        self.began = current_time()
        self.timeout = timeout
        self.scope = CancelScope()
        self.settled = Event()
        self.is_in_thread = False
        self.error: BaseException | None = None
        self.seconds = 0.0

    @property
    def is_late(self) -> bool:
        return current_time() >= self.began + self.timeout

    def late(self, timeout: float | None = None) -> TimeoutError:
        """The error of a check that has not answered in time."""
        seconds = self.timeout if timeout is None else timeout
        return TimeoutError(f"{_called(self.check)} has not answered within {seconds:g} seconds")


# Whose check is under way in whose code we are.
_checking: ContextVar["HealthChecks"] = ContextVar("fastapi_lifespan_deps_checking")


class HealthChecks:
    """The checks of a run: one at a time for each instance, however many ask."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._threads = CapacityLimiter(THREADS)
        self._flights: dict[Instance, Flight] = {}  # hanging ones among them
        # When the latest check of each began, how long it took, and whether it has passed. Not
        # why it has failed: an error holds the value, by its traceback.
        self._latest: WeakKeyDictionary[Instance, tuple[float, float, bool]] = WeakKeyDictionary()
        self._unhealthy: WeakSet[Instance] = WeakSet()
        self._is_closed = False

    async def report(
        self,
        timeout: float,
        providers: Collection[Provider] | None = None,
        *,
        max_age: float = 0,
    ) -> HealthReport:
        """The health of what requests get that arrive now.

        Only the checks of these providers are made; others pass while they are alive. What was
        found less than `max_age` seconds ago holds.
        """
        self._run.check_here()
        if _checking.get(None) is self:
            raise LifespanDependencyError(
                "A health check asks for the health of all, and would wait for itself. Let it look "
                "at its own value alone."
            )
        with move_on_after(timeout):  # what an override starts may take longer
            await self._run.overrides.apply()
        generation = self._run.current
        plan = generation.plan
        chosen = plan.nodes if providers is None else nodes_of(plan, providers)
        targets = _targets(plan)
        found: list[DependencyHealth | Flight] = []
        for node in plan.nodes:
            check = plan.option(node.provider, "health") if node in chosen else None
            try:
                instance = self._alive(generation, node)
            except UninitializedLifespanDependency as error:
                found.append(_health(node.provider, error=error))
                continue
            found.append(
                _health(node.provider)
                if check is None
                else self._known(instance, max_age)
                or self._flights.get(instance)
                or self._begin(instance, check, targets[node], timeout)
            )
        found += _invalid(plan)
        flights = [one for one in found if isinstance(one, Flight)]
        await self._settled(flights, timeout)
        healths = tuple(_of(one, timeout) if isinstance(one, Flight) else one for one in found)
        is_failing = any(one.status == "fail" for one in healths)
        return HealthReport(status="fail" if is_failing else "pass", dependencies=healths)

    def has_died(self, providers: Collection[Provider]) -> bool:
        """Whether one of these, or what it depends on, has ended by itself."""
        generation = self._run.current
        instances = map(generation.instances.get, nodes_of(generation.plan, providers))
        return any(one is not None and one.died_of is not None for one in instances)

    def close(self) -> None:
        """Let no more checks begin, and cut off those that are under way."""
        self._is_closed = True
        for flight in list(self._flights.values()):
            self._settle(flight, stopped(flight.instance.node.provider))

    def _alive(self, generation: Generation, node: Node) -> Instance:
        instance = generation.instance(node, node.provider)
        if self._is_closed:
            raise stopped(node.provider)
        return instance

    def _known(self, instance: Instance, max_age: float) -> DependencyHealth | None:
        """What the latest check has found, if that is not too long ago."""
        began, seconds, passed = self._latest.get(instance, (0.0, 0.0, False))
        if instance not in self._latest or current_time() - began - seconds >= max_age:
            return None
        return _health(instance.node.provider, None if passed else "fail", seconds=seconds)

    def _begin(
        self,
        instance: Instance,
        check: Check,
        target: tuple[OverridesProvider, Key],
        timeout: float,
    ) -> Flight:
        run = self._run
        overrides_provider, key = target
        holder = CallHolder(overrides_provider, ((None, key),), check)
        flight = Flight(instance, check, Pin.of(holder, run.current, run), timeout)
        self._flights[instance] = flight
        name = f"health of {name_of(instance.node.provider)}"
        # Tasks of the run, for others may join; and nobody waits for them, not even the end of
        # the run, since a check may never end.
        spawn = run.live.supervisor.tasks.spawn
        spawn(partial(self._fly, flight, instance.value), partial(self._landed, flight), name)
        spawn(partial(self._watch, flight), lambda: None, name)
        return flight

    async def _fly(self, flight: Flight, value: Any) -> None:
        """Make the check. It may raise anything, and hang, and take no notice of its time."""
        run, check = self._run, flight.check
        under.set(Standing(run, run.overrides_provider, flight.pin, under.get(None)))
        _checking.set(self)
        error: BaseException | None = None
        try:
            with flight.scope:
                if how_to_call(check) is Kind.FUNCTION:
                    result = await self._in_thread(flight, value)
                else:
                    result = check(value)
                while isawaitable(result):  # a lambda around an async function, say
                    result = await result
                if _is_false(result):
                    error = LifespanDependencyError(f"{_called(check)} has returned False")
        except BaseException as raised:  # also asyncio's own cancellation: of what it waits for
            error = raised
        self._settle(flight, error)
        self._let_go(flight)
        del error, flight, value  # the traceback leads to here: see `Supervisor.close`

    async def _in_thread(self, flight: Flight, value: Any) -> Any:
        """Call it in a thread that nobody waits for, neither the event loop nor the process."""
        await self._threads.acquire_on_behalf_of(flight)
        outcome: list[tuple[Any, BaseException | None]] = []
        done = Event()
        call = partial(flight.check, value)
        end = partial(call_soon, self._run.loop, self._left_thread, flight, done)
        work = partial(_work, call, outcome, end)
        with ExitStack() as stack:
            stack.callback(self._threads.release_on_behalf_of, flight)
            context = copy_context()
            Thread(target=context.run, args=(work,), name="health check", daemon=True).start()
            stack.pop_all()
        flight.is_in_thread = True
        await done.wait()
        result, error = outcome.pop()
        if error is None:
            return result
        try:
            raise error
        finally:
            del error, flight, value, call, work, end  # see `Supervisor.close`

    def _left_thread(self, flight: Flight, done: Event) -> None:
        self._threads.release_on_behalf_of(flight)
        flight.is_in_thread = False
        done.set()
        self._let_go(flight)

    async def _watch(self, flight: Flight) -> None:
        """Settle a check when its time is up, whoever still waits for it, and whatever it does."""
        with move_on_after(flight.timeout):
            return await flight.settled.wait()
        self._settle(flight, flight.late())

    async def _settled(self, flights: list[Flight], timeout: float) -> None:
        """Wait for what these find, as long as there is time."""
        with move_on_after(timeout):
            for flight in flights:
                await flight.settled.wait()
        for flight in flights:
            if flight.is_late:  # its own watch may be as late
                self._settle(flight, flight.late())

    def _settle(self, flight: Flight, error: BaseException | None) -> None:
        """Note what a check has found, once, and hold its value no longer."""
        if flight.settled.is_set():
            return
        flight.error, flight.seconds = error, current_time() - flight.began
        flight.settled.set()
        flight.scope.cancel()
        if not flight.pin.generation.give_back(flight.pin):
            self._run.live.release(flight.pin)
        self._latest[flight.instance] = flight.began, flight.seconds, error is None
        self._tell(flight)

    def _tell(self, flight: Flight) -> None:
        """Tell of a change, of what serves and is alive: the rest has been told otherwise."""
        instance, error = flight.instance, flight.error
        is_latest = self._run.live.instances.get(instance.node) is instance
        is_change = (error is None) is (instance in self._unhealthy)
        if self._is_closed or not (is_latest and instance.is_alive and is_change):
            return
        if error is None:
            self._unhealthy.discard(instance)
        else:
            self._unhealthy.add(instance)
        self._run.events.tell(
            "healthy" if error is None else "unhealthy",
            instance.node.provider,
            seconds=flight.seconds,
            error=error,
        )

    def _landed(self, flight: Flight) -> None:
        """Note that the task of a check is over; it may have been cancelled before it began."""
        self._settle(flight, RuntimeError(f"{_called(flight.check)} was cancelled"))
        self._let_go(flight)

    def _let_go(self, flight: Flight) -> None:
        """Let another check begin, if nothing of this one goes on."""
        is_over = flight.settled.is_set() and not flight.is_in_thread
        if is_over and self._flights.get(flight.instance) is flight:
            del self._flights[flight.instance]


def _work(
    call: Callable[[], Any],
    outcome: list[tuple[Any, BaseException | None]],
    end: Callable[[], object],
) -> None:
    try:
        outcome.append((call(), None))
    except BaseException as error:
        outcome.append((None, error))
    end()
    del call, end  # see `Supervisor.close`


def nodes_of(plan: Plan, providers: Iterable[Provider]) -> set[Node]:
    """What is in the place of some providers."""
    found = (one for provider in providers for _, one in plan.behind.get(provider, ()))
    return {node for node in found if isinstance(node, Node)}


def _targets(plan: Plan) -> dict[Node, tuple[OverridesProvider, Key]]:
    """How each node can be asked for."""
    return {found: target for target, found in plan.resolved.items() if isinstance(found, Node)}


def _invalid(plan: Plan) -> list[DependencyHealth]:
    """What has no node, for its override makes no sense."""
    found = {
        key.provider: one for (_, key), one in plan.resolved.items() if not isinstance(one, Node)
    }
    return [
        _health(provider, error=invalid_override(provider, error))
        for provider, error in found.items()
    ]


def _of(flight: Flight, timeout: float) -> DependencyHealth:
    """What a check has found, for who may have waited less than it takes."""
    provider = flight.instance.node.provider
    if not flight.settled.is_set():
        return _health(provider, error=flight.late(timeout), seconds=timeout)
    return _health(provider, error=flight.error, seconds=flight.seconds)


def _health(
    provider: Provider,
    status: Literal["fail"] | None = None,
    *,
    error: BaseException | None = None,
    seconds: float | None = None,
) -> DependencyHealth:
    return DependencyHealth(
        provider=provider,
        name=name_of(provider),
        where=location_of(provider),
        status="fail" if status or error is not None else "pass",
        seconds=seconds,
        error=error,
    )


def _is_false(result: object) -> bool:
    """Whether it is False, or NumPy's; not whatever else is falsy: no rows, say."""
    return type(result).__name__ in ("bool", "bool_") and not result


def _called(check: Check) -> str:
    return f"`{name_of(check)}` ({location_of(check)})"
