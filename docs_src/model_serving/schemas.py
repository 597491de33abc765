"""Bodies and answers. How much a body may hold is a setting: see limits.py."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, FailFast, Field

# One error for a million of numbers, not a million of errors.
Texts: TypeAlias = Annotated[list[str], FailFast()]


class EmbeddingsRequest(BaseModel):
    texts: Texts


class SimilarityRequest(BaseModel):
    query: str
    candidates: Texts


class Answer(BaseModel):
    model: str
    version: str
    batch_size: int
    """How many texts, of all requests, were in the largest batch that worked on this one."""


class EmbeddingsResponse(Answer):
    embeddings: list[list[float]]


class SimilarityResult(BaseModel):
    index: int
    text: str
    score: float


class SimilarityResponse(Answer):
    results: list[SimilarityResult]


class SwapRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")  # A typo must not swap in another model.

    # Not a `Path`: that may have what can't be sent back in an answer.
    directory: str | None = Field(None, max_length=4_096)
    """On the server. Without one, the model that the settings say."""
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    """Of model.safetensors. Without one, the directory is trusted."""


class SwapResponse(BaseModel):
    model: str
    version: str


class Health(BaseModel):
    status: Literal["ready", "starting", "draining", "no model"]
    model: str | None = None
    version: str | None = None
    device: str | None = None
