"""Clauses 5 and 9, planning: a plan has each node once, in order, and overrides change the rest."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from fastapi_lifespan_deps import DependencyCycleError, DependencyScopeError, Depends
from fastapi_lifespan_deps.declare.params import LIFESPAN_NOTE, Key, Place
from fastapi_lifespan_deps.declare.plan import Declaration, Node, Plan, Planner
from fastapi_lifespan_deps.exceptions import Step


class Provider:
    """A provider that takes other providers; `own` are taken with `use_cache=False`."""

    def __init__(self, name: str, needs: Iterable[Any] = (), own: Iterable[Any] = ()) -> None:
        self.__name__ = self.__qualname__ = name
        self.needs = [*needs, *own]
        takes = [(need, True) for need in needs] + [(need, False) for need in own]
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter(
                    f"p{index}",
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[
                        object, Depends(need, use_cache=use_cache, scope="lifespan")
                    ],
                )
                for index, (need, use_cache) in enumerate(takes)
            ]
        )

    def __call__(self, **values: object) -> None:
        raise AssertionError("planning starts nothing")

    def __repr__(self) -> str:
        return f"{self.__name__}({', '.join(need.__name__ for need in self.needs)})"


APP = FastAPI()


def declare(provider: Any, place: Place | None = None, domain: Any = APP) -> Declaration:
    steps = (Step("GET /"), Step("value", provider, LIFESPAN_NOTE))
    return Declaration(domain, Key(provider, place), steps)


def make_plan(
    planner: Planner,
    providers: Iterable[Any],
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Plan:
    return planner.plan(map(declare, providers), {APP: overrides or {}})


def node_of(plan: Plan, provider: Any, domain: Any = APP) -> Node:
    found = plan.resolved[domain, Key(provider)]
    assert isinstance(found, Node), found
    return found


@st.composite
def graphs(draw: st.DrawFn) -> list[Provider]:
    """Providers without cycles, in an order in which each comes after what it needs."""
    providers: list[Provider] = []
    for index in range(draw(st.integers(1, 8))):
        needs = st.lists(st.sampled_from(providers), unique_by=id) if providers else st.just([])
        providers.append(Provider(f"get_{index}", draw(needs)))
    return providers


def below(provider: Provider) -> set[Provider]:
    """A provider and all that it depends on."""
    return {provider}.union(*map(below, provider.needs))


@given(graphs(), st.data())
def test_each_provider_is_planned_once_after_what_it_needs_else_as_declared(
    providers: list[Provider], data: st.DataObject
) -> None:
    declared = data.draw(st.lists(st.sampled_from(providers), min_size=1))
    plan = make_plan(Planner(), declared)

    expected: list[Provider] = []

    def expect(provider: Provider) -> None:
        if provider not in expected:
            for need in provider.needs:
                expect(need)
            expected.append(provider)

    for provider in declared:
        expect(provider)
    assert [node.provider for node in plan.nodes] == expected
    assert not plan.errors
    started: set[Node] = set()
    for node in plan.nodes:
        assert started.issuperset(node.dependencies)
        started.add(node)


@given(graphs(), st.data())
def test_what_a_node_is_given_is_what_its_provider_asks_for(
    providers: list[Provider], data: st.DataObject
) -> None:
    plan = make_plan(Planner(), data.draw(st.permutations(providers)))
    for provider in providers:
        given = [(name, node) for name, node in node_of(plan, provider).arguments]
        asked = [(f"p{index}", node_of(plan, need)) for index, need in enumerate(provider.needs)]
        assert given == asked


@given(graphs(), st.data())
def test_equal_plans_are_made_of_the_same_nodes(
    providers: list[Provider], data: st.DataObject
) -> None:
    planner = Planner()
    first = make_plan(planner, providers)
    again = make_plan(planner, providers)
    shuffled = make_plan(planner, data.draw(st.permutations(providers)))
    assert list(map(id, again.nodes)) == list(map(id, first.nodes))
    assert set(map(id, shuffled.nodes)) == set(map(id, first.nodes))
    other = make_plan(Planner(), providers)
    assert set(map(id, other.nodes)).isdisjoint(map(id, first.nodes))


@given(graphs(), st.data())
def test_overriding_a_provider_changes_its_node_and_its_dependents_and_nothing_else(
    providers: list[Provider], data: st.DataObject
) -> None:
    planner = Planner()
    before = make_plan(planner, providers)
    index = data.draw(st.integers(0, len(providers) - 1))
    overridden = providers[index]
    needs = st.lists(st.sampled_from(providers[:index]), unique_by=id) if index else st.just([])
    fake = Provider("get_fake", data.draw(needs))

    during = make_plan(planner, providers, {overridden: fake})
    for provider in providers:
        kept = node_of(during, provider) is node_of(before, provider)
        assert kept is (overridden not in below(provider))
    assert node_of(during, overridden).provider is fake
    assert all(node.provider is not overridden for node in during.nodes)

    after = make_plan(planner, providers)
    assert list(map(id, after.nodes)) == list(map(id, before.nodes))
    assert make_plan(planner, providers, {overridden: overridden}).nodes == before.nodes


@given(graphs(), st.data())
def test_an_override_that_closes_a_circle_fails_what_needs_it_and_shows_the_circle(
    providers: list[Provider], data: st.DataObject
) -> None:
    planner = Planner()
    before = make_plan(planner, providers)
    top = data.draw(st.sampled_from(providers))
    bottom = data.draw(st.sampled_from(sorted(below(top), key=providers.index)))
    fake = Provider("get_fake", [top])

    plan = make_plan(planner, providers, {bottom: fake})
    affected = [provider for provider in providers if bottom in below(provider)]
    assert len(plan.errors) == len(affected) > 0
    for provider in providers:
        found = plan.resolved[APP, Key(provider)]
        if provider not in affected:
            assert found is node_of(before, provider)
            continue
        assert isinstance(found, DependencyCycleError)
        calls = [step.call for step in found.path]
        assert calls[0] == calls[-1]
        assert len(set(calls[:-1])) == len(calls) - 1
        assert fake in calls
        assert f"overrides {bottom.__name__}" in str(found)
        for one, following in pairwise(calls):
            assert isinstance(one, Provider)
            assert following in [fake if need is bottom else need for need in one.needs]


@given(graphs(), st.data())
def test_every_place_of_use_cache_false_has_a_node_of_its_own(
    providers: list[Provider], data: st.DataObject
) -> None:
    own = data.draw(st.lists(st.sampled_from(providers), min_size=1))
    taker = Provider("get_taker", own=own)
    declarations = [declare(taker), *(declare(one, Place("route", i)) for i, one in enumerate(own))]
    planner = Planner()
    plan = planner.plan(declarations, {APP: {}})

    places = [node.place for node in plan.nodes if node.place is not None]
    assert len(places) == len(set(places)) == 2 * len(own)
    assert {*places} == {Place(taker, f"p{i}") for i in range(len(own))} | {
        Place("route", i) for i in range(len(own))
    }
    shared = [node.provider for node in plan.nodes if node.place is None]
    assert len(shared) == len(set(shared))
    assert list(planner.plan(declarations, {APP: {}}).nodes) == list(plan.nodes)


@given(graphs(), st.data())
def test_overrides_of_one_application_leave_another_alone(
    providers: list[Provider], data: st.DataObject
) -> None:
    other = FastAPI()
    overridden = data.draw(st.sampled_from(providers))
    fake = Provider("get_fake")
    plan = Planner().plan(
        [declare(provider, domain=domain) for domain in (APP, other) for provider in providers],
        {APP: {overridden: fake}, other: {}},
    )
    assert not plan.errors
    for provider in providers:
        shared = node_of(plan, provider) is node_of(plan, provider, other)
        assert shared is (overridden not in below(provider))
        assert node_of(plan, provider, other).provider is provider


def test_a_domain_without_overrides_need_not_be_known() -> None:
    provider = Provider("get_value")
    plan = Planner().plan([declare(provider, domain=None)], {})
    assert [node.provider for node in plan.nodes] == [provider]


def test_the_application_is_an_argument_without_a_node() -> None:
    def get_title(app: FastAPI, suffix: str = "") -> str:
        raise AssertionError

    (node,) = make_plan(Planner(), [get_title]).nodes
    assert node.arguments == (("app", None),)
    assert node.dependencies == []


def test_an_invalid_declaration_spoils_what_needs_it_and_no_other() -> None:
    def get_invalid(q: int) -> int:
        raise AssertionError

    first, last = Provider("get_first"), Provider("get_last")
    overridden = Provider("get_overridden")
    taker = Provider("get_taker", [first, overridden])
    providers = [taker, last, overridden]
    plan = make_plan(Planner(), providers, {overridden: get_invalid})
    assert [type(error) for error in plan.errors] == [DependencyScopeError] * 2
    assert node_of(plan, last) in plan.nodes
    error = plan.resolved[APP, Key(taker)]
    assert isinstance(error, DependencyScopeError)
    labels = [step.label for step in error.path]
    assert labels == ["GET /", "value", "p1", "q: int"]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_message_shows_the_whole_circle(length: int) -> None:
    providers = [Provider("get_0")]
    for index in range(1, length):
        providers.append(Provider(f"get_{index}", [providers[-1]]))
    closing = Provider("get_closing", [providers[-1]])
    plan = make_plan(Planner(), [providers[-1]], {providers[0]: closing})
    (error,) = plan.errors
    assert isinstance(error, DependencyCycleError)
    circle = [closing, *providers[:0:-1]]
    assert {step.call for step in error.path} == {*circle}
    assert len(error.path) == len(circle) + 1
    assert all(provider.__name__ in str(error) for provider in circle)
