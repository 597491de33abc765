"""Serve the example on Ray Serve: several replicas, each with a run, and a model, of its own."""

import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, SecretStr
from ray import serve

from fastapi_lifespan_deps import LifespanFastAPI

from .model_serving.settings import Settings


class Arguments(BaseModel):
    """What `serve run docs_src.ray_serve:build` takes, as `name=value`."""

    model_config = ConfigDict(extra="forbid")

    num_replicas: PositiveInt = 2
    # Of each replica. torch computes in as many threads.
    num_cpus: Annotated[float, Field(ge=1)] = 1
    num_gpus: NonNegativeFloat = 0
    # The model, on every node, and the checksum of its model.safetensors: see settings.py.
    directory: Path | None = None
    sha256: str | None = None


def make_app() -> LifespanFastAPI:
    """Make the application. Each replica calls this, so that nothing of it is pickled."""
    # Here, so that only replicas need torch.
    from .model_serving.files import ModelChoice, check_model
    from .model_serving.main import create_app

    # What the application logs goes where Ray Serve logs, with the name of the replica.
    logger = logging.getLogger(f"{__package__}.model_serving")
    logger.setLevel(logging.INFO)
    logger.parent = logging.getLogger("ray.serve")

    # The application checks it, too. But of a startup that failed, `serve status` says only that
    # it failed. Of what is raised here, it says what.
    check_model(ModelChoice.of_settings(Settings()))
    return create_app()


class Embeddings:
    """A replica. Ray Serve runs the lifespan of what `make_app` returns as long as it lives."""

    app: LifespanFastAPI  # Set by Ray Serve.

    async def check_health(self) -> None:
        """Raise while no model serves. Ray replaces a replica for which this fails three times.

        Asynchronous, because Ray calls what isn't in a thread, where there is no container.
        """
        from .model_serving.batching import get_batcher

        self.app.lifespan_container[get_batcher]


def written(value: object) -> str:
    """A setting, as an environment variable has it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()  # Written as it is, it would be asterisks.
    return "" if value is None else str(value)


def configure(arguments: Arguments) -> serve.Deployment:
    """Make the deployment. The arguments come before the settings of the environment."""
    settings = Settings()
    if settings.admin_token is not None:
        raise ValueError(
            "MODEL_SERVING_ADMIN_TOKEN is set, but POST /admin/model reaches one replica, and the"
            " others keep the old model. Unset it. To swap the model, deploy the new one."
        )
    if arguments.directory is not None or arguments.sha256 is not None:
        settings.model_dir, settings.model_sha256 = arguments.directory, arguments.sha256
    if settings.model_dir is not None:
        # Replicas have another working directory.
        settings.model_dir = settings.model_dir.expanduser().absolute()
    if settings.device is None:
        # A GPU that was asked for has to be there. One that wasn't belongs to others.
        settings.device = "cuda" if arguments.num_gpus else "cpu"
    # All of them, so that the environment of a node changes nothing. Empty means unset.
    env_vars = {f"MODEL_SERVING_{name.upper()}": written(value) for name, value in settings}
    deployment: serve.Deployment = serve.deployment(
        num_replicas=arguments.num_replicas,
        ray_actor_options={
            "num_cpus": arguments.num_cpus,
            "num_gpus": arguments.num_gpus,
            "runtime_env": {"env_vars": env_vars},
        },
        # While a batch is computed the next one gathers.
        max_ongoing_requests=2 * settings.max_batch_size,
        # More than that wait in Ray's proxy, but not without end: it answers 503.
        max_queued_requests=settings.max_queue_size,
        # A model that doesn't load will not load the twentieth time either.
        max_constructor_retry_count=2,
        # Requests end, then the run. Whatever takes longer is killed.
        graceful_shutdown_timeout_s=settings.drain_timeout + 10,
    )(serve.ingress(make_app)(Embeddings))
    return deployment


def build(arguments: Arguments) -> serve.Application:
    """Make the application of Ray Serve: `serve run` calls it, or `serve.run(build(...))`."""
    return configure(arguments).bind()
