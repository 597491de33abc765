"""A generation: one consistent set of live values, and the pins of those who use it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from fastapi.dependencies.models import Dependant
from starlette.types import Scope

from fastapi_lifespan_deps._compat import matched_dependant, overrides_provider_of, route_label
from fastapi_lifespan_deps.absence import (
    Absence,
    invalid_override,
    many_places,
    not_declared,
    stopped,
)
from fastapi_lifespan_deps.declare.collect import Injection, declared
from fastapi_lifespan_deps.declare.params import Key
from fastapi_lifespan_deps.declare.plan import Node, OverridesProvider, Plan, Provider
from fastapi_lifespan_deps.exceptions import LifespanDependencyError, name_of
from fastapi_lifespan_deps.see.graph import Status

from .instance import Instance
from .tasks import call_soon


class Pin:
    """Who uses values, a request or a lifespan function, pinned to a generation.

    A request finds its pin in its ASGI scope.
    """

    # No `__init__`: every request makes one, and a call of it can be measured.
    __slots__ = ("generation", "holder", "more", "run")

    holder: "Scope | Injection"  # a scope tells what route the request is on
    generation: "Generation"
    run: Any  # it is further down the data flow: who finds a pin finds it so
    more: "More | None"  # most requests need no more

    @classmethod
    def of(cls, holder: "Scope | Injection", generation: "Generation", run: Any = None) -> "Pin":
        """A new pin, for who has the time to ask for one."""
        pin = cls()
        pin.holder, pin.generation, pin.run, pin.more = holder, generation, run, None
        generation.pins[pin] = None
        return pin

    def extend(self) -> "More":
        """What else there is to know of it, from now on."""
        with self.generation.lock:
            if self.more is None:
                self.more = More()
            return self.more

    @property
    def has_asked(self) -> bool:
        """Whether it has asked for a refresh: then the container gives it the new values."""
        return self.more is not None and self.more.has_asked

    @property
    def everything_of(self) -> "Generation | None":
        """The generation that the container has given it, and with it every value."""
        return None if self.more is None else self.more.everything_of

    @property
    def inner(self) -> "tuple[Pin, ...]":
        """The pins of copies of its scope, which end with it."""
        return () if self.more is None else self.more.inner

    @property
    def is_lasting(self) -> bool:
        """Whether it ends with the application, not before."""
        return isinstance(self.holder, Injection) and self.holder.is_lasting

    @property
    def generations(self) -> "tuple[Generation, ...]":
        """Those whose values it may still use."""
        if self.more is None:
            return (self.generation,)
        others = *self.more.others, self.more.everything_of
        found = dict.fromkeys((self.generation, *others))
        return tuple(one for one in found if one is not None)

    def check_request(self) -> None:
        """Raise if the request has ended: nothing holds its values any more."""
        if self not in self.generation.pins:
            raise LifespanDependencyError(
                f"The request {self} has ended, and its values may have been stopped. "
                "Don't use its scope afterwards."
            )

    def keep_to_its_route(self) -> None:
        """Go on to hold what the route uses, though the scope may soon tell of another one."""
        if not isinstance(self.holder, Injection) and self.generation.reachable_by(self):
            self.holder = dict(self.holder)

    # Not context managers: a frozen exception does not get through those of contextlib.

    def enter_thread(self) -> None:
        """Hold the values until a worker thread of the request has ended: `leave_thread`.

        A cancellation by asyncio ends a request, but not the thread that works for it.
        """
        more = self.extend()
        with self.generation.lock:
            more.threads += 1
        try:
            self.check_request()
        except LifespanDependencyError:
            self.leave_thread()
            raise

    def leave_thread(self) -> None:
        more = self.extend()
        with self.generation.lock:
            more.threads -= 1
            is_last = more.is_over and not more.threads
        if is_last:
            call_soon(self.run.loop, self.run.live.release, self)

    def ends(self) -> bool:
        """Note that the request is over; return whether its threads are, too."""
        with self.generation.lock:
            if self.more is not None and self.more.threads:
                self.more.is_over = True
                self.generation.pins.setdefault(self, None)
                return False
            return True

    @property
    def is_over(self) -> bool:
        """Whether it has ended, but for its threads."""
        return self.more is not None and self.more.is_over

    def __str__(self) -> str:
        holder = self.holder
        return f"`{name_of(holder.call)}`" if isinstance(holder, Injection) else route_label(holder)


@dataclass(slots=True)
class More:
    """What is to be known of a request that does more than take what its route declares."""

    has_asked: bool = False
    everything_of: "Generation | None" = None
    others: "tuple[Generation, ...]" = ()  # later ones, whose values it has been given too
    inner: tuple[Pin, ...] = ()
    threads: int = 0  # that work for it; one may go on after it has ended
    is_over: bool = False
    taker: object = None  # the task that has taken an item of a stream, and may take the next


@dataclass(frozen=True, slots=True, eq=False)
class Reachable:
    """What a route or a lifespan function may use of a generation."""

    of: Dependant | Injection | None  # kept alive, so that its id tells it from others
    instances: frozenset[Instance]
    by_container: bool = False  # through the container any other as well, until it asks


class Generation(dict[Injection, Callable[..., Any]]):
    """The callable of each injection, given its values, when a request has asked for it.

    A request is pinned to the generation that was current when it arrived. Only the current one
    keeps what it has worked out.
    """

    # One generation is not another, though its values be equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]  # a dict has none

    def __init__(
        self,
        plan: Plan,
        instances: Mapping[Node, Instance],
        absent: Mapping[Node, Absence],
    ) -> None:
        self.plan = plan
        self.instances = {node: instances[node] for node in plan.nodes if node in instances}
        self.absent = absent
        # Who is pinned to it; when it isn't current any more, with what he holds.
        self.pins: dict[Pin, Reachable | None] = {}
        self._everything: Reachable | None = None
        self._reachable: dict[int, Reachable] = {}
        # The values that calls need; functions come and go.
        self._values_for: WeakKeyDictionary[Injection, list[Any]] = WeakKeyDictionary()
        self._is_current = True
        # A synchronous endpoint asks in a worker thread; what dies meanwhile must not be kept.
        self.lock = Lock()

    def __missing__(self, injection: Injection) -> Callable[..., Any]:
        with self.lock:
            filled = injection.filled(self.values_of(injection))
            if self._is_current:
                self[injection] = filled
            return filled

    def values_of(self, injection: Injection) -> dict[str, Any]:
        """The value of each of its parameters."""
        values = [
            (name, self.value(injection.overrides_provider, key))
            for name, key in injection.parameters
        ]
        return {name: value for name, value in values if name is not None}

    def values_for(
        self, holder: Injection, overrides_provider: OverridesProvider, keys: Iterable[Key]
    ) -> list[Any]:
        """The values that a call needs, for itself to change the list."""
        values = self._values_for.get(holder)
        if values is None:
            with self.lock:
                values = [self.value(overrides_provider, key) for key in keys]
                if self._is_current:
                    self._values_for[holder] = values
        return values.copy()

    def take(self, pin: Pin) -> bool:
        """Pin it, from any thread; not if this is not the current one any more."""
        with self.lock:
            if self._is_current:
                self.pins[pin] = None
            return self._is_current

    def give_back(self, pin: Pin) -> bool:
        """The reverse, for a pin that holds nothing else; not if somebody else has to know."""
        with self.lock:
            if self._is_current and pin.more is None:
                self.pins.pop(pin, None)  # it may be given twice
                return True
            return False

    def clear(self) -> None:
        """Let each injection be worked out anew, and be found without what is gone."""
        with self.lock:
            super().clear()
            self._values_for.clear()

    def retire(self) -> None:
        """Keep nothing any more: another one is current."""
        with self.lock:
            self._is_current = False
            super().clear()
            self._values_for.clear()

    def value(self, overrides_provider: OverridesProvider, key: Key) -> Any:
        """The live value of a key. Raise `UninitializedLifespanDependency` if there is none."""
        resolved = self.plan.resolved
        found = resolved.get((overrides_provider, key)) or resolved.get((None, key))
        if found is None:
            placed = (one for one, _ in self.plan.behind.get(key.provider, ()))
            raise (many_places if overrides_provider in placed else not_declared)(key.provider)
        if not isinstance(found, Node):
            raise invalid_override(key.provider, found)
        return self.instance(found, key.provider).value

    def instance(self, node: Node, provider: Provider) -> Instance:
        """What lives for a node, which stands for a provider. Raise why there is nothing."""
        instance = self.instances.get(node)
        if instance is None:
            raise self.absent.get(node, Absence()).error(provider)
        if instance.died_of is not None:
            raise instance.died_of.death()
        if not instance.is_alive:
            raise stopped(provider)
        return instance

    def status(self, node: Node) -> Status:
        """What has become of a node."""
        instance = self.instances.get(node)
        if instance is None:
            is_withdrawn = self.absent.get(node, Absence()).is_withdrawn
            return "withdrawn" if is_withdrawn else "failed", None
        if instance.died_of is not None:
            return "dead", instance.start_seconds
        if instance.is_alive:
            return "running", instance.start_seconds
        return "stopped" if instance.ended.is_set() else "stopping", instance.start_seconds

    @property
    def is_whole(self) -> bool:
        """Whether each of its values may still be used."""
        return all(instance.is_alive for instance in self.instances.values())

    @property
    def everything(self) -> Reachable:
        if self._everything is None:
            self._everything = Reachable(None, frozenset(self.instances.values()))
        return self._everything

    def held_by(self, pin: Pin) -> Reachable:
        """What a pin may still use."""
        reachable = self.reachable_by(pin)
        if reachable is None:
            return self.everything
        by_container = reachable.by_container or pin.everything_of is self
        return self.everything if by_container and not pin.has_asked else reachable

    def reachable_by(self, pin: Pin) -> Reachable | None:
        """What it may use by its declarations; None for a request that hasn't got to its route."""
        holder = pin.holder
        if isinstance(holder, Injection):
            keys = ((holder.overrides_provider, key) for _, key in holder.parameters)
            return Reachable(holder, self._resolved(keys), holder.takes_container)
        if (dependant := matched_dependant(holder)) is None:
            return None
        reachable = self._reachable.get(id(dependant))
        if reachable is None:
            overrides_provider = overrides_provider_of(holder)
            overrides = self.plan.overrides.get(overrides_provider, {})
            try:
                found = list(declared(dependant, overrides_provider, overrides))
            except Exception:  # an override that cannot be read; FastAPI tells the request so
                return self.everything
            instances = self._resolved(
                (one.overrides_provider, one.key) for one in found if one.key
            )
            by_container = any(one.key is None for one in found)
            reachable = Reachable(dependant, instances, by_container)
            self._reachable[id(dependant)] = reachable
        return reachable

    def _resolved(self, keys: Iterable[tuple[OverridesProvider, Key]]) -> frozenset[Instance]:
        nodes = [self.plan.resolved.get(target) for target in keys]
        left = [
            self.instances[node]
            for node in nodes
            if isinstance(node, Node) and node in self.instances
        ]
        found: set[Instance] = set()
        while left:
            instance = left.pop()
            if instance not in found:
                found.add(instance)
                left += instance.dependencies
        return frozenset(found)


def labels(pins: Iterable[object]) -> str:
    """The routes of requests, and what else holds values, for a person to read."""
    counted = Counter(map(str, pins))
    return ", ".join(
        f"{label} ({count} requests)" if count > 1 else label for label, count in counted.items()
    )
