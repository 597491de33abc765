"""Refresh: put fresh instances in the place of those that serve, while they do."""

import random
from functools import partial
from typing import Literal

import anyio

from fastapi_lifespan_deps.declare.plan import Node, Provider
from fastapi_lifespan_deps.events import Events, LifespanEvent
from fastapi_lifespan_deps.exceptions import RefreshError, name_of
from fastapi_lifespan_deps.see.spans import Span

from .asking import Asker
from .generation import Pin, labels
from .instance import Instance
from .overrides import OverridesInForce
from .tasks import DetachedTask
from .values import LiveValues

Policy = Literal["availability_preserving", "resource_preserving"]

# The seconds after which a wait for requests says which they are.
PATIENCE = 30.0


class Refresher:
    """Refreshes the values of a run, when asked and regularly.

    Each refresh is done in a task of its own, one after the other.
    """

    def __init__(self, live: LiveValues, overrides: OverridesInForce, events: Events) -> None:
        self._live = live
        self._overrides = overrides
        self._events = events
        events.listen(self._keep_refreshing)
        self._under_way: dict[Provider, tuple[Policy, DetachedTask[Draining]]] = {}
        self._latest: anyio.Event | None = None  # set when the refresh asked for last is over
        self._timers: set[Provider] = set()

    async def refresh(
        self,
        provider: Provider,
        policy: Policy = "availability_preserving",
        drain_timeout: float | None = None,
        container: Pin | None = None,
    ) -> "Draining":
        """Replace the instances of a provider, and of what depends on it, by fresh ones.

        `container` is the pin of the container that is asked, if it belongs to a request.
        """
        task = await self._ask(provider, policy, drain_timeout, container)
        return await task.result()

    async def _ask(
        self,
        provider: Provider,
        policy: Policy = "availability_preserving",
        drain_timeout: float | None = None,
        container: Pin | None = None,
    ) -> "DetachedTask[Draining]":
        """Have a refresh begun, or join the one that is under way; refuse what cannot be."""
        self._live.supervisor.tasks.check_loop()
        self._check_serving(provider)
        instance = self._live.inside()
        if instance is not None and not instance.is_alive:
            raise RefreshError(
                provider,
                f"`{name_of(instance.node.provider)}` asks for it while it starts or stops itself",
                "Ask in a task that the dependency starts, or after the startup.",
            )
        await self._overrides.apply()
        self._check_serving(provider)
        asker = Asker(self._live, container)
        renewed = self._renewed(provider)
        under_way = self._under_way.get(provider)
        if under_way is None and policy == "resource_preserving" and drain_timeout is None:
            self._check_lasting(provider, renewed)
        policies = {other: policy for other, (policy, _) in self._under_way.items()}
        for other, its_policy in ({provider: policy} | policies).items():
            if its_policy == "resource_preserving":
                asker.check_waiting_for(provider, other, self._live.to_renew(other))
        asker.let_go()
        if under_way is None:
            span = self._live.supervisor.spans.of(provider)
            body = partial(self._refresh, provider, policy, drain_timeout, self._latest, span)
            name = f"refresh of {name_of(provider)}"
            task = self._live.supervisor.tasks.detach(body, name, tells=True)
            self._latest = task.done
            under_way = self._under_way[provider] = policy, task
        return under_way[1]

    async def over(self) -> bool:
        """Wait until what is being refreshed now, is; return whether anything was."""
        under_way = list(self._under_way.values())
        for _, task in under_way:
            await task.done.wait()
        return bool(under_way)

    async def _refresh(
        self,
        provider: Provider,
        policy: Policy,
        drain_timeout: float | None,
        before: anyio.Event | None,
        span: Span,
    ) -> "Draining":
        began: float | None = None
        renewed: set[Node] = set()
        try:
            if before is not None:  # not by a lock: trio runs tasks in any order
                await before.wait()
            async with self._live.changing:
                await self._overrides.follow()
                renewed = self._renewed(provider)
                began = anyio.current_time()
                self._events.tell("refreshing", provider)
                old = self._live.replaced(renewed)
                span.begin("refresh", old)
                if policy == "resource_preserving":
                    self._live.withdraw(renewed)
                else:
                    await self._live.renew(renewed)
            draining = Draining(self, provider, old, drain_timeout is not None)
            if policy == "resource_preserving":
                await self._drain_within(draining, drain_timeout)
                async with self._live.changing:
                    await self._overrides.follow()
                    # what an override has started meanwhile is fresh already
                    renewed = self._renewed(provider).difference(self._live.instances)
                    await self._live.renew(renewed)
            elif drain_timeout is not None:
                drain = partial(self._drain_within, draining, drain_timeout)
                self._live.supervisor.tasks.detach(drain, f"draining of {name_of(provider)}")
            self._events.tell("refreshed", provider, seconds=anyio.current_time() - began)
            span.end()
            return draining
        except BaseException as error:
            self._note_failure(provider, renewed, error, began)
            span.end(error)
            if self._live.supervisor.is_closing and isinstance(error, Exception):
                raise RefreshError(provider, "the application stops", "It stops it too.") from error
            raise
        finally:
            del self._under_way[provider]

    def _note_failure(
        self, provider: Provider, renewed: set[Node], error: BaseException, began: float | None
    ) -> None:
        is_closing = self._live.supervisor.is_closing
        if not is_closing:
            self._live.note_failure(renewed, error)
        if began is not None:  # else there was nothing to refresh: who waits is told
            is_raised = is_closing or self._under_way[provider][1].is_awaited
            seconds = anyio.current_time() - began
            self._events.tell(
                "refresh_failed", provider, seconds=seconds, error=error, is_raised=is_raised
            )

    def _check_serving(self, provider: Provider) -> None:
        if self._live.phase != "serving":
            is_starting = self._live.phase == "starting"
            raise RefreshError(
                provider,
                f"the application is {'starting' if is_starting else 'stopping'}",
                "Refresh while it serves: after its startup, and before its shutdown.",
            )

    def _is_declared(self, provider: Provider) -> bool:
        return provider in self._live.current.plan.behind

    def _renewed(self, provider: Provider) -> set[Node]:
        renewed = self._live.to_renew(provider)
        if not renewed:
            found = self._live.current.plan.behind.get(provider, ())
            errors = [one for _, one in found if isinstance(one, Exception)]
            if errors:
                advice = "The exception that caused this one says why."
                raise RefreshError(provider, "its override is not valid", advice) from errors[0]
            raise RefreshError(
                provider,
                "the application does not declare it",
                "Give the callable that a route, a dependency or a hook declares.",
            )
        return renewed

    def _check_lasting(self, provider: Provider, renewed: set[Node]) -> None:
        """Refuse a refresh that would wait for what keeps the value to the end."""
        holders = self._live.holders(self._live.replaced(renewed))
        lasting = [pin for pin in holders if pin.is_lasting]
        if lasting:
            raise RefreshError(
                provider,
                f"{labels(lasting)} uses the value until the application stops",
                "Give a drain_timeout, take the value out of its parameters, or use "
                'policy="availability_preserving".',
            )

    def check_waiting(self, draining: "Draining") -> None:
        """Refuse to let anybody wait for his own end, or for that of the application."""
        self._live.supervisor.tasks.check_loop()
        asker = Asker(self._live)
        asker.check_waiting(draining._provider, draining._left, is_bounded=draining._is_bounded)

    async def _drain_within(self, draining: "Draining", seconds: float | None) -> None:
        """Wait until the old instances have ended; when the time is up, stop them."""
        with anyio.move_on_after(seconds):
            return await draining._ended()
        left, holders = self._left(draining)
        if holders:  # else it is stopping, and takes its time
            error = TimeoutError(f"still used by {labels(holders)}")
            self._events.tell("drain_timed_out", draining._provider, seconds=seconds, error=error)
        self._live.supervisor.retire(left)
        await draining._ended()

    def say_who_is_waited_for(self, draining: "Draining") -> None:
        _, holders = self._left(draining)
        users = labels(holders) or "nobody, and takes its time to stop"
        error = TimeoutError(f"it is used by {users}")
        self._events.tell("drain_slow", draining._provider, seconds=PATIENCE, error=error)

    def _left(self, draining: "Draining") -> tuple[list[Instance], list[Pin]]:
        left = self._live.supervisor.on_top_of(draining._left)
        return left, self._live.holders(left)

    def _keep_refreshing(self, event: LifespanEvent) -> None:
        """Refresh what has `refresh_every`, from now on: an override may have one of its own."""
        if event.kind not in ("up", "overrides_applied") or self._live.phase != "serving":
            return
        for provider, option in self._live.current.plan.options:
            if option == "refresh_every" and provider not in self._timers:
                self._timers.add(provider)
                body = partial(self._refresh_regularly, provider)
                name = f"refresh_every of {name_of(provider)}"
                self._live.supervisor.tasks.detach(body, name)

    async def _refresh_regularly(self, provider: Provider) -> None:
        while (seconds := self._live.current.plan.option(provider, "refresh_every")) is not None:
            # many workers were started at once, and should not refresh at once
            with anyio.move_on_after(seconds * random.uniform(0.95, 1.05)):
                return await self._live.supervisor.closing.wait()
            if not self._is_declared(provider):
                continue  # what depends on it is overridden
            try:
                task = await self._ask(provider)
            except Exception as error:
                # meanwhile, what depends on it may have been overridden
                if self._live.phase == "serving" and self._is_declared(provider):
                    self._events.tell("refresh_failed", provider, error=error)
            else:
                await task.done.wait()  # it tells what goes wrong
        self._timers.discard(provider)


class Draining:
    """What `LifespanContainer.refresh` returns: the end of the old instances can be awaited."""

    def __init__(
        self, refresher: Refresher, provider: Provider, old: list[Instance], is_bounded: bool
    ) -> None:
        self._provider = provider
        self._is_bounded = is_bounded  # by a time limit
        self._refresher = refresher
        self._old = old

    @property
    def _left(self) -> list[Instance]:
        return [instance for instance in self._old if not instance.ended.is_set()]

    async def wait(self) -> None:
        """Wait until the old instances have ended, their code after `yield` included.

        Two requests that hold the values whose end the other one awaits wait for ever: better
        wait outside of requests, or give the refresh a `drain_timeout`.

        Raises:
            RefreshError: whoever waits uses an old instance himself, or a lifespan function
                keeps one to the end.
            LifespanNotRunning: this is another event loop than that of the application.
        """
        self._refresher.check_waiting(self)
        await self._ended()

    async def _ended(self) -> None:
        """Wait; and if that takes long, say for whom: maybe for whoever waits himself."""
        with anyio.move_on_after(PATIENCE):
            return await self._all_ended()
        self._refresher.say_who_is_waited_for(self)
        await self._all_ended()

    async def _all_ended(self) -> None:
        for instance in self._old:
            await instance.ended.wait()
