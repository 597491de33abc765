"""Bodies and answers. How much a body may hold is a setting: see limits.py."""

from pydantic import BaseModel


class EmbeddingsRequest(BaseModel):
    texts: list[str]


class EmbeddingsResponse(BaseModel):
    model: str
    embeddings: list[list[float]]


class SimilarityRequest(BaseModel):
    query: str
    candidates: list[str]


class SimilarityResult(BaseModel):
    index: int
    text: str
    score: float


class SimilarityResponse(BaseModel):
    model: str
    results: list[SimilarityResult]


class Liveness(BaseModel):
    status: str = "alive"


class Readiness(BaseModel):
    status: str = "ready"
    model: str
    device: str
