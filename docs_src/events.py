from collections import Counter

from fastapi_lifespan_deps import LifespanEvent, LifespanFastAPI

from .first_steps import read_user

start_seconds: dict[str, float] = {}
failures: Counter[tuple[str, str | None]] = Counter()


def listen(event: LifespanEvent) -> None:
    if event.kind == "started" and event.where and event.seconds is not None:
        start_seconds[f"{event.name} {event.where}"] = event.seconds
    elif event.kind == "up":
        print("Slow to start:", sorted(start_seconds, key=start_seconds.__getitem__)[-3:])
    elif event.error is not None:
        failures[event.kind, event.where] += 1


app = LifespanFastAPI(on_lifespan_event=listen)
app.get("/users/{user_id}")(read_user)
