import logging
from collections import Counter

from fastapi_lifespan_deps import LifespanEvent, LifespanFastAPI

from .first_steps import read_user

logger = logging.getLogger(__name__)
counted: Counter[tuple[str, str | None]] = Counter()


def listen(event: LifespanEvent) -> None:
    counted[event.kind, event.name] += 1
    if event.kind == "up":
        logger.info("Up after %.1f seconds", event.seconds)
    elif event.kind == "started" and event.seconds is not None and event.seconds > 1:
        logger.warning("%s (%s) started slowly", event.name, event.where)
    elif event.error is not None and not event.is_raised:
        logger.error("%s: %s", event.name, event.kind, exc_info=event.error)


app = LifespanFastAPI(on_lifespan_event=listen)
app.get("/users/{user_id}")(read_user)
