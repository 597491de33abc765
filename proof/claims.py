"""What must hold, whatever server it is: read from the record, and from what clients have seen."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .load import KINDS, Seen
from .record import Event, Record, by_process

# The client itself has left, or it was meant to fail.
EXCUSED = ("gone", "planned")


@dataclass(frozen=True)
class Violation:
    """A claim that does not hold."""

    claim: str
    text: str


def all_left_once_in_order(record: Record, killed: Collection[int] = ()) -> Iterator[Violation]:
    """Every value was left, once, after all that depend on it; one of a killed process may be.

    A value that died by itself may be left before what depends on it.
    """
    for pid, events in by_process(record.read()).items():
        entered = [event["name"] for event in events if event.what == "enter"]
        left = [event["name"] for event in events if event.what == "leave"]
        for name in sorted(set(left) - set(entered)):
            yield Violation("left once", f"{name} of {pid} was left, and never entered")
        for name, times in Counter(left).items():
            if times != 1:
                yield Violation("left once", f"{name} of {pid} was left {times} times")
        if pid not in killed:
            for name in sorted(set(entered) - set(left)):
                yield Violation("left once", f"{name} of {pid} was never left")
        yield from _in_order(pid, events)


def _in_order(pid: int, events: list[Event]) -> Iterator[Violation]:
    place = {(event.what, event.facts.get("name")): at for at, event in enumerate(events)}
    never = len(events)
    died = {event["name"] for event in events if event.what == "died"}
    for event in events:
        for below in event["on"] if event.what == "enter" else ():
            above = event["name"]
            if place.get(("enter", below), never) > place["enter", above]:
                yield Violation("in order", f"{above} of {pid} was entered before {below}")
            if below not in died and (
                place.get(("leave", below), never) < place.get(("leave", above), never)
            ):
                yield Violation("in order", f"{below} of {pid} was left before {above}")


def left_in_reverse(record: Record) -> Iterator[Violation]:
    """Where nothing was refreshed, the stop is the exact reverse of the start."""
    for pid, events in by_process(record.read()).items():
        entered = [event["name"] for event in events if event.what == "enter"]
        left = [event["name"] for event in events if event.what == "leave"]
        if left != entered[::-1]:
            yield Violation("in order", f"{pid} entered {entered}, and left {left}")


def never_dead(record: Record) -> Iterator[Violation]:
    """Nobody saw a value after its end, nor values of two generations."""
    for event in record.of("dead"):
        yield Violation("alive", f"{event['name']} of {event.pid} was used after its end")
    for event in record.of("torn"):
        yield Violation("one generation", f"request {event['id']} saw values of two")


def nothing_lost(
    record: Record, seen: Collection[Seen], killed: Collection[int] = ()
) -> Iterator[Violation]:
    """What an endpoint has begun, its client has got, whole; unless its process was killed.

    What was on its way to a process that was killed may fail; what has no value may not.
    """
    for event in record.of("no value"):
        if event["path"] != "/reader":  # which nobody asks for under load
            yield Violation("no failed request", f"{event['path']} failed: {event['error']}")
    begun = {event["id"]: event for event in record.of("begin")}
    excused = {id for id, event in begun.items() if event.pid in killed}
    for one in seen:
        is_begun = one.id in begun
        if not (one.id in excused or (killed and one.outcome == "failed" and not is_begun)):
            yield from _not_lost(one, is_begun, record)
    for kind in KINDS:
        if not any(one.kind == kind and _is_whole(one) for one in seen):
            yield Violation("load", f"there was no {kind} that went well")
    known = {one.id for one in seen}
    ended = Counter(event["id"] for event in record.of("end"))
    for id, event in begun.items():
        if id not in known:
            yield Violation(f"no lost {event['kind']}", f"{id} was begun, and nobody has asked")
        if ended[id] != 1 and id not in excused:
            yield Violation("endpoints end", f"the endpoint of {id} ended {ended[id]} times")


def served_on(seen: Collection[Seen]) -> Iterator[Violation]:
    """While a server goes on, it turns nobody away, and closes no WebSocket."""
    for one in seen:
        if one.outcome in ("refused", "closed"):
            yield Violation("serves on", f"{one.id}, a {one.kind}, was {one.outcome}: {one.detail}")


def _not_lost(one: Seen, is_begun: bool, record: Record) -> Iterator[Violation]:
    if one.outcome in EXCUSED:
        return
    if one.outcome == "failed":
        yield Violation("no failed request", f"{one.id}: {one.detail}")
    elif one.outcome == "broken" or (is_begun and not _is_whole(one)):
        how = [event["how"] for event in record.of("end", id=one.id)]
        yield Violation(
            f"no lost {one.kind}",
            f"{one.id} was {one.outcome} ({one.detail}), and its endpoint ended with {how}",
        )


def _is_whole(one: Seen) -> bool:
    return one.outcome == "complete" or (one.outcome == "closed" and one.kind == "websocket")
