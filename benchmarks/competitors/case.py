"""One application of one contestant: what it is to inject, and whether it did."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, WebSocket

COUNTS = (0, 1, 5, 20)


class Case:
    """The services that an application is to inject, each of its own type, and one of each.

    All endpoints hand what they have got to a global named `count`, which is `len`. Only while
    `verify` looks on it is something else: so what is measured is what was verified.
    """

    def __init__(self, count: int) -> None:
        self.types: list[type] = [type(f"Service{index}", (), {}) for index in range(count)]
        self.names = [f"service_{index}" for index in range(count)]
        self.made: list[list[object]] = [[] for _ in range(count)]
        self.namespace: dict[str, Any] = {"__name__": __name__, "count": len}

    def make(self, index: int) -> Any:
        """Make a service, as its provider. It must happen once."""
        service = self.types[index]()
        self.made[index].append(service)
        return service

    def sync_provider(self, index: int) -> Callable[[], Any]:
        def provide() -> Any:
            return self.make(index)

        provide.__annotations__["return"] = self.types[index]
        return provide

    def async_provider(self, index: int) -> Callable[[], Any]:
        async def provide() -> Any:
            return self.make(index)

        provide.__annotations__["return"] = self.types[index]
        return provide

    def parameters(self, annotation: Callable[[int], Any]) -> dict[str, Any]:
        """Parameters for all services: the name and annotation of each."""
        return {name: annotation(index) for index, name in enumerate(self.names)}

    def annotated(self, marker: Callable[[int], Any]) -> dict[str, Any]:
        """Parameters whose annotations are a type and a marker."""
        return self.parameters(lambda index: Annotated[self.types[index], marker(index)])

    def tuple_of(self, prefix: str = "") -> str:
        """The expression that is all services."""
        return "(" + "".join(f"{prefix}{name}, " for name in self.names) + ")"

    def define(self, source: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Define a function with these parameters, whose source may name all `{services}`."""
        parameters = parameters or {}
        source = source.format(parameters=", ".join(parameters), services=self.tuple_of())
        exec(source, self.namespace)
        name = source.partition("(")[0].split()[-1]
        defined = self.namespace[name]
        defined.__annotations__ = dict(parameters)
        return defined

    async def verify(self, request: Callable[[], Awaitable[None]]) -> str | None:
        """Send two requests. Say what is wrong if they don't get the one service of each type."""
        received: list[tuple[object, ...]] = []

        def count(services: tuple[object, ...]) -> int:
            received.append(services)
            return len(services)

        self.namespace["count"] = count
        try:
            await request()
            await request()
        finally:
            self.namespace["count"] = len
        if len(received) != 2:
            return f"the endpoint ran {len(received)} times for two requests"
        for made in self.made:
            if len(made) != 1:
                return f"a provider was called {len(made)} times"
        for services in received:
            if len(services) != len(self.made):
                return f"the endpoint got {len(services)} services"
            for service, (made_one,) in zip(services, self.made, strict=True):
                if service is not made_one:
                    return f"the endpoint got {service!r}, not what the provider made"
        return None


@dataclass(frozen=True)
class Contestant:
    """A row of the table: an application, and the same without anything injected."""

    name: str
    build: Callable[[Case], Any]
    baseline: Callable[[Case], Any]
    lifespan: Callable[[Any], Any] = lambda app: app.router.lifespan_context(app)
    is_websocket: bool = False
    counts: tuple[int, ...] = COUNTS
    # The budgets are about 1 %: what they name needs more visits than what is far from it.
    visits_per_round: int = 1


# Where the services are taken. Without parameters, each takes the module globals.
ENDPOINT = "async def endpoint({parameters}):\n    return count({services})"
Form = Callable[[FastAPI, Case, Mapping[str, Any]], None]


def endpoint(app: FastAPI | APIRouter, case: Case, parameters: Mapping[str, Any]) -> None:
    """By an endpoint."""
    app.get("/")(case.define(ENDPOINT, parameters))


def sync_endpoint(app: FastAPI | APIRouter, case: Case, parameters: Mapping[str, Any]) -> None:
    """By a synchronous endpoint."""
    app.get("/")(case.define(ENDPOINT.removeprefix("async "), parameters))


def through_dependency(app: FastAPI | APIRouter, case: Case, parameters: Mapping[str, Any]) -> None:
    """By a request-scoped dependency, which hands them to the endpoint."""
    source = "async def dependency({parameters}):\n    return {services}"
    depends = Annotated[tuple[Any, ...], Depends(case.define(source, parameters))]
    source = "async def endpoint(services):\n    return count(services)"
    app.get("/")(case.define(source, {"services": depends}))


def websocket(app: FastAPI | APIRouter, case: Case, parameters: Mapping[str, Any]) -> None:
    """By a WebSocket that is accepted, sends one text, and is closed."""
    source = """\
async def endpoint({parameters}):
    await websocket.accept()
    await websocket.send_text(str(count({services})))
    await websocket.close()
"""
    app.websocket("/")(case.define(source, {"websocket": WebSocket, **parameters}))
