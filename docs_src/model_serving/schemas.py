"""Bodies and answers. How much a body may hold is a setting: see limits.py."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class EmbeddingsRequest(BaseModel):
    texts: list[str]


class SimilarityRequest(BaseModel):
    query: str
    candidates: list[str]


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
    directory: Path | None = None
    """On the server. The bundled model, if there is none."""
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
