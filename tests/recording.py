"""Providers that write down what happens to them."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi_lifespan_deps import Depends, LifespanFastAPI

Provider = Callable[..., Any]


@dataclass(eq=False)
class Value:
    """What a provider made here gives: it knows whether it is still alive."""

    name: str
    needs: tuple["Value", ...]
    is_alive: bool = True


async def nothing(moment: str) -> None:
    """Let everything succeed."""


def provider(
    name: str,
    events: list[str],
    *needs: Provider,
    trouble: Callable[[str], Awaitable[None]] = nothing,
) -> Provider:
    """An asynchronous generator without `try`: only a proper stop gets it to its end.

    It awaits `trouble("start of name")` and `trouble("stop of name")` in between.
    """

    async def get(**values: Value) -> AsyncIterator[Value]:
        await trouble(f"start of {name}")
        value = opened(name, events, values)
        yield value
        closed(value, events)
        await trouble(f"stop of {name}")

    return named(get, name, needs)


def sync_provider(name: str, events: list[str], *needs: Provider) -> Provider:
    """The same as a synchronous generator."""

    def get(**values: Value) -> Iterator[Value]:
        value = opened(name, events, values)
        yield value
        closed(value, events)

    return named(get, name, needs)


def opened(name: str, events: list[str], needs: dict[str, Value]) -> Value:
    assert all(need.is_alive for need in needs.values())
    events.append(f"start {name}")
    return Value(name, tuple(needs.values()))


def closed(value: Value, events: list[str]) -> None:
    assert value.is_alive, f"{value.name} was stopped twice"
    assert all(need.is_alive for need in value.needs)
    value.is_alive = False
    events.append(f"stop {value.name}")


def named(get: Any, name: str, needs: Sequence[Provider]) -> Provider:
    """Give a function that takes `**values` a name, and a parameter for each need."""
    get.__name__ = get.__qualname__ = name
    get.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                f"need_{index}",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[Value, Depends(need, scope="lifespan")],
            )
            for index, need in enumerate(needs)
        ]
    )
    return get  # type: ignore[no-any-return]


def app_with(*providers: Provider, **options: Any) -> LifespanFastAPI:
    """An application with one route, which needs `providers`."""
    app = LifespanFastAPI(**options)

    @app.get("/", dependencies=[Depends(get, scope="lifespan") for get in providers])
    async def read_root() -> None: ...

    return app


def starts_and_stops(events: list[str]) -> tuple[list[str], list[str]]:
    """The names that were started, and those that were stopped, each in order."""
    started = [event.removeprefix("start ") for event in events if event.startswith("start ")]
    stopped = [event.removeprefix("stop ") for event in events if event.startswith("stop ")]
    return started, stopped


def leaves(error: BaseException | None) -> list[BaseException]:
    """The exceptions that an exception group is made of."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [] if error is None else [error]
