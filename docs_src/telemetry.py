from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep

app = LifespanFastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)


provider = TracerProvider()  # with your exporters
FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
