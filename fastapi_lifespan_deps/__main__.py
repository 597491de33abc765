"""`python -m fastapi_lifespan_deps`."""

from .see.command_line import cli

cli(prog_name="fastapi-lifespan-deps")
