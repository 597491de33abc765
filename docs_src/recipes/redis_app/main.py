from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic_settings import BaseSettings
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError

from fastapi_lifespan_deps import Depends, LifespanFastAPI, add_health_routes


class Settings(BaseSettings):
    redis_url: str = "redis://localhost:6379/0"


async def get_redis(
    settings: Annotated[Settings, Depends(scope="lifespan")],
) -> AsyncIterator[Redis]:
    async with Redis.from_url(
        settings.redis_url,
        decode_responses=True,
        max_connections=50,
        socket_connect_timeout=3,
        socket_timeout=3,
        retry=Retry(NoBackoff(), retries=1),
    ) as redis:
        await redis.ping()
        yield redis


async def ping(redis: Redis) -> None:
    await redis.ping()


RedisDep = Annotated[Redis, Depends(get_redis, scope="lifespan", health=ping)]

app = LifespanFastAPI()
add_health_routes(app)


@app.exception_handler(ConnectionError)
@app.exception_handler(TimeoutError)
async def tell_of_a_failure(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "try again later"}, 503, {"Retry-After": "1"})


@app.post("/visits/{page}")
async def count_visit(page: str, redis: RedisDep) -> int:
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.incr(f"visits:{page}")
        pipeline.expire(f"visits:{page}", 86_400)
        visits, _ = await pipeline.execute()
    return int(visits)
