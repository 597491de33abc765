from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from fastapi_lifespan_deps import LifespanContainer

from .first_steps import PoolDep


def set_up_telemetry() -> None:
    tracer_provider = TracerProvider()
    # your exporter, in the place of this one
    tracer_provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider())  # with your readers


container = LifespanContainer()


@container.command
async def show_user(user_id: int, pool: PoolDep) -> None:
    print(await pool.fetch_user(user_id))


if __name__ == "__main__":
    set_up_telemetry()  # first: a container looks when it starts
    with trace.get_tracer(__name__).start_as_current_span("show user"):
        show_user(1)
