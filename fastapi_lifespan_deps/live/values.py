"""Live: the values of a run. Whatever changes them is one `change`; what is unused drains."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import anyio
from starlette.types import Scope

from fastapi_lifespan_deps.absence import Absence
from fastapi_lifespan_deps.declare.collect import Injection
from fastapi_lifespan_deps.declare.params import SCOPE_KEY
from fastapi_lifespan_deps.declare.plan import Node, Plan, Provider
from fastapi_lifespan_deps.exceptions import combined

from .generation import Generation, Pin
from .holding import Holdings
from .instance import Instance, Recipe, current_instance
from .supervisor import Supervisor
from .tasks import GivenUp

Phase = Literal["starting", "serving", "stopping"]


class LiveValues:
    """The instances of a run, and the generations that its requests are pinned to.

    Every change of them, be it a startup, an override or a refresh, goes one way: instances are
    made of what is missing, and then one new generation becomes current.
    """

    def __init__(self, application: Any, supervisor: Supervisor) -> None:
        self._application = application  # what a provider gets that takes the application
        self._phase: Phase = "starting"
        self.supervisor = supervisor
        self.current = Generation(Plan({}), {}, {})
        self.holdings = Holdings()
        self.originals = Plan({})  # in force without overrides: kept to the end
        self.instances: dict[Node, Instance] = {}  # the latest of each node, in start order
        self.pending: dict[Node, Instance] = {}  # what they will be after the change under way
        self.absent: dict[Node, Absence] = {}  # what should be there, and is not
        self.changing = anyio.Lock()
        self._looking_again = False

    @property
    def phase(self) -> Phase:
        """Where the run is. An event loop that is torn down stops it before anybody says so."""
        is_torn_down = self._phase == "serving" and self.supervisor.is_closing
        return "stopping" if is_torn_down else self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase

    # Change

    async def change(
        self, plan: Plan, renewed: Collection[Node] = (), *, all_or_none: bool
    ) -> None:
        """Start what `plan` needs and does not run, or is to be renewed; then switch to it.

        With `all_or_none` the first failure is raised, and nothing has changed. Otherwise
        failures are kept for the requests that need the value.
        """
        there = {node: one for node, one in self.instances.items() if node not in renewed}
        originals = (node for node in self.originals.nodes if node in self.instances)
        to_start, absent = missing(
            (*plan.nodes, *originals), there, self._still_absent(plan, renewed)
        )
        pending = dict(there)
        for node in to_start:
            pending[node] = self._instance(node, plan, pending)
        fresh = [pending[node] for node in to_start]
        replaced = set(self.replaced(renewed))
        await self._start(fresh, pending, all_or_none=all_or_none)
        _note_failures(fresh, absent)
        if any(instance.given_up for instance in fresh):  # for overrides that are gone
            return self._stop_unused(pending.values())
        self.instances = {
            node: one for node, one in pending.items() if one.started and one not in replaced
        }
        self.absent = absent
        self._switch(plan, [*there.values(), *replaced])

    def _still_absent(self, plan: Plan, renewed: Collection[Node]) -> dict[Node, Absence]:
        """What is absent and stays so: with another plan, what has failed is tried again."""
        is_same = plan is self.current.plan
        return {
            node: why
            for node, why in self.absent.items()
            if node not in renewed and (node in plan.nodes if why.is_withdrawn else is_same)
        }

    def _instance(self, node: Node, plan: Plan, pending: Mapping[Node, Instance]) -> Instance:
        arguments = {
            name: self._application if child is None else pending[child]
            for name, child in node.arguments
        }
        path = plan.nodes.get(node) or self.originals.nodes[node]
        start_timeout = plan.option(node.provider, "start_timeout")
        stop_timeout = plan.option(node.provider, "stop_timeout")
        recipe = Recipe(node, arguments, path, start_timeout, stop_timeout)
        return Instance(recipe, self.supervisor)

    async def _start(
        self, fresh: list[Instance], pending: dict[Node, Instance], *, all_or_none: bool
    ) -> None:
        self.pending = pending
        try:
            await self.supervisor.start(fresh, all_or_none=all_or_none)
            if all_or_none:
                _raise_failure(fresh)
        except BaseException:
            self.pending = {}
            if self.phase != "starting":  # else all is stopped together
                self._stop_unused(pending.values())
            raise
        self.pending = {}

    def _switch(self, plan: Plan, others: Iterable[Instance] = ()) -> None:
        """Make the values that there are now those of the requests that arrive from now on.

        There is no `await` in it: a request sees all of a change, or nothing. What isn't needed
        any more stops, also of `others`.
        """
        old = self.current
        self.current = Generation(plan, self.instances, dict(self.absent))
        self.supervisor.kept = self.current
        old.retire()
        self.holdings.retire(old)
        self._stop_unused([*old.instances.values(), *others])
        self._await_matches()

    async def renew(self, renewed: Collection[Node]) -> None:
        """Put new instances of nodes in the place of the old ones, or raise why that failed."""
        await self.change(self.current.plan, renewed, all_or_none=True)

    def withdraw(self, renewed: Collection[Node]) -> None:
        """Let nodes be without an instance; the old ones stop when no request holds them."""
        gone = [self.instances.pop(node) for node in renewed if node in self.instances]
        retry_after = max(1, math.ceil(sum(instance.start_seconds or 0 for instance in gone)))
        for node in renewed:
            if node in self.current.plan.nodes and not self._is_withdrawn(node):
                self.absent[node] = Absence(retry_after=retry_after)
        self._switch(self.current.plan, gone)

    def note_failure(self, nodes: Collection[Node], failure: BaseException) -> None:
        """Let requests that need what was not brought back know what the last try said."""
        affected = [node for node in nodes if self._is_withdrawn(node)]
        for node in affected:
            self.absent[node] = replace(self.absent[node], failure=failure)
        if affected:
            self._switch(self.current.plan)

    def to_renew(self, provider: Provider) -> set[Node]:
        """The nodes that a refresh of `provider` makes new instances of.

        What depends on it is among them; and what these need besides, and is dead.
        """
        plan = self.current.plan
        found = (node for _, node in plan.behind.get(provider, ()))
        left = [node for node in found if isinstance(node, Node)]
        renewed: set[Node] = set()
        while left:
            node = left.pop()
            if node not in renewed:
                renewed.add(node)
                left += [one for one in self._dependents(node) if self._may_start(one, node)]
                left += [one for one in node.dependencies if self._is_dead(one)]
        return renewed

    def _dependents(self, node: Node) -> list[Node]:
        """What takes a node, and is planned or runs: overridden, it still does."""
        originals = self.originals.dependents.get(node, ())
        planned = self.current.plan.dependents.get(node, ())
        return [*planned, *(one for one in originals if one in self.instances)]

    def _may_start(self, node: Node, child: Node) -> bool:
        """Whether a node may start when one that it takes does; not if it failed for another."""
        why = self.absent.get(node)
        return why is None or why.is_withdrawn or why is self.absent.get(child)

    def _is_withdrawn(self, node: Node) -> bool:
        why = self.absent.get(node)
        return why is not None and why.is_withdrawn

    def _is_dead(self, node: Node) -> bool:
        instance = self.instances.get(node)
        is_there = instance is not None and instance.died_of is None
        return not is_there and node in self.current.plan.nodes

    def replaced(self, renewed: Collection[Node]) -> list[Instance]:
        """The instances that go when these nodes are renewed, in start order.

        Among them is what an earlier refresh has left, if requests still use it.
        """
        instances = self.supervisor.instances
        return self.supervisor.on_top_of(one for one in instances if one.node in renewed)

    # Pin

    def inside(self) -> Instance | None:
        """The instance whose provider, or a task that it has started, asks."""
        instance = current_instance.get(None)
        return instance if instance in self.supervisor.instances else None

    def release(self, pin: Pin) -> None:
        """Note that a request, or a lifespan function, is over; unless a thread of it goes on."""
        has_ended = pin.ends()
        for inner in pin.inner:
            self.release(inner)
        if has_ended:
            self._stop_unused(self.holdings.release(pin))
        else:
            pin.keep_to_its_route()

    def look_again(self, pins: Iterable[Pin]) -> None:
        """Note that these may hold less than before."""
        self._stop_unused(self.holdings.look_again(pins))

    def pin(self, injection: Injection) -> Pin:
        """Pin what keeps its values, as a lifespan function does; `release` it in the end."""
        return Pin.of(injection, self.current)

    def following(self, outer: Pin, scope: Scope) -> Pin:
        """The pin of a copy of a request's scope, which no router of ours has seen."""
        outer.check_request()
        pin = scope[SCOPE_KEY] = self.pin_beside(outer, scope)
        outer.extend().inner += (pin,)
        return pin

    def pin_beside(self, outer: Pin, scope: "Scope | Injection") -> Pin:
        """Pin a request that another one passes on, or a call inside; `release` it in the end."""
        generation = self._lasting(outer.generation)
        pin = Pin.of(scope, generation, outer.run)
        if generation is not self.current:
            self.holdings.hold(generation, pin)
            self._await_matches()
        return pin

    def give_everything(self, pin: Pin) -> None:
        """Let a request hold every value: it is given the container, maybe by hand.

        Those are the values that it sees itself. If some of them are gone, for nobody knew that it
        would ask, they are the current ones.
        """
        held = pin.generation if pin.everything_of is None else pin.everything_of
        if held is not self.current:
            declared = held.reachable_by(pin)
            if declared is None or not declared.by_container:
                held = self._lasting(held)
        if held is pin.everything_of:
            return
        before, pin.extend().everything_of = pin.everything_of, held
        if before is not None and before not in pin.generations:
            self._stop_unused(self.holdings.let_go(before, pin))
        held.pins.setdefault(pin, None)
        if held is not self.current:
            self.look_again([pin])

    def _lasting(self, generation: Generation) -> Generation:
        """A generation, or the current one if it has lost values."""
        return generation if generation.is_whole else self.current

    def holders(self, instances: Collection[Instance]) -> list[Pin]:
        """Who may still use one of these instances."""
        found, current = set(instances), self.current
        # a list: calls in threads come and go
        pins = (
            one
            for one in list(current.pins)
            if not current.held_by(one).instances.isdisjoint(found)
        )
        return list(dict.fromkeys((*pins, *self.holdings.pins(instances))))

    def taken_by(self, task: object) -> Iterator[Pin]:
        """The streams whose items a task takes: they end when it lets them."""
        pins = (*list(self.current.pins), *self.holdings.all_pins)
        takers = ((pin, pin.more and pin.more.taker) for pin in pins)
        return (pin for pin, taker in takers if taker is not None and taker is task)

    def _await_matches(self) -> None:
        """Look again at requests that have not got to their route: it may need nothing."""
        if self.holdings.unmatched and not self._looking_again:
            self._looking_again = True  # nobody tells when one gets there
            self.supervisor.tasks.detach(self._keep_looking, "draining")

    async def _keep_looking(self) -> None:
        while self.holdings.unmatched:
            with anyio.move_on_after(1):
                return await self.supervisor.closing.wait()
            self.look_again(self.holdings.unmatched)
        self._looking_again = False

    # Stop

    def _stop_unused(self, candidates: Iterable[Instance]) -> None:
        """Stop those that no plan and no request needs any more."""
        unused = [
            instance
            for instance in dict.fromkeys(candidates)
            if not (instance.is_stopping or instance in self.holdings or self._is_needed(instance))
        ]
        for instance in unused:
            if self.instances.get(instance.node) is instance:
                del self.instances[instance.node]
        self.supervisor.retire(unused)

    def _is_needed(self, instance: Instance) -> bool:
        node = instance.node
        is_latest = self.instances.get(node) is instance
        is_planned = node in self.current.plan.nodes or node in self.originals.nodes
        return self.pending.get(node) is instance or (is_latest and is_planned)

    async def close(self) -> None:
        """Stop everything, in reverse; then raise what went wrong on the way."""
        await self.supervisor.close()


def missing(
    planned: Iterable[Node], there: Collection[Node], absent: Mapping[Node, Absence]
) -> tuple[list[Node], dict[Node, Absence]]:
    """The nodes to start, in the order in which they are planned; and those to be absent.

    What is absent is not started, and neither is what needs something that is withdrawn.
    """
    to_start, absent = [], dict(absent)
    for node in dict.fromkeys(planned):
        needed = (absent.get(child) for child in node.dependencies)
        withdrawn = next((why for why in needed if why is not None and why.is_withdrawn), None)
        if node in there or (node in absent and absent[node].is_withdrawn):
            continue
        if withdrawn is not None:
            absent[node] = withdrawn
        elif node not in absent:
            to_start.append(node)
    return to_start, absent


def _note_failures(fresh: list[Instance], absent: dict[Node, Absence]) -> None:
    """Note why instances have not started: what needs another that has not, for its reason."""
    for instance in fresh:
        error = _failure(instance)
        if error is not None:
            needed = (absent.get(child) for child in instance.node.dependencies)
            whys = (why for why in needed if why is not None and why.failure is error)
            absent[instance.node] = next(whys, None) or Absence(error)


def _raise_failure(instances: list[Instance]) -> None:
    """Raise the first failure of a start, if there is one, with others as notes."""
    # Those that were given up were so because of the first.
    errors = [_failure(one) for one in sorted(instances, key=lambda one: one.given_up)]
    errors += [one.died_of.death() for one in instances if one.died_of is not None]
    failures = [error for error in errors if error is not None]
    if not failures and not all(instance.started for instance in instances):
        failures = [GivenUp("the start was given up")]
    failure = (
        combined(
            failures[0], failures[1:], is_serving=False, heading="Meanwhile, in another start:"
        )
        if failures
        else None
    )
    if failure is not None:
        try:
            raise failure
        finally:
            del failure, failures, errors  # see `Supervisor.close`


def _failure(instance: Instance) -> BaseException | None:
    """Why an instance has not started. It forgets that: the error's traceback leads to it."""
    if instance.started:
        return None
    error, instance.error = instance.error, None
    return None if instance.given_up and not isinstance(error, Exception) else error
