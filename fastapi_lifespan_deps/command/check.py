"""The command `check`: plan what would be started, and start nothing."""

from typing import Annotated

import typer

from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.declare.collect import Route
from fastapi_lifespan_deps.declare.doubts import doubts, unused_overrides
from fastapi_lifespan_deps.exceptions import LifespanDependencyError
from fastapi_lifespan_deps.serve.applications import has_startup_code, planning_of
from fastapi_lifespan_deps.serve.lifespan import check_required

from .finding import Found
from .telling import WRONG, found_or_exit, own_error, quietly, say, shown

App = Annotated[
    str | None,
    typer.Argument(
        metavar="MODULE:NAME",
        help="The application, or the container. Left out, it is what `fastapi run` would run",
        show_default=False,
    ),
]
Factory = Annotated[bool, typer.Option("--factory", help="NAME is a function that makes it")]


def check(
    app: App = None,
    factory: Factory = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail also for what it warns of")
    ] = False,
) -> None:
    """Plan what would be started, and start nothing: for CI.

    Exit codes: 0 if it can be started in order, 1 if it cannot, 2 if there is no application that
    knows the lifespan scope.
    """
    with quietly():
        found = found_or_exit(app, factory)
        errors, warnings, text = _looked_at(found)
    for error in errors:
        say(error)
    for warning in warnings:
        say(f"{'Error' if strict else 'Warning'}: {warning}")
    if errors or (warnings and strict):
        raise typer.Exit(WRONG)
    typer.echo(text)


def _looked_at(found: Found) -> tuple[list[str], list[str], str]:
    """What is wrong, what is doubtful, and what there is."""
    has_code = has_startup_code(found.app)
    try:
        planning = planning_of(found.app)
        originals, plan = planning.plans()
        if not (plan.errors or has_code):  # which may add what is asked for
            check_required(originals, plan)
    except LifespanDependencyError as error:  # of a hook, say
        return [shown(error)], [], ""
    found_errors = [shown(own_error(error) or error) for error in reversed(plan.errors)]
    # one that several ways lead to is told once, by the first of them
    errors = list({text.partition("\n\n")[0]: text for text in found_errors}.values())[::-1]
    sources = list(planning.sources)
    warnings = [*doubts(sources, plan), *unused_overrides(sources, plan)]
    is_container = isinstance(found.app, LifespanContainer)
    routes = sum(isinstance(source, Route) for source in sources)
    users = _counted(len(sources), "declaration") if is_container else _counted(routes, "route")
    lines = [f"{_counted(len(plan.nodes), 'lifespan dependency')} for {users}, in order."]
    if has_code:
        lines.append(
            "Its startup code was not run: routes that the lifespan function or a hook adds are "
            "not among them."
        )
    return errors, warnings, "\n".join(f"{found.place}: {line}" for line in lines)


def _counted(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
