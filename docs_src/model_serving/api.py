"""What clients come for."""

from collections.abc import Sequence

import anyio
from fastapi import APIRouter, Request

from fastapi_lifespan_deps import Depends

from .batching import Batcher, BatcherDep, Embedded
from .bodies import HungUp, deadline_of
from .embedding import Input
from .keys import check_key
from .limits import EmbeddingsBody, SimilarityBody
from .schemas import EmbeddingsResponse, SimilarityResponse, SimilarityResult

router = APIRouter(tags=["embeddings"], dependencies=[Depends(check_key)])


@router.post("/embeddings")
async def create_embeddings(
    body: EmbeddingsBody, batcher: BatcherDep, request: Request
) -> EmbeddingsResponse:
    """Embed each text, in the order of the texts."""
    embedded = await embed_for(request, batcher, body.texts)
    return EmbeddingsResponse(
        model=batcher.files.name,
        version=batcher.files.version,
        batch_size=embedded.batch_size,
        embeddings=embedded.rows.tolist(),
    )


@router.post("/similarity")
async def rank_by_similarity(
    body: SimilarityBody, batcher: BatcherDep, request: Request
) -> SimilarityResponse:
    """Rank the candidates by how close in meaning each is to the query, best first."""
    embedded = await embed_for(request, batcher, [body.query, *body.candidates])
    # The cosines: embeddings are of unit length.
    scores = (embedded.rows[1:] @ embedded.rows[0]).tolist()
    results = [
        SimilarityResult(index=index, text=text, score=score)
        for index, (text, score) in enumerate(zip(body.candidates, scores, strict=True))
    ]
    results.sort(key=lambda result: result.score, reverse=True)
    return SimilarityResponse(
        model=batcher.files.name,
        version=batcher.files.version,
        batch_size=embedded.batch_size,
        results=results,
    )


async def embed_for(request: Request, batcher: Batcher, texts: Sequence[Input]) -> Embedded:
    """Embed texts in time, unless the client hangs up: then they leave the queue."""
    outcome: Embedded | Exception = HungUp()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            outcome = await batcher.embed(texts, deadline_of(request))
        except Exception as error:  # A task group would wrap it.
            outcome = error
        tasks.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        try:
            raise outcome
        finally:
            del outcome  # It would hold its traceback, which holds this.
    return outcome
