"""The command line: `fastapi-lifespan-deps`, also `python -m fastapi_lifespan_deps`."""

import sys

try:
    import typer
except ModuleNotFoundError:
    sys.exit("The command line needs typer: pip install 'fastapi-lifespan-deps[cli]'")

from .worker import worker

cli = typer.Typer(
    name="fastapi-lifespan-deps",
    help="Dependencies that live as long as an application, or a worker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.callback()
def main() -> None: ...  # with one command alone, typer would take its name away


cli.command()(worker)
