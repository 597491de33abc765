"""Live: the values of a run. Whatever changes them is one `change`; what is unused drains."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import anyio

from .collect import Site
from .exceptions import LifespanDependencyError, name_of, together
from .generation import Generation, Pin, Withdrawn
from .holding import Holdings
from .instance import Instance, Recipe, Supervisor, current_instance, ended_by_itself
from .plan import Node, Plan
from .tasks import logger

Provider = Callable[..., Any]


class LiveValues:
    """The instances of a run, and the generations that its requests are pinned to.

    Every change of them, be it a startup, an override or a refresh, goes one way: instances are
    made of what is missing, and then one new generation becomes current.
    """

    def __init__(self, app: Any, *, concurrent: bool) -> None:
        self._app = app
        self.phase: Literal["starting", "serving", "stopping"] = "starting"
        self.supervisor = Supervisor(concurrent=concurrent)
        self.current = Generation(Plan({}), {}, {}, {})
        self.holdings = Holdings()
        self.originals = Plan({})  # in force without overrides: kept to the end
        self.instances: dict[Node, Instance] = {}  # the latest of each node, in start order
        self.pending: dict[Node, Instance] = {}  # what they will be after the change under way
        self.failures: dict[Node, BaseException] = {}
        self.withdrawn: dict[Node, Withdrawn] = {}
        self.changing = anyio.Lock()
        self._looking_again = False

    # Change

    async def change(
        self, plan: Plan, renewed: Collection[Node] = (), *, all_or_none: bool
    ) -> None:
        """Start what `plan` needs and does not run, or is to be renewed; then switch to it.

        With `all_or_none` the first failure is raised, and nothing has changed. Otherwise
        failures are kept for the requests that need the value.
        """
        is_same = plan is self.current.plan
        failures = {n: why for n, why in self.failures.items() if is_same and n not in renewed}
        withdrawn = {
            n: why for n, why in self.withdrawn.items() if n in plan.nodes and n not in renewed
        }
        fresh: list[Instance] = []
        before = self.instances
        try:
            for node in dict.fromkeys((*plan.nodes, *self.originals.nodes)):
                lacking = next((child for child in node.dependencies if child in withdrawn), None)
                if node in self.instances and node not in renewed:
                    self.pending[node] = self.instances[node]
                elif node not in plan.nodes and node not in self.instances:
                    continue  # an original that was overridden from the beginning
                elif lacking is not None:
                    withdrawn.setdefault(node, withdrawn[lacking])
                elif node not in withdrawn and node not in failures:
                    self.pending[node] = self._instance(node, plan)
                    fresh.append(self.pending[node])
            await self.supervisor.start(fresh, all_or_none=all_or_none)
            if all_or_none:
                _raise_failure(fresh)
            for instance in fresh:
                error = _failure(instance)
                if error is not None and error not in failures.values():
                    name = name_of(instance.node.provider)
                    logger.error("`%s` failed to start", name, exc_info=error)
                if error is not None:
                    failures[instance.node] = error
            if any(instance.given_up for instance in fresh):
                return  # this was for overrides that are gone
            kept = {node: one for node, one in self.instances.items() if node not in renewed}
            self.instances = kept | {one.node: one for one in fresh if one.started}
            self.failures, self.withdrawn = failures, withdrawn
            self._switch(plan)
        finally:
            candidates = [*before.values(), *self.pending.values(), *fresh]
            self.pending = {}
            if self.phase != "starting":  # else all is stopped together
                self._stop_unused(candidates)

    def _instance(self, node: Node, plan: Plan) -> Instance:
        arguments = {
            name: self._app if child is None else self.pending[child]
            for name, child in node.arguments
        }
        path = plan.nodes.get(node) or self.originals.nodes[node]
        start_timeout = plan.seconds(node.provider, "start_timeout")
        stop_timeout = plan.seconds(node.provider, "stop_timeout")
        recipe = Recipe(node, arguments, path, start_timeout, stop_timeout)
        return Instance(recipe, self.supervisor)

    def _switch(self, plan: Plan) -> None:
        """Make the values that there are now those of the requests that arrive from now on."""
        old = self.current
        withdrawn = dict(self.withdrawn)
        self.current = Generation(plan, self.instances, self.failures, withdrawn)
        self.supervisor.kept = self.current
        old.retire()
        self.holdings.retire(old)
        self._stop_unused(old.instances.values())
        if self.holdings.unmatched and not self._looking_again:
            # Nobody tells when such a request gets to its route, which may need nothing.
            self._looking_again = True
            self.supervisor.tasks.detach(self._keep_looking, "draining")

    async def renew(self, renewed: Collection[Node]) -> None:
        """Put new instances of nodes in the place of the old ones, or raise why that failed."""
        await self.change(self.current.plan, renewed, all_or_none=True)

    def withdraw(self, renewed: Collection[Node]) -> None:
        """Let nodes be without an instance; the old ones stop when no request holds them."""
        gone = [self.instances.pop(node) for node in renewed if node in self.instances]
        retry_after = max(1, math.ceil(sum(instance.start_seconds for instance in gone)))
        for node in self.current.plan.nodes:
            if node in renewed:
                self.withdrawn.setdefault(node, Withdrawn(retry_after))
        self._switch(self.current.plan)
        self._stop_unused(gone)

    def say_why_withdrawn(self, nodes: Collection[Node], failure: BaseException) -> None:
        """Let requests that need what was not brought back know what the last try said."""
        affected = self.withdrawn.keys() & nodes
        for node in affected:
            self.withdrawn[node] = replace(self.withdrawn[node], failure=failure)
        if affected:
            self._switch(self.current.plan)

    def to_renew(self, provider: Provider) -> set[Node]:
        """The nodes that a refresh of `provider` makes new instances of."""
        plan = self.current.plan
        renewed = {node for node in self.declared(provider) if isinstance(node, Node)}
        size = 0
        while size < len(renewed):  # what depends on these may need other things that are dead
            size = len(renewed)
            for node in [*plan.nodes][::-1]:
                if any(node in other.dependencies for other in renewed):
                    instance = self.instances.get(node)
                    if instance is None or instance.died_of is not None:
                        renewed.add(node)
            for node in [*plan.nodes, *self.instances]:
                if not (self._has_failed(node) or renewed.isdisjoint(node.dependencies)):
                    renewed.add(node)
        return renewed

    def _has_failed(self, node: Node) -> bool:
        """Whether a node failed to start, other than because of what it depends on."""
        failure = self.failures.get(node)
        inherited = (self.failures.get(child) for child in node.dependencies)
        return failure is not None and all(failure is not other for other in inherited)

    def declared(self, provider: Provider) -> list[Node | LifespanDependencyError]:
        """What stands for `provider`, wherever it is declared."""
        resolved = self.current.plan.resolved
        return [found for (_, key), found in resolved.items() if key.provider == provider]

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
        """Note that a request, or a lifespan function, is over."""
        self._stop_unused(self.holdings.release(pin))

    def look_again(self, pins: Iterable[Pin]) -> None:
        """Note that these may hold less than before."""
        self._stop_unused(self.holdings.look_again(pins))

    @contextmanager
    def holding(self, site: Site) -> Iterator[dict[str, Any]]:
        """Give the values of a site that keeps them, as a lifespan function does."""
        pin = Pin()
        pin.holder, pin.generation = site, self.current
        pin.generation.pins[pin] = None
        try:
            yield pin.generation.values_of(site)
        finally:
            self.release(pin)

    def holders(self, instances: Collection[Instance]) -> list[Pin]:
        """Who may still use one of these instances."""
        found, current = set(instances), self.current
        pins = (one for one in current.pins if not current.held_by(one).instances.isdisjoint(found))
        return list(dict.fromkeys((*pins, *self.holdings.pins(instances))))

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
        self.current.replaced.set()
        await self.supervisor.close()


def _raise_failure(instances: list[Instance]) -> None:
    """Raise the first failure of a start, if there is one, with others as notes."""
    # Those that were given up were so because of the first.
    errors = [_failure(one) for one in sorted(instances, key=lambda one: one.given_up)]
    errors += [ended_by_itself(one.died_of) for one in instances if one.died_of is not None]
    failures = [error for error in errors if error is not None]
    if not failures and not all(instance.started for instance in instances):
        failures = [RuntimeError("the start was given up")]
    failure = (
        together(
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
