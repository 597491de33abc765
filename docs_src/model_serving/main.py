"""The application: the model is loaded at startup, shared by every request, freed at shutdown."""

from fastapi_lifespan_deps import LifespanFastAPI

from .embedding import EncoderDep
from .limits import EmbeddingsBody, SimilarityBody
from .schemas import (
    EmbeddingsResponse,
    Liveness,
    Readiness,
    SimilarityResponse,
    SimilarityResult,
)

app = LifespanFastAPI(title="Sentence embeddings")


@app.post("/embeddings")
async def create_embeddings(body: EmbeddingsBody, encoder: EncoderDep) -> EmbeddingsResponse:
    """Embed each text, in the order of the texts."""
    embeddings = await encoder.encode(body.texts)
    return EmbeddingsResponse(model=encoder.name, embeddings=embeddings.tolist())


@app.post("/similarity")
async def rank_by_similarity(body: SimilarityBody, encoder: EncoderDep) -> SimilarityResponse:
    """Rank the candidates by how close in meaning each is to the query, best first."""
    embeddings = await encoder.encode([body.query, *body.candidates])
    # The cosines: embeddings are of unit length.
    scores = (embeddings[1:] @ embeddings[0]).tolist()
    results = [
        SimilarityResult(index=index, text=text, score=score)
        for index, (text, score) in enumerate(zip(body.candidates, scores, strict=True))
    ]
    results.sort(key=lambda result: result.score, reverse=True)
    return SimilarityResponse(model=encoder.name, results=results)


@app.get("/livez")
async def livez() -> Liveness:
    """Say that the process lives, whatever the model does."""
    return Liveness()


@app.get("/readyz")
async def readyz(encoder: EncoderDep) -> Readiness:
    """Say that the model is loaded, and where."""
    return Readiness(model=encoder.name, device=str(encoder.device))
