"""The command `worker`: handle messages until told to stop."""

import logging
from typing import Annotated, Any

import anyio
import typer

from fastapi_lifespan_deps.call.container import LifespanContainer
from fastapi_lifespan_deps.call.inject import container_of
from fastapi_lifespan_deps.call.sets import chosen, dependency_sets
from fastapi_lifespan_deps.call.signals import listening
from fastapi_lifespan_deps.call.worker import SIGNALS, WorkerSummary, run_worker
from fastapi_lifespan_deps.exceptions import LifespanDependencyError

from .finding import found_at
from .telling import NOT_THERE, say, shown


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
            handle, source = found_at(handler, "HANDLER"), found_at(messages, "--messages")
            done = None if on_done is None else found_at(on_done, "--on-done")
            error = None if on_error is None else found_at(on_error, "--on-error")
            try:
                container = _container([handle, source, done, error], dependencies)
            except LifespanDependencyError as problem:
                say(shown(problem))
                raise typer.Exit(NOT_THERE) from None
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
