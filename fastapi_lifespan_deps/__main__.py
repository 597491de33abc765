"""`python -m fastapi_lifespan_deps`."""

from .command.cli import cli

cli(prog_name="fastapi-lifespan-deps")
