"""Serve: the running set of one run, its generations, and what overrides do to it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import anyio
from starlette.requests import HTTPConnection
from starlette.types import Scope
from typing_extensions import TypeVar

from ._compat import overrides_provider
from .binding import BoundCall, bind
from .collect import Function, Route, Site
from .exceptions import name_of
from .generation import Generation, ended_by_itself
from .instance import Instance, Supervisor, current_loop, logger
from .params import SCOPE_KEY, Key, not_running
from .plan import Declaration, Domain, Node, Overrides, Plan, Planner

T = TypeVar("T")
D = TypeVar("D", default=None)

if TYPE_CHECKING:
    # What a function gives that makes a `T`, but is not one itself.
    Made = (
        AsyncIterator[T]
        | Iterator[T]
        | Awaitable[T]
        | contextlib._AsyncGeneratorContextManager[T]
        | contextlib._GeneratorContextManager[T]
    )


class Run:
    """One startup-to-shutdown of an application: owner of its instances and generations."""

    def __init__(self, app: Any, collect: Callable[[], Iterable[Route | Function]]) -> None:
        self.app = app
        self.loop = current_loop()
        self.is_serving = False
        self.current = Generation(self, Plan({}), {}, {})
        self._collect = collect
        self._sources: list[Route | Function] = []
        self._others: list[Function] = []
        self._planner = Planner()
        self._supervisor = Supervisor(self._crashed)
        self._instances: dict[Node, Instance] = {}  # in start order
        self._originals = Plan({})  # in force without overrides: kept to the end
        self._next = Plan({})  # while it is being started
        self._failures: dict[Node, BaseException] = {}
        self._is_stale = False  # an update was cut short
        self.retired: list[Generation] = []  # not current, still used by requests
        self._lock = anyio.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the application has scope "lifespan"."""
        return not (self.current.plan.resolved or self._originals.resolved)

    async def start(self, others: Iterable[Function] = ()) -> None:
        """Collect what the application declares, and others, and start what does not run yet.

        Called again when the application's own startup is over: it may have added routes.
        Raise the first error, of a declaration or of a start.
        """
        for instance in self._instances.values():
            if instance.casualty is not None:
                raise ended_by_itself(instance.casualty)
        self._others += others
        known = {id(source.target) for source in self._sources}
        self._sources = [*self._collect(), *self._others]
        is_new = not known or any(id(source.target) not in known for source in self._sources)
        if is_new or self.overrides_changed():
            await self._update(strict=True)

    async def apply_overrides(self) -> None:
        """Make the overrides that are set now effective. Failures are left to the requests."""
        await self._update(strict=False)

    def overrides_changed(self) -> bool:
        """Whether overrides are not what the current generation was made for."""
        if self._is_stale:
            return True
        for domain, applied in self.current.plan.overrides.items():
            if domain.dependency_overrides != applied:
                return True
        return False

    def covers(self, router: Any) -> bool:
        """Whether the routes of an application's router belong to this run."""
        return router.dependency_overrides_provider in self.current.plan.overrides

    def drain(self) -> None:
        """Stop the instances that nothing can use any more."""
        wanted = {*self._originals.nodes, *self._next.nodes, *self.current.plan.nodes}
        for generation in self.retired:
            wanted |= generation.held()
        # not by `remove`: generations are dicts, and equal ones are not the same
        self.retired = [generation for generation in self.retired if generation.requests]
        gone = [instance for node, instance in self._instances.items() if node not in wanted]
        for instance in gone:
            del self._instances[instance.node]
        if gone:
            self._supervisor.retire(gone)

    def release(self, generation: Generation, pinned: Scope | Site) -> None:
        """Note that a request, or a site that kept its values, is over."""
        generation.requests.pop(id(pinned), None)
        if generation is not self.current:  # else it goes on needing all that it has
            self.drain()

    @contextmanager
    def holding(self, site: Site) -> Iterator[dict[str, Any]]:
        """Give the values of a site that keeps them, as a lifespan function does."""
        generation = self.current
        generation.requests[id(site)] = site
        try:
            yield generation[site]
        finally:
            self.release(generation, site)

    async def close(self) -> None:
        """Stop everything, in reverse; then raise what went wrong on the way."""
        self._forget_values()
        try:
            await self._supervisor.close()
        finally:
            self._forget_values()

    async def _update(self, *, strict: bool) -> None:
        async with self._lock:
            if not (strict or self.overrides_changed()):
                return  # another request has seen to it
            self._is_stale = True
            overrides = self._overrides()
            plan = self._next = self._plan(overrides)
            self._originals = plan
            if any(overrides.values()):
                self._originals = self._plan({domain: {} for domain in overrides})
            for error in plan.errors:
                if strict:
                    raise error
                logger.error("A dependency override is not valid", exc_info=error)
            if strict:  # overrides change nothing in what serves the routes
                bound: dict[tuple[int, int], BoundCall] = {}
                for source in self._sources:
                    if isinstance(source, Route):
                        bind(source, bound)
            self._failures = {}
            await self._start(plan, strict)
            self.retired.append(self.current)
            self.current = Generation(self, plan, self._instances, self._failures)
            self._is_stale = False
            self.drain()

    def _overrides(self) -> dict[Domain, Overrides]:
        domains = {source.domain: None for source in self._sources if source.domain is not None}
        return {domain: dict(domain.dependency_overrides) for domain in (self.app, *domains)}

    def _plan(self, overrides: dict[Domain, Overrides]) -> Plan:
        errors: list[Exception] = []
        plan = self._planner.plan(self._declarations(overrides, errors), overrides)
        plan.errors += errors
        return plan

    def _declarations(
        self, overrides: dict[Domain, Overrides], errors: list[Exception]
    ) -> Iterator[Declaration]:
        for source in self._sources:
            try:
                yield from source.declarations(overrides.get(source.domain, {}))
            except Exception as error:  # a wrong override is no other route's trouble
                errors.append(error)

    async def _start(self, plan: Plan, strict: bool) -> None:
        for node in plan.nodes:
            broken = [child for child in node.dependencies if child in self._failures]
            if broken:
                self._failures[node] = self._failures[broken[0]]
            elif node not in self._instances:
                try:
                    await self._start_node(node)
                except Exception as error:
                    if strict:
                        raise
                    logger.error("`%s` failed to start", name_of(node.provider), exc_info=error)
                    # in no name here: the error's traceback leads here, and would never be freed
                    self._failures[node] = error

    async def _start_node(self, node: Node) -> None:
        dependencies = [self._instances[child] for child in node.dependencies]
        instance = Instance(node, dependencies, self._supervisor)
        if instance.casualty is not None:
            raise ended_by_itself(instance.casualty)
        arguments = {
            name: self.app if child is None else self._instances[child].value
            for name, child in node.arguments
        }
        try:
            await self._supervisor.start(instance, arguments)
        except BaseException:
            if instance.started:  # it got as far as that before it was cancelled
                self._instances[node] = instance
            raise
        self._instances[node] = instance

    def _crashed(self, instance: Instance) -> None:
        logger.error(
            "`%s` ended by itself while serving",
            name_of(instance.node.provider),
            exc_info=instance.error,
        )
        self._forget_values()

    def _forget_values(self) -> None:
        """Let each site be worked out anew, and be found without what is gone."""
        for generation in (self.current, *self.retired):
            generation.clear()


class LifespanContainer:
    """The running set of an application's lifespan dependencies, as one request sees it.

    Inject it with `Depends(get_container)` to look a value up by its provider. It belongs to
    the request that it was injected into, and to the event loop of the application: use it
    neither later nor from another thread.

    Example:
        ```python
        @app.get("/pool-size")
        async def read_pool_size(
            container: Annotated[LifespanContainer, Depends(get_container)],
        ) -> int:
            return container[get_pool].size
        ```
    """

    def __init__(self, generation: Generation, domain: Domain) -> None:
        self._generation = generation
        self._domain = domain

    @overload
    def __getitem__(self, provider: type[T]) -> T: ...
    @overload
    def __getitem__(self, provider: "Callable[..., Made[T]]") -> T: ...
    @overload
    def __getitem__(self, provider: Callable[..., T]) -> T: ...
    def __getitem__(self, provider: Callable[..., Any]) -> Any:
        """The value of a lifespan dependency, or of what overrides it.

        Args:
            provider: the callable given to `Depends(..., scope="lifespan")`, with the default
                `use_cache=True` in at least one place.

        Raises:
            UninitializedLifespanDependency: it has no value, for the reason that is given.
        """
        return self._generation.value(self._domain, Key(provider))

    @overload
    def get(self, provider: type[T], default: D = ...) -> T | D: ...
    @overload
    def get(self, provider: "Callable[..., Made[T]]", default: D = ...) -> T | D: ...
    @overload
    def get(self, provider: Callable[..., T], default: D = ...) -> T | D: ...
    def get(self, provider: Callable[..., Any], default: Any = None) -> Any:
        """The value of a lifespan dependency, or `default` if no route declares it.

        Raises:
            UninitializedLifespanDependency: it is declared, but failed.
        """
        if provider not in self:
            return default
        return self[provider]

    def __contains__(self, provider: object) -> bool:
        """Whether the application declares this lifespan dependency."""
        return (self._domain, Key(provider)) in self._generation.plan.resolved  # type: ignore[arg-type]  # any object may be asked for


async def get_container(connection: HTTPConnection) -> LifespanContainer:
    """Give a request the container, pinned to the values that the request itself sees.

    Declare it as an ordinary dependency: `Annotated[LifespanContainer, Depends(get_container)]`.

    Raises:
        UninitializedLifespanDependency: the application is not running, or has no lifespan
            dependencies.
    """
    scope = connection.scope
    generation: Generation | None = scope.get(SCOPE_KEY)
    if generation is None:
        raise not_running(get_container, connection)
    return LifespanContainer(generation, overrides_provider(scope))


get_container.__lifespan_container__ = True  # type: ignore[attr-defined]  # read by collect.py
