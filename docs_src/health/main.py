import os
from collections.abc import AsyncIterator
from typing import Annotated

from redis.asyncio import Redis

from fastapi_lifespan_deps import Depends, LifespanFastAPI, add_health_routes


async def get_cache() -> AsyncIterator[Redis]:
    url = os.environ.get("REDIS_URL", "redis://localhost")
    async with Redis.from_url(url, decode_responses=True) as redis:
        await redis.ping()  # without it, the application does not start
        yield redis


async def ping(redis: Redis) -> None:
    await redis.ping()


CacheDep = Annotated[Redis, Depends(get_cache, scope="lifespan", health=ping)]

app = LifespanFastAPI()
add_health_routes(app, ready=[get_cache])


@app.get("/hits/{page}")
async def count_hit(page: str, cache: CacheDep) -> int:
    hits: int = await cache.incr(page)
    return hits
