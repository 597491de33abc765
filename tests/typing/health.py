"""Health checks, as type checkers see them. Nobody runs this file."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, assert_type

from fastapi_lifespan_deps import (
    DependencyHealth,
    Depends,
    HealthReport,
    LifespanContainer,
    LifespanFastAPI,
    add_health_routes,
)


async def get_engine() -> str:
    return "engine"


async def ping(engine: str) -> None: ...


app = LifespanFastAPI(dependencies=[Depends(get_engine, scope="lifespan", health=ping)])
Depends(get_engine, scope="lifespan", health=lambda engine: engine == "engine")
Depends(get_engine, scope="lifespan", health=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

add_health_routes(app)
add_health_routes(
    app,
    livez=None,
    readyz="/ready",
    ready=[get_engine],
    restart_if_dead={get_engine},
    timeout=timedelta(seconds=1),
    cache=0,
    details="/healthz",
    details_dependencies=[Depends(get_engine)],
)
add_health_routes(app, ready=get_engine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def ask(container: LifespanContainer) -> None:
    report = await container.check_health(timeout=timedelta(seconds=1))
    assert_type(report, HealthReport)
    assert_type(report.status, Literal["pass", "fail"])
    for one in report.dependencies:
        assert_type(one, DependencyHealth)
        assert_type(one.provider, Callable[..., Any])
        assert_type(one.error, BaseException | None)
        assert_type(one.seconds, float | None)


def ask_in_a_thread(container: LifespanContainer) -> None:
    with container.sync() as running:
        assert_type(running.check_health(), HealthReport)
