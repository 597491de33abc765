"""docs_src/workers/celery_app.py, and a task that waits: what tests/test_celery.py runs."""

import os
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

from celery import current_task, signals
from redis import Redis

from docs_src.workers.celery_app import EngineDep, SessionDep, app, container, start, stop
from fastapi_lifespan_deps import Depends

__all__ = ["app"]

this_task: Any = current_task


def get_task_id() -> tuple[str, int]:
    """What a dependency sees of the task, and in which thread."""
    return str(this_task.request.id), threading.get_ident()


async def get_thread() -> AsyncIterator[int]:
    assert not current_task  # which is that of a thread
    yield threading.get_ident()


@app.task
@container.inject
def hold(
    item: str,
    writes: bool,
    *,
    engine: EngineDep,
    session: SessionDep,
    seen: Annotated[tuple[str, int], Depends(get_task_id)],
    loop: Annotated[int, Depends(get_thread)],
) -> dict[str, Any]:
    """Write, which locks the database, or don't; and wait until `item` may go on."""
    if writes:
        session.execute("INSERT INTO orders VALUES (?, 0)", (item,))
    with Redis.from_url(app.conf.broker_url, socket_timeout=120) as redis:
        redis.rpush("held", item)
        redis.blpop([f"go on, {item}"], timeout=60)
    here = threading.get_ident()
    return {
        "process": os.getpid(),
        "engine": id(engine),
        "thread": here,
        "is seen": seen == (this_task.request.id, here),
        "loop": loop,
    }


if os.environ.get("START_BEFORE_THE_FORK"):
    signals.worker_process_init.disconnect(start)
    signals.worker_process_shutdown.disconnect(stop)
    signals.worker_init.connect(start)
