"""Command line: `fastapi-lifespan-deps`, also `python -m fastapi_lifespan_deps`."""

import logging
import sys
from importlib import import_module
from typing import Annotated, Any

import anyio

from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.call.inject import container_of
from fastapi_lifespan_deps.call.sets import chosen, dependency_sets
from fastapi_lifespan_deps.call.signals import listening
from fastapi_lifespan_deps.call.worker import SIGNALS, WorkerSummary, run_worker
from fastapi_lifespan_deps.exceptions import LifespanDependencyError

try:
    import typer
except ModuleNotFoundError:
    sys.exit("The command line needs typer: pip install 'fastapi-lifespan-deps[cli]'")

cli = typer.Typer(
    name="fastapi-lifespan-deps",
    help="Dependencies that live as long as an application, or a worker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.callback()
def main() -> None: ...  # with one command alone, typer would take its name away


@cli.command()
def worker(
    handler: Annotated[str, typer.Argument(help="The function that takes a message: main:handle")],
    messages: Annotated[
        str, typer.Option(help="An async iterable, or a function that returns one: main:messages")
    ],
    dependencies: Annotated[
        str | None,
        typer.Option(help="A set of dependencies that an installed package offers, by its name"),
    ] = None,
    on_done: Annotated[
        str | None, typer.Option(help="What acknowledges (message, result): main:acknowledge")
    ] = None,
    on_error: Annotated[
        str | None, typer.Option(help="What decides about (message, error): main:give_up")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Messages handled at once")] = 1,
    call_timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds that one message may take")
    ] = None,
    grace_period: Annotated[
        float, typer.Option(min=0, help="Seconds that running calls have after SIGTERM or SIGINT")
    ] = 30.0,
) -> None:
    """Handle messages until there are no more, or until SIGTERM or SIGINT comes.

    MODULE:NAME is looked up from the current directory.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if call_timeout == 0:
        raise typer.BadParameter("give more than 0 seconds", param_hint="--call-timeout")

    async def work() -> WorkerSummary:
        # From here on, so that a signal lets everything that has started stop again.
        with listening(SIGNALS, lambda received: None):
            handle, source = _found(handler, "HANDLER"), _found(messages, "--messages")
            done = None if on_done is None else _found(on_done, "--on-done")
            error = None if on_error is None else _found(on_error, "--on-error")
            try:
                container = _container([handle, source, done, error], dependencies)
            except LifespanDependencyError as problem:
                typer.echo(f"{type(problem).__name__}: {problem}", err=True)
                raise typer.Exit(2) from None
            async with container:
                return await run_worker(
                    handle,
                    source,
                    container=container,
                    on_done=done,
                    on_error=error,
                    call_timeout=call_timeout,
                    concurrency=concurrency,
                    grace_period=grace_period,
                )

    typer.echo(anyio.run(work))


def _found(place: str, parameter: str) -> Any:
    """What a place names: MODULE:NAME."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise typer.BadParameter(f"{place!r}: write MODULE:NAME", param_hint=parameter)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        problem = f"there is no module {error.name!r}"
        raise typer.BadParameter(f"{place!r}: {problem}", param_hint=parameter) from None
    for part in name.split("."):
        if not hasattr(found, part):
            problem = f"{place.removesuffix(name)[:-1]!r} has no {part!r}"
            raise typer.BadParameter(f"{place!r}: {problem}", param_hint=parameter)
        found = getattr(found, part)
    if parameter != "--messages" and not callable(found):
        raise typer.BadParameter(f"{place!r} is not a function", param_hint=parameter)
    return found


def _container(found: list[Any], name: str | None) -> LifespanContainer:
    """The container that the functions bring, with a set added; or one that is made of a set."""
    functions = [one for one in found if callable(one)]
    brought = {id(one): one for one in map(container_of, functions) if one is not None}
    if len(brought) > 1:
        raise typer.BadParameter(
            "these functions are injected by different containers: use one for all"
        )
    for container in brought.values():
        assert isinstance(container, LifespanContainer)
        if name is not None:
            container._add(*chosen(name))
        container._keep(functions)
        return container
    if name is None and not dependency_sets():
        return LifespanContainer(handlers=functions)
    return LifespanContainer.from_set(name, handlers=functions)
