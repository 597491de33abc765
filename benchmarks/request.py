"""What a lifespan dependency costs per request, against an endpoint that reads module globals.

Both applications answer in this process, without a server, in chunks that take turns; a chunk's
ratio is formed with the global chunks before and after it. Run it on a quiet machine:

    .venv/bin/python benchmarks/request.py
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI


class Value:
    """What an endpoint takes."""


def globals_app(count: int) -> FastAPI:
    """An endpoint that reads module globals: the least that it can cost."""
    app = FastAPI(openapi_url=None)
    names = [f"value_{index}" for index in range(count)]
    source = f"async def endpoint():\n    return len([{', '.join(names)}])"
    scope: dict[str, Any] = {name: Value() for name in names}
    exec(source, scope)
    app.get("/")(scope["endpoint"])
    return app


def lifespan_app(count: int) -> FastAPI:
    """An endpoint that takes as many lifespan dependencies."""
    app = LifespanFastAPI(openapi_url=None)
    scope: dict[str, Any] = {}
    parameters = []
    for index in range(count):

        async def provider() -> Value:
            return Value()

        name = f"value_{index}"
        scope[f"Type_{index}"] = Annotated[Value, Depends(provider, scope="lifespan")]
        parameters.append(f"{name}: Type_{index}")
    names = [f"value_{index}" for index in range(count)]
    source = f"async def endpoint({', '.join(parameters)}):\n    return len([{', '.join(names)}])"
    exec(source, scope)
    app.get("/")(scope["endpoint"])
    return app


async def request(app: FastAPI, state: Mapping[str, Any], expected: bytes) -> None:
    body = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": dict(state),
        },
        receive,
        send,
    )
    assert body == expected, body


async def chunk(app: FastAPI, state: Mapping[str, Any], expected: bytes, requests: int) -> float:
    start = time.process_time()
    for _ in range(requests):
        await request(app, state, expected)
    return time.process_time() - start


async def compare(count: int, chunks: int, requests: int) -> tuple[float, float, float]:
    """The median ratio, and the two medians in microseconds per request."""
    expected = str(count).encode()
    plain, ours = globals_app(count), lifespan_app(count)
    ratios, base_times, our_times = [], [], []
    async with (
        plain.router.lifespan_context(plain) as plain_state,
        ours.router.lifespan_context(ours) as our_state,
    ):
        # as a server does it: each request gets a copy of what the lifespan has yielded
        of_plain = plain, plain_state or {}, expected, requests
        of_ours = ours, our_state or {}, expected, requests
        await chunk(*of_plain)
        await chunk(*of_ours)
        before = await chunk(*of_plain)
        for _ in range(chunks):
            taken = await chunk(*of_ours)
            after = await chunk(*of_plain)
            ratios.append(taken / ((before + after) / 2))
            base_times.append(after / requests * 1e6)
            our_times.append(taken / requests * 1e6)
            before = after
    return statistics.median(ratios), statistics.median(base_times), statistics.median(our_times)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=60, help="chunks of each application")
    parser.add_argument("--requests", type=int, default=300, help="requests in a chunk")
    options = parser.parse_args()
    print(f"{'N':>3} {'globals':>10} {'lifespan':>10} {'ratio':>7}")
    for count in (1, 5, 20):
        ratio, base, ours = await compare(count, options.chunks, options.requests)
        print(f"{count:>3} {base:>7.1f} µs {ours:>7.1f} µs {ratio:>7.3f}")


if __name__ == "__main__":
    asyncio.run(main())
