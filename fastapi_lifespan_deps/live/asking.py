"""Asking: who asks for a refresh, or waits for its end, and must not wait for his own."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar

from fastapi_lifespan_deps.declare.plan import Node, OverridesProvider, Provider
from fastapi_lifespan_deps.exceptions import RefreshError, name_of

from .generation import Generation, Pin, labels
from .instance import Instance
from .tasks import current_task
from .values import LiveValues

F = TypeVar("F", bound=Callable[..., Any])

_serving: set[CodeType] = set()  # filled on import, by the decorator below


def serves_requests(function: F) -> F:
    """Mark a coroutine function that serves a request, whose pin is its local variable `pin`."""
    _serving.add(function.__code__)
    return function


class Standing(NamedTuple):
    """Where code stands that asks for values: in which run, and whose overrides hold.

    A call, or a request, is pinned; who belongs to nobody sees the latest values.
    """

    run: Any  # it is further down the data flow: run.py
    overrides_provider: OverridesProvider
    pin: Pin | None = None
    outer: "Standing | None" = None  # of the code that has called

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, or the run; a thread may remember it all the same."""
        if self.pin is None:
            return bool(self.run.is_over)
        return self.pin not in self.pin.generation.pins


# Where the call stands in whose code we are; also in the threads and the tasks that it starts.
under: ContextVar[Standing] = ContextVar("fastapi_lifespan_deps_under")


def standing_here() -> Standing | None:
    """Where the code stands, in a call or in the task that serves a request; None elsewhere."""
    at = under.get(None)
    while at is not None and at.is_over:
        at = at.outer
    if at is not None:
        return at
    pin = next(_serving_pins(), None)
    return None if pin is None else Standing(pin.run, pin.run.overrides_provider, pin)


def pinned_here(run: Any) -> Pin | None:
    """The pin of the call, or of the request, in whose code we are, if it goes on."""
    live: LiveValues = run.live
    at = under.get(None)
    pin = None if at is None or at.run.live is not live else at.pin
    if pin is not None and pin in pin.generation.pins:
        return pin
    if not run.serves_routes or (not live.current.pins and live.holdings.is_empty):
        return None
    for pin in _serving_pins():
        if pin.run.live is live and pin in pin.generation.pins:
            return pin
    return None


def _serving_pins() -> Iterator[Pin]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in _serving and (pin := frame.f_locals.get("pin")) is not None:
            yield pin
        frame = frame.f_back


class Asker:
    """The requests, and the instance, in whose code we are.

    Requests are found on the stack, when somebody asks: a context variable would make what a
    request pays larger by a fifth. So that knows the task that serves a request, not others that
    this has started; those are known by the container that they ask.
    """

    def __init__(self, live: LiveValues, container: Pin | None = None) -> None:
        self._live = live
        self.instance = live.inside()
        pins = {} if container is None else {container: None}
        pins |= dict.fromkeys(_serving_pins())
        pins |= dict.fromkeys(live.taken_by(current_task()))
        at = under.get(None)
        while at is not None:
            if at.pin is not None:
                pins[at.pin] = None
            at = at.outer
        self.pinned: list[tuple[Pin, Generation]] = [
            (pin, generation)
            for pin in pins
            if pin.run.live is live  # else it is another application's
            for generation in pin.generations
            if pin in generation.pins
        ]

    def let_go(self) -> None:
        """Let the requests find the new values from now on, by their containers."""
        for pin, _ in self.pinned:
            pin.extend().has_asked = True
        # another refresh may be waiting for what they held
        self._live.look_again(dict.fromkeys(pin for pin, _ in self.pinned))

    def check_waiting_for(
        self, provider: Provider, withdrawn: Provider, renewed: Collection[Node]
    ) -> None:
        """Refuse a refresh of `provider` that would wait for whoever asks for it.

        It has to wait for that of `withdrawn`, a value that they use; or is that one.
        """
        if self.instance is not None and self.instance in self._live.replaced(renewed):
            name = name_of(self.instance.node.provider)
            raise RefreshError(
                provider,
                f"`{name}` asks for it, and would wait for its own end",
                'Ask with policy="availability_preserving", or from elsewhere.',
            )
        for pin, generation in self.pinned:
            reachable = generation.reachable_by(pin)
            # when it gets to it, other overrides may be in force: those of the request, say
            nodes = {*renewed, *generation.plan.nodes_behind(withdrawn)}
            if reachable is None or any(one.node in nodes for one in reachable.instances):
                uses = "may use" if reachable is None else "uses"
                value = "the value" if withdrawn == provider else f"`{name_of(withdrawn)}`"
                raise RefreshError(
                    provider,
                    f"the request that asks for it, {pin}, {uses} {value} itself, "
                    "and would wait for its own end",
                    "Ask from a route that does not declare the value, or with "
                    'policy="availability_preserving".',
                )

    def check_waiting(
        self, provider: Provider, left: Collection[Instance], *, is_bounded: bool
    ) -> None:
        """Refuse to let anybody wait for his own end, or for that of the application."""
        asked = "has an old value whose end cannot be awaited"
        for pin, generation in self.pinned:
            if not generation.held_by(pin).instances.isdisjoint(left):
                raise RefreshError(
                    provider,
                    f"the request that waits, {pin}, uses the old value itself",
                    "Wait outside of the request, in a task that it has not started.",
                    asked=asked,
                )
        if self.instance in left:
            problem, advice = "it is the old value that waits", "Wait in a task of something else."
            raise RefreshError(provider, problem, advice, asked=asked)
        lasting = [pin for pin in self._live.holders(left) if pin.is_lasting]
        if lasting and not is_bounded:
            raise RefreshError(
                provider,
                f"{labels(lasting)} uses it until the application stops",
                "Take it out of its parameters, or give a drain_timeout.",
                asked=asked,
            )
