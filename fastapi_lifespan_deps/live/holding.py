"""Holding: what those who are pinned to former generations still hold."""

from collections.abc import Iterable, Iterator

from .generation import Generation, Pin, Reachable
from .instance import Instance


class Holdings:
    """The pins of former generations, by what they hold.

    It is known in advance for each instance, so that the end of a request costs what that held,
    however many others there are. The pins of the current generation aren't here: its instances
    are needed in any case.
    """

    def __init__(self) -> None:
        # Requests that haven't got to their route: they may use everything, or nothing.
        self.unmatched: dict[Pin, None] = {}
        self._pins: dict[Reachable, dict[Pin, None]] = {}
        self._by_instance: dict[Instance, dict[Reachable, None]] = {}

    def __contains__(self, instance: Instance) -> bool:
        return instance in self._by_instance

    @property
    def is_empty(self) -> bool:
        """Whether nobody is pinned to a former generation."""
        return not (self._pins or self.unmatched)

    @property
    def all_pins(self) -> list[Pin]:
        return [pin for pins in self._pins.values() for pin in pins]

    def pins(self, instances: Iterable[Instance]) -> Iterator[Pin]:
        """Who holds one of these instances."""
        held = (self._by_instance.get(instance, ()) for instance in instances)
        for reachable in dict.fromkeys(one for some in held for one in some):
            yield from self._pins[reachable]

    def retire(self, generation: Generation) -> None:
        """Note what is held by all who are pinned to a generation that isn't current any more."""
        for pin in list(generation.pins):
            self.hold(generation, pin)

    def hold(self, generation: Generation, pin: Pin) -> list[Instance]:
        """Note what a pin holds of a former generation. Return what nobody holds any more."""
        if generation.reachable_by(pin) is None:
            self.unmatched[pin] = None
        before = generation.pins.get(pin)
        # replaced where it stands: a thread may look whether it is there
        generation.pins[pin] = held = generation.held_by(pin)
        if held not in self._pins:
            for instance in held.instances:
                self._by_instance.setdefault(instance, {})[held] = None
        self._pins.setdefault(held, {})[pin] = None
        return [] if before is None or before is held else self._let_go(before, pin)

    def let_go(self, generation: Generation, pin: Pin) -> list[Instance]:
        """Note that a pin holds nothing of a generation. Return what nobody holds any more."""
        held = generation.pins.pop(pin, None)
        # None: it is of the current one, or has been let go already
        return [] if held is None else self._let_go(held, pin)

    def _let_go(self, held: Reachable, pin: Pin) -> list[Instance]:
        del self._pins[held][pin]
        if self._pins[held]:
            return []
        del self._pins[held]
        for instance in held.instances:
            del self._by_instance[instance][held]
            if not self._by_instance[instance]:
                del self._by_instance[instance]
        return [instance for instance in held.instances if instance not in self]

    def release(self, pin: Pin) -> list[Instance]:
        """Note that a pin holds nothing any more. Return what nobody holds any more."""
        self.unmatched.pop(pin, None)
        return [one for generation in pin.generations for one in self.let_go(generation, pin)]

    def look_again(self, pins: Iterable[Pin]) -> list[Instance]:
        """Note what these pins hold by now. Return what nobody holds any more."""
        unheld = []
        for pin in list(pins):
            self.unmatched.pop(pin, None)
            for generation in pin.generations:
                if generation.pins.get(pin) is not None:
                    unheld += self.hold(generation, pin)
        return unheld
