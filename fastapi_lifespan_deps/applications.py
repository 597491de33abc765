"""`LifespanFastAPI`, and the same for an application that exists already."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI

from .routing import LifespanRouter

App = TypeVar("App", bound=FastAPI)


class LifespanFastAPI(FastAPI):
    """A `FastAPI` application that knows `Depends(..., scope="lifespan")`.

    It takes the arguments of `FastAPI` and behaves as `FastAPI` does, until something declares
    a lifespan dependency: a route, a dependency, a startup or shutdown hook, or the `lifespan`
    function after its application parameter. These are started before the application serves,
    once for each time that it is started, and stopped when it stops.

    Example:
        ```python
        app = LifespanFastAPI()

        @app.get("/")
        async def read_root(
            pool: Annotated[Pool, Depends(get_pool, scope="lifespan")],
        ) -> str:
            return await pool.fetch_value("select version()")
        ```
    """

    def __init__(self, *, lifespan: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(lifespan=lifespan, **options)
        enable_lifespan_scope(self)


def enable_lifespan_scope(app: App) -> App:
    """Give an application whose class is fixed what a `LifespanFastAPI` has.

    Call it before the application starts; where it stands among the routes makes no difference,
    and a second call does nothing. Returns the application itself.

    Example:
        ```python
        app = enable_lifespan_scope(create_app())
        ```
    """
    LifespanRouter.adopt(app.router)
    return app
