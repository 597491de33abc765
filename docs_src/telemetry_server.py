from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import read_user

tracer_provider = TracerProvider()  # with your exporters
meter_provider = MeterProvider()  # with your readers

app = LifespanFastAPI(
    telemetry={"tracer_provider": tracer_provider, "meter_provider": meter_provider}
)
app.get("/users/{user_id}")(read_user)
