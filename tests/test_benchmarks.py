"""The benchmarks measure what they say, and go on working. None of their figures is tested."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import fastapi
import pytest

from benchmarks import calls, live, report, requests
from benchmarks.competitors import callers, contestants, depends, lifespan_deps, plain
from benchmarks.competitors.calling import Call, Caller, Calls, Start
from benchmarks.competitors.case import Case, Contestant, endpoint
from benchmarks.measure import Subject, measure


@pytest.fixture(autouse=True)
def small_again() -> None:
    """See `small_heap`: a benchmark thaws everything when it is done."""
    gc.freeze()


def names(found: list[Contestant] | list[Caller]) -> list[str]:
    return [one.name for one in found]


OWN = [*plain.CONTESTANTS, *lifespan_deps.CONTESTANTS, *depends.CONTESTANTS]


@pytest.mark.parametrize("contestant", OWN, ids=names(OWN))
@pytest.mark.parametrize("count", [1, 20])
def test_each_contestant_is_verified_and_measured(contestant: Contestant, count: int) -> None:
    found = asyncio.run(requests._measure([contestant], count, 2, None, lambda text: None))
    [result] = found.values()
    assert "problem" not in result
    assert result["visits"] == 2 * contestant.visits_per_round


def test_a_contestant_that_makes_an_object_for_each_request_is_told() -> None:
    def fresh(case: Case) -> fastapi.FastAPI:
        app = fastapi.FastAPI()
        endpoint(app, case, case.annotated(lambda i: fastapi.Depends(case.async_provider(i))))
        return app

    wrong = Contestant("wrong", fresh, plain.in_endpoint)
    found = asyncio.run(requests._measure([wrong], 1, 2, None, lambda text: None))
    assert found == {"wrong": {"problem": "WrongAnswer: a provider was called 2 times"}}


def test_a_library_that_is_not_installed_is_told() -> None:
    told = [one for one in contestants() if not isinstance(one, Contestant)]
    assert all(reason.startswith("not installed: ") for _, reason in told)
    assert ("svcs", "not installed: No module named 'svcs'") in told
    told = [one for one in callers() if not isinstance(one, Caller)]
    assert ("dishka", "not installed: No module named 'dishka'") in told


WAYS_TO_CALL = [*lifespan_deps.CALLERS, *plain.CALLERS]


@pytest.mark.parametrize("caller", WAYS_TO_CALL, ids=names(WAYS_TO_CALL))
def test_each_way_to_call_is_verified_and_measured(caller: Caller) -> None:
    found = asyncio.run(calls._measure([caller], 2, None, lambda: None))
    [result] = found.values()
    assert "problem" not in result
    assert result["visits"] == 2 * caller.visits_per_round


@asynccontextmanager
async def leaving_nothing(calls: Calls) -> AsyncIterator[Call]:
    engine, get_session, handle = calls.make_engine(), calls.session(), calls.taking_session()
    entered = []

    async def call(message: int) -> int:
        entered.append(get_session(engine))
        return await handle(message, engine, await anext(entered[-1]))  # type: ignore[no-any-return]

    yield call
    for generator in entered:
        await anext(generator, None)


@asynccontextmanager
async def leaving_late(calls: Calls) -> AsyncIterator[Call]:
    engine, get_session, handle = calls.make_engine(), calls.session(), calls.taking_session()
    entered = []

    async def call(message: int) -> None:
        entered.append(get_session(engine))
        await handle(message, engine, await anext(entered[-1]))
        if len(entered) == 10:
            for generator in entered:
                await anext(generator, None)

    yield call


@asynccontextmanager
async def sharing_nothing(calls: Calls) -> AsyncIterator[Call]:
    open_session, handle = asynccontextmanager(calls.session()), calls.taking_session()

    async def call(message: int) -> int:
        engine = calls.make_engine()
        async with open_session(engine) as session:
            return await handle(message, engine, session)  # type: ignore[no-any-return]

    yield call


@asynccontextmanager
async def keeping_a_session(calls: Calls) -> AsyncIterator[Call]:
    engine, handle = calls.make_engine(), calls.taking_session()
    async with asynccontextmanager(calls.session())(engine) as session:
        yield lambda message: handle(message, engine, session)


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        (leaving_nothing, "does not leave: 10 sessions began, 0 ended"),
        (leaving_late, "an earlier session goes on"),
        (sharing_nothing, "it got <benchmarks.competitors.calling.Engine object"),
        (keeping_a_session, "does not leave: 1 sessions began, 0 ended"),
    ],
)
def test_a_way_to_call_that_does_something_else_is_told(start: Start, problem: str) -> None:
    wrong = Caller("wrong", start, plain.shielded)
    found = asyncio.run(calls._measure([wrong], 2, None, lambda: None))
    assert found["wrong"]["problem"].startswith(f"WrongAnswer: {problem}")


def test_budgets_of_calls_are_about_the_fastest_way_of_another_library() -> None:
    ratios = {"fastapi-lifespan-deps": 1.2, "dishka": 2.0, "dishka, slow": 3.0}
    rows = {name: {"ratio": ratio, "margin": 0.0} for name, ratio in ratios.items()}
    rows |= {"fast-depends": {"problem": "not installed"}}  # type: ignore[dict-item]
    found = list(report.budgets({"calls": {"callers": rows}}))
    assert [(budget.what, budget.measured, budget.is_met) for budget in found] == [
        ("call ÷ by hand, shielded", 1.2, True),
        ("call ÷ dishka", 0.6, True),
    ]


def test_a_chunk_is_compared_with_the_chunks_of_its_baseline_beside_it() -> None:
    served: list[str] = []

    def subject(name: str, baseline: Subject | None = None) -> Subject:
        async def serve(count: int) -> None:
            served.append(name)

        return Subject(serve, baseline)

    base = subject("base")
    subjects = [subject("one", base), subject("two", base)]
    asyncio.run(measure(subjects, 3, random.Random(0), None, lambda: None))
    turns = served[::2]  # each is served a little before, to warm up
    assert served[1::2] == turns
    for start in (0, 5, 10):
        one_round = turns[start : start + 5]
        assert one_round[::2] == ["base"] * 3
        assert sorted(one_round[1::2]) == ["one", "two"]
    assert [len(one.own) for one in subjects] == [3, 3]


@pytest.mark.unix
@pytest.mark.skipif(
    not hasattr(fastapi.routing, "iter_route_contexts"), reason="walks what 0.137.2 brought"
)
@pytest.mark.parametrize("variant", ["fastapi", "without", "with"])
def test_a_visit_of_the_startup_benchmark_gets_the_right_answers(variant: str) -> None:
    from benchmarks import startup

    found = asyncio.run(startup._visit(variant, 200, "parts"))
    assert found.keys() >= {"build", "walk", "startup", "startup again", "share"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (live.WebSockets, {"close", "refresh", "uninvolved"}),
        (live.Dependents, {"dependents"}),
        (live.Chain, {"chain"}),
    ],
)
def test_each_live_operation_is_verified_and_measured(
    kind: Callable[[int], live.Subject], names: set[str]
) -> None:
    found = asyncio.run(live._measure(kind, (2, 4), 3, lambda text: None))
    assert found.keys() == names <= live.NAMES.keys()
    for samples in found.values():
        assert {number: len(seconds) for number, seconds in samples.items()} == {2: 3, 4: 3}


def test_the_worst_doubling_of_a_live_operation_is_what_the_budget_is_about() -> None:
    growth = live._growth({1: [1.0, 9.0, 2.0], 2: [2.0, 2.0, 2.0], 4: [9.0, 8.0, 8.0]})
    assert growth["ratios"] == [2.0, 4.0]
    [budget] = report.budgets({"live": {"rows": {"close": {"what": "one closes", **growth}}}})
    assert (budget.measured, budget.is_met) == (4.0, False)
