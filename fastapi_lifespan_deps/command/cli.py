"""The command line: `fastapi-lifespan-deps`, also `python -m fastapi_lifespan_deps`."""

import os
import sys

try:
    import rich  # noqa: F401
    import typer
except ModuleNotFoundError:
    needs = "The command line needs typer and rich: pip install 'fastapi-lifespan-deps[cli]'"
    print(needs, file=sys.stderr)
    sys.exit(2)

from .check import check
from .graph import graph
from .start import start
from .worker import worker

cli = typer.Typer(
    name="fastapi-lifespan-deps",
    help="Dependencies that live as long as an application, or a worker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cli.callback()
def main() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, by a service manager, say
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # it may not know the lines of a tree


cli.command()(check)
cli.command()(graph)
cli.command()(start)
cli.command()(worker)
