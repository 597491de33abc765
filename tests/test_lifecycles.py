"""Clauses 5 and 6 on random graphs: whatever has been entered is left once, in reverse."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.recording import (
    Provider,
    Value,
    app_with,
    closed,
    leaves,
    named,
    opened,
    starts_and_stops,
)

GENERATORS = ("async generator", "generator")
KINDS = (*GENERATORS, "async function", "function")


@dataclass(frozen=True)
class Spec:
    """One dependency: what kind of callable it is, what it needs, and where it fails."""

    kind: str
    needs: tuple[int, ...] = ()
    fails: str | None = None


@dataclass(frozen=True)
class Story:
    """An application's dependencies, the order in which its route lists them, and its end."""

    specs: tuple[Spec, ...]
    listed: tuple[int, ...]
    end: str = "left"


@st.composite
def stories(draw: st.DrawFn) -> Story:
    specs: list[Spec] = []
    for index in range(draw(st.integers(1, 6))):
        needs = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        kind = draw(st.sampled_from(KINDS))
        moments = (None, None, "stop", "start") if kind in GENERATORS else (None, None, "start")
        specs.append(Spec(kind, tuple(sorted(needs)), draw(st.sampled_from(moments))))
    listed = draw(st.lists(st.integers(0, len(specs) - 1), min_size=1, unique=True))
    return Story(tuple(specs), tuple(listed), draw(st.sampled_from(("left", "fails", "cancelled"))))


@dataclass
class Played:
    """What happened."""

    events: list[str] = field(default_factory=list)
    errors: dict[tuple[int, str], Exception] = field(default_factory=dict)
    body_error: Exception = field(default_factory=lambda: LookupError("while serving"))
    raised: BaseException | None = None
    served: bool = False
    was_cancelled: bool = False


def play(story: Story, backend: str) -> Played:
    played = Played()
    providers: list[Provider] = []
    for index, spec in enumerate(story.specs):
        providers.append(make(index, spec, [providers[need] for need in spec.needs], played))
    app = app_with(*(providers[index] for index in story.listed))

    async def main() -> None:
        with anyio.fail_after(30), anyio.CancelScope() as scope:
            try:
                async with app.router.lifespan_context(app):
                    played.served = True
                    if story.end == "fails":
                        raise played.body_error
                    if story.end == "cancelled":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
            except Exception as error:
                played.raised = error
        played.was_cancelled = scope.cancelled_caught

    anyio.run(main, backend=backend)
    return played


def make(index: int, spec: Spec, needs: list[Provider], played: Played) -> Provider:
    name = str(index)

    def fail(moment: str) -> None:
        if spec.fails == moment:
            played.errors[index, moment] = error = OSError(f"{moment} of {name}")
            raise error

    def start(values: dict[str, Value]) -> Value:
        fail("start")
        return opened(name, played.events, values)

    def stop(value: Value) -> None:
        closed(value, played.events)
        fail("stop")

    async def async_generator(**values: Value) -> AsyncIterator[Value]:
        await anyio.lowlevel.checkpoint()
        value = start(values)
        yield value
        await anyio.lowlevel.checkpoint()
        stop(value)

    def generator(**values: Value) -> Iterator[Value]:
        value = start(values)
        yield value
        stop(value)

    async def async_function(**values: Value) -> Value:
        return start(values)

    def function(**values: Value) -> Value:
        return start(values)

    kinds: dict[str, Any] = dict(
        zip(KINDS, (async_generator, generator, async_function, function), strict=True)
    )
    return named(kinds[spec.kind], name, needs)


def start_order(story: Story) -> list[int]:
    """What the contract says: depth first, in the order of the route and of the parameters."""
    order: list[int] = []

    def visit(index: int) -> None:
        for need in story.specs[index].needs:
            visit(need)
        if index not in order:
            order.append(index)

    for index in story.listed:
        visit(index)
    return order


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=80, deadline=None)
@given(story=stories())
@example(
    story=Story(
        specs=(
            Spec("generator", fails="stop"),
            Spec("async generator", (0,), fails="stop"),
            Spec("function", (0, 1)),
            Spec("async generator", (2,), fails="start"),
        ),
        listed=(3,),
    )
)
def test_clauses_5_and_6_hold_for_any_graph_and_any_failures(story: Story, backend: str) -> None:
    played = play(story, backend)
    order = start_order(story)
    failing = [index for index in order if story.specs[index].fails == "start"]
    expected = order[: order.index(failing[0])] if failing else order

    started, stopped = starts_and_stops(played.events)
    assert started == [str(index) for index in expected]
    to_stop = [index for index in reversed(expected) if story.specs[index].kind in GENERATORS]
    assert stopped == [str(index) for index in to_stop]
    assert played.served == (not failing)

    stop_errors = [
        played.errors[index, "stop"] for index in to_stop if story.specs[index].fails == "stop"
    ]
    if failing:
        assert played.raised is played.errors[failing[0], "start"]
        notes = "".join(getattr(played.raised, "__notes__", []))
        assert all(f"OSError: {error}" in notes for error in stop_errors)
    elif story.end == "cancelled":
        assert played.was_cancelled
    else:
        body_errors = [played.body_error] if story.end == "fails" else []
        assert leaves(played.raised) == [*body_errors, *stop_errors]
