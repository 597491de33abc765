"""The benchmarks measure what they say, and go on working. None of their figures is tested."""

import asyncio
import gc
import importlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import pytest
from fastapi.testclient import TestClient

from benchmarks import calls, handshakes, live, report, requests
from benchmarks.competitors import (
    callers,
    connectors,
    contestants,
    depends,
    lifespan_deps,
    plain,
)
from benchmarks.competitors.calling import Call, Caller, Calls, Start
from benchmarks.competitors.case import Case, Contestant, endpoint
from benchmarks.competitors.connecting import COUNT, Connector, Handshakes
from benchmarks.measure import Subject, measure


@pytest.fixture(autouse=True)
def small_again() -> None:
    """See `small_heap`: a benchmark thaws everything when it is done."""
    gc.freeze()


def names(found: list[Contestant] | list[Caller] | list[Connector]) -> list[str]:
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
    told = [one for one in connectors() if not isinstance(one, Connector)]
    assert ("wireup", "not installed: No module named 'wireup'") in told


WAYS_TO_CALL = [*lifespan_deps.CALLERS, *plain.CALLERS]


@pytest.mark.parametrize("caller", WAYS_TO_CALL, ids=names(WAYS_TO_CALL))
def test_each_way_to_call_is_verified_and_measured(caller: Caller) -> None:
    found = asyncio.run(calls._measure([caller], 2, None, lambda: None))
    [result] = found.values()
    assert "problem" not in result
    assert result["visits"] == 2 * caller.visits_per_round
    has_session = not caller.in_thread and "values" not in caller.name
    assert result["is_shielded"] == ("not shielded" not in caller.name if has_session else None)


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


CONNECTORS = [*lifespan_deps.CONNECTORS, *plain.CONNECTORS]


@pytest.mark.parametrize("connector", CONNECTORS, ids=names(CONNECTORS))
def test_each_start_with_handshakes_is_verified_and_measured(connector: Connector) -> None:
    found = asyncio.run(handshakes._measure([connector], 0.0, 2, lambda: None))
    [result] = found.values()
    assert "problem" not in result
    assert result["visits"] == 2


async def opening_twice(opener: plain.Opener) -> None:
    await plain.by_levels(opener)
    await opener.open(0)


async def opening_anew(opener: plain.Opener) -> None:
    await plain.by_levels(opener)
    opener.opened[19] = object()


async def leaving_open(opener: plain.Opener) -> None:
    await plain.by_levels(opener)
    opener.stack.pop_all()


async def closing_in_the_order_of_opening(opener: plain.Opener) -> None:
    await plain.by_levels(opener)
    exits = opener.stack.pop_all()._exit_callbacks  # type: ignore[attr-defined]
    opener.stack._exit_callbacks.extend(reversed(exits))  # type: ignore[attr-defined]


async def opening_over_others(opener: plain.Opener) -> None:
    for index in range(COUNT):
        await opener.open(index)
        if index == 6:
            opener.opened[0], opener.opened[1] = opener.opened[1], opener.opened[0]


@pytest.mark.parametrize(
    ("open_all", "problem"),
    [
        (opening_twice, "connection 0 was opened 2 times"),
        (opening_anew, "'0' instead of 6"),
        (leaving_open, "connection 0 wasn't closed"),
        (closing_in_the_order_of_opening, "connection 7 was closed after what it is over"),
        (opening_over_others, "connection 7 was opened over"),
    ],
)
def test_a_start_that_does_something_else_is_told(
    open_all: Callable[[plain.Opener], object], problem: str
) -> None:
    wrong = Connector("wrong", plain.lifespan_function(open_all))
    found = asyncio.run(handshakes._measure([wrong], 0.0, 2, lambda: None))
    assert found["wrong"]["problem"].startswith(f"WrongAnswer: {problem}")


def test_the_longest_path_of_handshakes_has_three() -> None:
    handshakes = Handshakes(0.0)
    with TestClient(lifespan_deps.connecting("concurrent")(handshakes)) as client:
        assert client.get("/").json() == 6

    def depth(connection: Any) -> int:
        return 1 + max(map(depth, connection.over), default=0)

    assert {depth(opened) for [opened] in handshakes.opened} == {1, 2, 3}


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


APPLICATIONS = [
    (name, kind) for name in ("ours", "by hand") for kind in ("waits", "computes", "releases")
]


@pytest.mark.parametrize(("name", "kind"), APPLICATIONS)
def test_each_application_of_the_refresh_benchmark_refreshes(name: str, kind: str) -> None:
    refreshes = the_refresh_benchmark()
    app = refreshes.APPLICATIONS[name](refreshes._provider(kind, 0.0))
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(2)] == [0, 0]
        assert client.post("/refresh").json() == 1
        assert client.get("/").json() == 1


@pytest.mark.parametrize("name", ["ours", "by hand"])
def test_a_refresh_under_load_is_verified_and_measured(name: str) -> None:
    refreshes = the_refresh_benchmark()
    found: Any = {(name, "waits"): []}
    asyncio.run(refreshes._measure(found, 0.05, 1, random.Random(0), lambda: None))
    [(before, during)] = found[name, "waits"]
    assert before.worst >= before.median
    assert during.worst >= during.median


def test_what_is_answered_beside_a_refresh_is_compared_with_what_was_before() -> None:
    refreshes = the_refresh_benchmark()
    answers = [refreshes.Answer(*one) for one in ((0, 1, 4), (1, 2, 4), (2, 5, 4), (5, 6, 5))]
    refreshes._verify(answers, refreshes.Answer(3, 5, 5))
    before, during = (refreshes._window(answers, *times) for times in ((0, 3), (3, 5)))
    assert (before.rate, before.worst) == (2 / 3, 3)
    assert (during.rate, during.worst) == (1 / 2, 3)


@pytest.mark.parametrize("wrong", [(0, 1, 5), (2, 5, 3), (6, 7, 4)])
def test_a_wrong_value_beside_a_refresh_is_told(wrong: tuple[int, int, int]) -> None:
    refreshes = the_refresh_benchmark()
    with pytest.raises(requests.WrongAnswer, match="instead of one of"):
        refreshes._verify([refreshes.Answer(*wrong)], refreshes.Answer(3, 5, 5))


def the_refresh_benchmark() -> Any:
    return needing_a_server("refreshes")


def needing_a_server(name: str) -> Any:
    """A benchmark that needs what only some environments have."""
    pytest.importorskip("uvloop")
    pytest.importorskip("httptools")
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", ["globals", "app.state", "ours"])
def test_each_server_answers_how_many_services_are_right(name: str) -> None:
    with TestClient(needing_a_server("serving")._application(name, 5)) as client:
        assert [client.get("/").json() for _ in range(2)] == [5, 5]
