"""Serve: the running set of one run, and every change of it: start, override, refresh."""

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import Any, Literal

import anyio
from starlette.types import Scope

from ._compat import exit_stack, overrides_provider
from .binding import BoundCall, bind
from .collect import Function, Route, Site
from .exceptions import (
    LifespanDependencyError,
    RefreshError,
    UninitializedLifespanDependency,
    name_of,
)
from .generation import (
    ASKED_KEY,
    COPY_KEY,
    Generation,
    Withdrawn,
    asking,
    labels,
    requesting,
    with_all,
)
from .instance import (
    Instance,
    Supervisor,
    Work,
    current_instance,
    current_loop,
    ended_by_itself,
    logger,
)
from .params import Key, Marker
from .plan import Declaration, Domain, Node, Overrides, Plan, Planner

Policy = Literal["availability_preserving", "resource_preserving"]
Provider = Callable[..., Any]


class Run:
    """One startup-to-shutdown of an application: owner of its instances and generations.

    Whatever changes the set of live values is a `_change`, one at a time, in a task of its own:
    it makes instances of what is missing, and then one new generation current.
    """

    def __init__(
        self,
        app: Any,
        collect: Callable[[], Iterable[Route | Function]],
        *,
        concurrent: bool = False,
    ) -> None:
        self.app = app
        self.thread = get_ident()
        self._loop = current_loop()
        # whether the event loop is running; if that is in our thread, we are in it (trio: always)
        self.is_running: Callable[[], bool] = getattr(self._loop, "is_running", lambda: True)
        self.phase: Literal["starting", "serving", "stopping"] = "starting"
        self.current = Generation(self, Plan({}), {}, {}, {})
        self.retired: list[Generation] = []  # not current, still used by requests
        self._collect = collect
        self._sources: list[Route | Function] = []
        self._others: list[Function] = []
        self._planner = Planner()
        self._originals = Plan({})  # in force without overrides: kept to the end
        self._supervisor = Supervisor(self._forget_values, concurrent=concurrent)
        self._instances: dict[Node, Instance] = {}  # the latest of each node, in start order
        self._coming: dict[Node, Instance] = {}  # what they will be after the change under way
        self._failures: dict[Node, BaseException] = {}
        self._withdrawn: dict[Node, Withdrawn] = {}
        self._changing = anyio.Lock()
        self._refreshing = anyio.Lock()
        self._refreshes: dict[Provider, tuple[Policy, Work[Draining]]] = {}
        self._overriding: Work[None] | None = None
        self._in_force: Mapping[Domain, Overrides | None] = {}  # overrides; see below
        self._applying: dict[Domain, Overrides] | None = None
        self._timers: set[Provider] = set()
        self._looking_again = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the application has scope "lifespan"."""
        return not (self.current.plan.resolved or self._originals.resolved)

    def is_here(self) -> bool:
        """Whether we are in the event loop of this run."""
        return self._loop is current_loop()

    def covers(self, router: Any) -> bool:
        """Whether the routes of an application's router belong to this run."""
        return router.dependency_overrides_provider in self.current.plan.overrides

    # Start

    async def start(self, others: Iterable[Function] = ()) -> None:
        """Collect what the application declares, and others, and start what does not run yet.

        Called again when the application's own startup is over: it may have added routes.
        Raise the first error, of a declaration or of a start.
        """
        for instance in self._instances.values():
            if instance.casualty is not None:
                raise ended_by_itself(instance.casualty)
        self._others += others
        known = {id(source.target) for source in self._sources}
        self._sources = [*self._collect(), *self._others]
        is_new = not known or any(id(source.target) not in known for source in self._sources)
        if is_new or self.overrides_changed():
            await self._supervisor.work(self._start, "startup").result()

    async def _start(self) -> None:
        async with self._changing:
            plan = self._plan_anew()
            for error in plan.errors:
                raise error
            bound: dict[tuple[int, int], BoundCall] = {}
            for source in self._sources:
                if isinstance(source, Route):
                    bind(source, bound)
            await self._change(plan, all_or_none=True)

    def serve(self) -> None:
        """Note that the application serves from now on: values may be refreshed."""
        self.phase = "serving"
        self._keep_refreshing()

    # Override

    def overrides_changed(self) -> bool:
        """Whether overrides are not what the current generation was made for."""
        for domain, applied in self._in_force.items():
            if domain.dependency_overrides != applied:
                return True
        return False

    async def apply_overrides(self) -> None:
        """Make the overrides that are set now effective. Failures are left to the requests."""
        instance = self._inside()
        if instance is not None and not instance.settled.is_set():
            return  # a provider that is starting sends the request: it would wait for itself
        while self.overrides_changed():
            wanted = self._overrides()
            if self._applying not in (None, wanted):
                for instance in self._coming.values():
                    instance.give_up_start()  # nobody wants it any more
            if wanted == self.current.plan.overrides:
                return
            if self._overriding is None:
                self._overriding = self._supervisor.work(self._override, "dependency overrides")
            await self._overriding.result()

    async def _override(self) -> None:
        try:
            async with self._changing:
                await self._follow_overrides()
        finally:
            self._overriding = None

    async def _follow_overrides(self) -> None:
        if not self.overrides_changed():
            return
        plan = self._plan_anew()
        for error in plan.errors:
            logger.error("A dependency override is not valid", exc_info=error)
        self._applying = plan.overrides
        self._in_force = dict.fromkeys(plan.overrides)  # no request may pass by now
        try:
            await self._change(plan, all_or_none=False)
        finally:
            self._applying = None
            self._in_force = self.current.plan.overrides

    # Refresh

    async def refresh(
        self,
        provider: Provider,
        policy: Policy = "availability_preserving",
        drain_timeout: float | None = None,
        scope: Scope | None = None,
    ) -> "Draining":
        """Replace the instances of a provider, and of what depends on it, by fresh ones.

        `scope` is that of the request which asks, as it is at its route.
        """
        if self.phase != "serving" or self._supervisor.is_closing:
            raise RefreshError(
                provider,
                f"the application is {self.phase}",
                "Refresh while it serves: after its startup, and before its shutdown.",
            )
        instance = self._inside()
        if instance is not None and not instance.is_alive:
            raise RefreshError(
                provider,
                f"`{name_of(instance.node.provider)}` asks for it while it starts or stops itself",
                "Ask in a task that the dependency starts, or after the startup.",
            )
        asked_by = requesting.get()
        if asked_by is not None and scope is not None and asked_by is not scope:
            asked_by[COPY_KEY] = scope
        self._to_renew(self.current.plan, provider)  # raises if there is nothing to refresh
        under_way = self._refreshes.get(provider)
        if under_way is None and policy == "resource_preserving" and drain_timeout is None:
            self._check_lasting(provider)
        policies = {other: policy for other, (policy, _) in self._refreshes.items()}
        for other, its_policy in ({provider: policy} | policies).items():
            if its_policy == "resource_preserving":
                self._check_asking(provider, other)
        for asked in (*(scope for scope, _ in self._asking()), *([] if scope is None else [scope])):
            asked[ASKED_KEY] = True
        if under_way is None:
            body = partial(self._refresh, provider, policy, drain_timeout)
            work = self._supervisor.work(body, f"refresh of {name_of(provider)}")
            under_way = self._refreshes[provider] = policy, work
        else:
            self.drain()  # it may be waiting for what the request lets go of
        return await under_way[1].result()

    async def _refresh(
        self, provider: Provider, policy: Policy, drain_timeout: float | None
    ) -> "Draining":
        name = name_of(provider)
        renewed: set[Node] = set()
        try:
            async with self._refreshing:
                logger.info("Refreshing `%s`", name)
                async with self._changing:
                    await self._follow_overrides()
                    renewed = self._to_renew(self.current.plan, provider)
                    old = self._replaced(renewed)
                    if policy == "resource_preserving":
                        self._withdraw(renewed)
                    else:
                        await self._change(self.current.plan, renewed, all_or_none=True)
                draining = Draining(self, provider, old)
                if policy == "resource_preserving":
                    await self._drain_within(draining, drain_timeout)
                    async with self._changing:
                        await self._follow_overrides()
                        renewed = self._to_renew(self.current.plan, provider)
                        renewed.difference_update(self._instances)  # an override is fresh already
                        await self._change(self.current.plan, renewed, all_or_none=True)
                elif drain_timeout is not None:
                    drain = partial(self._drain_within, draining, drain_timeout)
                    self._supervisor.work(drain, f"draining of {name}")
                logger.info("Refreshed `%s`", name)
                return draining
        except Exception as error:
            if self._supervisor.is_closing:
                raise RefreshError(provider, "the application stops", "It stops it too.") from error
            for node in self._withdrawn.keys() & renewed:
                self._withdrawn[node] = replace(self._withdrawn[node], failure=error)
            self._switch(self.current.plan)  # requests that need these are told why
            raise
        finally:
            del self._refreshes[provider]

    def _inside(self) -> Instance | None:
        """The instance whose provider, or a task that it has started, asks."""
        instance = current_instance.get(None)
        return instance if instance in self._supervisor.instances else None

    def _to_renew(self, plan: Plan, provider: Provider) -> set[Node]:
        """The nodes that a refresh of `provider` makes new instances of."""
        found = self._declared(plan, provider)
        renewed = {node for node in found if isinstance(node, Node)}
        if not renewed:
            error = RefreshError(
                provider,
                "its override is not valid" if found else "the application does not declare it",
                "Give the callable that a route, a dependency or a hook declares.",
            )
            raise error from next((one for one in found if isinstance(one, Exception)), None)
        for node in [*plan.nodes][::-1]:  # what is dead, or was not brought back, below these
            if any(node in other.dependencies for other in renewed):
                instance = self._instances.get(node)
                if instance is None or instance.casualty is not None:
                    renewed.add(node)
        for node in [*plan.nodes, *self._instances]:
            if not (self._has_failed(node) or renewed.isdisjoint(node.dependencies)):
                renewed.add(node)
        return renewed

    def _has_failed(self, node: Node) -> bool:
        """Whether a node failed to start, other than because of what it depends on."""
        failure = self._failures.get(node)
        inherited = (self._failures.get(child) for child in node.dependencies)
        return failure is not None and all(failure is not other for other in inherited)

    def _declared(self, plan: Plan, provider: Provider) -> list[Node | LifespanDependencyError]:
        """What stands for `provider`, wherever it is declared."""
        return [found for (_, key), found in plan.resolved.items() if key.provider == provider]

    def _replaced(self, renewed: Collection[Node]) -> list[Instance]:
        """The instances that go when these nodes are renewed, in start order.

        Among them is what an earlier refresh has left, if requests still use it.
        """
        old = with_all(
            (instance for instance in self._supervisor.instances if instance.node in renewed),
            lambda instance: instance.dependents,
        )
        return [instance for instance in self._supervisor.instances if instance in old]

    def _check_asking(self, provider: Provider, withdrawn: Provider) -> None:
        """Refuse a refresh that would wait for the requests that ask for it.

        It has to wait for another one that withdraws a value which they use; or is that one.
        """
        renewed = self._to_renew(self.current.plan, withdrawn)
        for scope, generation in self._asking():
            reach = generation.reach(scope)
            if reach is None or any(one.node in renewed for one in reach.instances):
                uses = "may use" if reach is None else "uses"
                value = "the value" if withdrawn == provider else f"`{name_of(withdrawn)}`"
                raise RefreshError(
                    provider,
                    f"the request that asks for it, {labels([scope])}, {uses} {value} itself, "
                    "and would wait for its own end",
                    "Ask from a route that does not declare the value, or with "
                    'policy="availability_preserving".',
                )

    def _check_lasting(self, provider: Provider) -> None:
        """Refuse a refresh that would wait for what keeps the value to the end."""
        replaced = self._replaced(self._to_renew(self.current.plan, provider))
        sites = [one for one in self._holders(replaced) if isinstance(one, Site)]
        if sites:
            raise RefreshError(
                provider,
                f"{labels(sites)} uses the value until the application stops",
                "Give a drain_timeout, take the value out of its parameters, or use "
                'policy="availability_preserving".',
            )

    def _asking(self) -> Iterator[tuple[Scope, Generation]]:
        """The requests that we are in, with the generation that each is pinned to."""
        for scope in asking():
            for generation in (self.current, *self.retired):
                if id(scope) in generation.pinned:
                    yield scope, generation

    def check_waiting(self, draining: "Draining") -> None:
        """Refuse to let a request wait for its own end."""
        for scope, generation in self._asking():
            if not generation.reached(scope).isdisjoint(draining.left):
                raise RefreshError(
                    draining.provider,
                    f"the request that waits, {labels([scope])}, uses the old value itself",
                    "Wait outside of the request, in a task that it has not started.",
                    asked="has an old value whose end cannot be awaited",
                )

    def _holders(self, instances: Collection[Instance]) -> list[Scope | Site]:
        return [
            pinned
            for generation in (self.current, *self.retired)
            for pinned in generation.holders(instances)
        ]

    def _withdraw(self, renewed: Collection[Node]) -> None:
        """Let nodes be without an instance; the old ones stop when no request holds them."""
        gone = [self._instances.pop(node) for node in renewed if node in self._instances]
        retry_after = max(1, math.ceil(sum(instance.start_seconds for instance in gone)))
        for node in self.current.plan.nodes:
            if node in renewed:
                self._withdrawn.setdefault(node, Withdrawn(retry_after))
        self._switch(self.current.plan)

    async def _drain_within(self, draining: "Draining", seconds: float | None) -> None:
        """Wait until the old instances have ended; when the time is up, stop them."""
        with anyio.move_on_after(seconds):
            return await draining.ended()
        left = with_all(draining.left, lambda instance: instance.dependents)
        holders = self._holders(left)
        if holders:  # else it is stopping, and takes its time
            logger.warning(
                "The old `%s` is stopped after %g seconds, though still used by %s",
                name_of(draining.provider),
                seconds,
                labels(holders),
            )
        self._supervisor.retire([one for one in self._supervisor.instances if one in left])
        await draining.ended()

    def _keep_refreshing(self) -> None:
        """Refresh what has `refresh_every`, from now on."""
        for provider, option in self.current.plan.options:
            if option == "refresh_every" and provider not in self._timers:
                self._timers.add(provider)
                body = partial(self._refresh_regularly, provider)
                self._supervisor.work(body, f"refresh_every of {name_of(provider)}")

    async def _refresh_regularly(self, provider: Provider) -> None:
        while (seconds := self.current.plan.seconds(provider, "refresh_every")) is not None:
            # many workers were started at once, and should not refresh at once
            with anyio.move_on_after(seconds * random.uniform(0.95, 1.05)):
                return await self._supervisor.closing.wait()
            if not self._declared(self.current.plan, provider):
                continue  # what depends on it is overridden
            try:
                await self.refresh(provider)
            except Exception as error:
                if self.phase == "serving":
                    logger.error(
                        "`%s` was not refreshed; the next try is in about %g seconds",
                        name_of(provider),
                        seconds,
                        exc_info=error,
                    )
        self._timers.discard(provider)

    # Change

    def _plan_anew(self) -> Plan:
        overrides = self._overrides()
        self._originals = plan = self._plan({domain: {} for domain in overrides})
        if any(overrides.values()):
            plan = self._plan(overrides, plan)
        return plan

    def _overrides(self) -> dict[Domain, Overrides]:
        domains = {source.domain: None for source in self._sources if source.domain is not None}
        return {domain: dict(domain.dependency_overrides) for domain in (self.app, *domains)}

    def _plan(self, overrides: dict[Domain, Overrides], originals: Plan | None = None) -> Plan:
        errors: list[Exception] = []
        plan = self._planner.plan(self._declarations(overrides, errors), overrides, originals)
        plan.errors += errors
        return plan

    def _declarations(
        self, overrides: dict[Domain, Overrides], errors: list[Exception]
    ) -> Iterator[Declaration]:
        for source in self._sources:
            try:
                yield from source.declarations(overrides.get(source.domain, {}))
            except Exception as error:  # a wrong override is no other route's trouble
                errors.append(error)

    async def _change(
        self, plan: Plan, renewed: Collection[Node] = (), *, all_or_none: bool
    ) -> None:
        """Start what `plan` needs and does not run, or is to be renewed; then switch to it.

        With `all_or_none` the first failure is raised, and nothing has changed. Otherwise
        failures are kept for the requests that need the value.
        """
        is_same = plan is self.current.plan
        kept = {node: one for node, one in self._instances.items() if node not in renewed}
        failures = {n: why for n, why in self._failures.items() if is_same and n not in renewed}
        withdrawn = {
            n: why for n, why in self._withdrawn.items() if n in plan.nodes and n not in renewed
        }
        fresh = []
        # An original that is overridden runs on, or does not run at all.
        for node in dict.fromkeys((*plan.nodes, *self._originals.nodes)):
            missing = next((child for child in node.dependencies if child in withdrawn), None)
            if node in kept:
                self._coming[node] = kept[node]
            elif node in plan.nodes and missing is not None:
                withdrawn.setdefault(node, withdrawn[missing])
            elif node in plan.nodes and (node in withdrawn or node in failures):
                continue
            elif node in plan.nodes or node in self._instances:
                self._coming[node] = self._instance(node, plan)
                fresh.append(self._coming[node])
        try:
            await self._supervisor.start(fresh, all_or_none=all_or_none)
            if all_or_none:
                _raise_failure(fresh)
            elif any(instance.given_up for instance in fresh):
                return  # for overrides that are gone
            for instance in fresh:
                if instance.started:
                    kept[instance.node] = instance
                    continue
                error = _failure(instance)
                if error not in failures.values():  # else it failed before, below this one
                    name = name_of(instance.node.provider)
                    logger.error("`%s` failed to start", name, exc_info=error)
                failures[instance.node] = error
            self._instances, self._failures, self._withdrawn = kept, failures, withdrawn
            self._coming = {}
            self._switch(plan)
        finally:
            self._coming = {}
            if self.phase != "starting":  # else all is stopped together
                self.drain()

    def _instance(self, node: Node, plan: Plan) -> Instance:
        arguments = {
            name: self.app if child is None else self._coming[child]
            for name, child in node.arguments
        }
        path = plan.nodes.get(node) or self._originals.nodes[node]
        limits = {
            option: plan.seconds(node.provider, option)
            for option in ("start_timeout", "stop_timeout")
        }
        return Instance(node, arguments, self._supervisor, path, **limits)

    def _switch(self, plan: Plan) -> None:
        """Make the values that there are now those of the requests that arrive from now on."""
        self.retired.append(self.current)
        self._in_force = plan.overrides
        self.current = Generation(
            self, plan, self._instances, self._failures, dict(self._withdrawn)
        )
        if self.phase == "serving":
            self._keep_refreshing()
        self.drain()

    # Serve

    async def marked_value(self, generation: Generation, marker: Marker, scope: Scope) -> Any:
        """The value for a marker that FastAPI calls itself, where the route was not bound."""
        if marker.use_cache or marker.place:
            key = Key(marker.provider, marker.place)
            if (overrides_provider(scope), key) not in generation.plan.resolved:
                # FastAPI takes the override that is there when it gets to it. If that was set
                # after the request arrived, the request is pinned to its values as well.
                await self.apply_overrides()
                if generation is not self.current:
                    # A middleware may have copied the scope: only FastAPI knows when it ends.
                    generation = self.current
                    generation.pinned[id(scope)] = scope
                    exit_stack(scope).callback(self.release, generation, scope)
            return generation.value(overrides_provider(scope), key)
        raise UninitializedLifespanDependency(
            marker.provider,
            "it has use_cache=False, and its place is not known here: the route, or another one "
            "of the same router, was added while the application served, or the declaration "
            "stands in a dependency override",
            "Add routes before the application starts, or use the default use_cache=True.",
        )

    def release(self, generation: Generation, pinned: Scope | Site) -> None:
        """Note that a request, or a site that kept its values, is over."""
        generation.pinned.pop(id(pinned), None)
        if generation is not self.current:  # else it goes on needing all that it has
            self.drain()

    @contextmanager
    def holding(self, site: Site) -> Iterator[dict[str, Any]]:
        """Give the values of a site that keeps them, as a lifespan function does."""
        generation = self.current
        generation.pinned[id(site)] = site
        try:
            yield generation[site]
        finally:
            self.release(generation, site)

    # Stop

    def drain(self) -> None:
        """Stop the instances that nothing can use any more."""
        # not by `remove`: generations are dicts, and equal ones are not the same
        self.retired = [generation for generation in self.retired if generation.pinned]
        in_force = (*self._originals.nodes, *self.current.plan.nodes)
        wanted = {self._instances.get(node) for node in in_force} | {*self._coming.values()}
        gone, held = [], False
        for instance in self._supervisor.instances:
            if instance in wanted or instance.is_stopping:
                continue
            if any(generation.is_held(instance) for generation in self.retired):
                held = True
                continue
            gone.append(instance)
            if self._instances.get(instance.node) is instance:
                del self._instances[instance.node]
        if gone:
            self._supervisor.retire(gone)
        if held and not self._looking_again and any(one.has_unmatched for one in self.retired):
            # Nobody tells when such a request gets to its route, which may need nothing.
            self._looking_again = True
            self._supervisor.work(self._look_again, "draining")

    async def _look_again(self) -> None:
        with anyio.move_on_after(1):
            return await self._supervisor.closing.wait()
        self._looking_again = False
        self.drain()

    async def close(self) -> None:
        """Stop everything, in reverse; then raise what went wrong on the way."""
        self._forget_values()
        try:
            await self._supervisor.close()
        finally:
            self._forget_values()

    def _forget_values(self) -> None:
        """Let each site be worked out anew, and be found without what is gone."""
        for generation in (self.current, *self.retired):
            generation.clear()


class Draining:
    """What `LifespanContainer.refresh` returns: the end of the old instances can be awaited."""

    def __init__(self, run: Run, provider: Provider, old: list[Instance]) -> None:
        self.provider = provider
        self._run = run
        self._old = old

    @property
    def left(self) -> list[Instance]:
        return [instance for instance in self._old if not instance.ended.is_set()]

    async def wait(self) -> None:
        """Wait until the old instances have ended, their code after `yield` included.

        Raises:
            RefreshError: the request that waits uses an old instance itself.
        """
        self._run.check_waiting(self)
        await self.ended()

    async def ended(self) -> None:
        for instance in self._old:
            await instance.ended.wait()


def _raise_failure(instances: list[Instance]) -> None:
    """Raise the first failure of a start, if there is one."""
    for instance in instances:
        if not (instance.started or instance.given_up):
            raise _failure(instance)
    for instance in instances:
        if instance.casualty is not None:
            raise ended_by_itself(instance.casualty)
        if not instance.started:
            raise _failure(instance)


def _failure(instance: Instance) -> BaseException:
    """Why an instance has not started. It forgets that: the error's traceback leads to it."""
    error, instance.error = instance.error, None
    return error or RuntimeError(f"the start of `{name_of(instance.node.provider)}` was given up")
