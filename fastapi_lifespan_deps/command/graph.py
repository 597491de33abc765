"""The command `graph`: show what would be started, and what depends on what."""

from typing import Annotated, Literal

import typer

from fastapi_lifespan_deps.serve.applications import lifespan_graph

from .check import App, Factory
from .telling import WRONG, found_or_exit, own_error, quietly, say, shown


def graph(
    app: App = None,
    factory: Factory = False,
    format: Annotated[
        Literal["tree", "mermaid", "json"], typer.Option(help="How to write it")
    ] = "tree",
    why: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say why this one is started, and no more")
    ] = None,
    routes: Annotated[
        bool, typer.Option("--routes", help="Begin the tree with the routes that need something")
    ] = False,
) -> None:
    """Show what would be started, and what depends on what. Numbers are the start order.

    Exit codes: 0, 1 if it cannot be started in order or --why names nothing, 2 if there is no
    application that knows the lifespan scope.
    """
    if why is not None and (format != "tree" or routes):
        raise typer.BadParameter("--why answers in words: drop --format and --routes")
    if routes and format != "tree":
        raise typer.BadParameter(f"{format} has the routes anyway: drop --routes")
    with quietly():
        found = found_or_exit(app, factory)
        try:
            planned = lifespan_graph(found.app)
            if why is not None:
                text = planned.why(why)
            elif format == "tree":
                text = planned.tree(routes=routes)
            else:
                text = planned.mermaid() if format == "mermaid" else planned.json()
        except Exception as error:
            # an override may raise whatever it likes when it is looked at
            say(shown(own_error(error) or error))
            raise typer.Exit(WRONG) from None
    typer.echo(text or f"{found.place}: no lifespan dependencies.")
