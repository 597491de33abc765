"""The same embeddings for the clients of OpenAI, in the form that they know."""

import base64
from collections.abc import Sequence

import torch
from fastapi import APIRouter, Request

from fastapi_lifespan_deps import Depends

from .api import embed_for
from .batching import Batcher, BatcherDep
from .embedding import Input
from .forms import PREFIX, Refused
from .keys import check_key
from .limits import CompatibleBody
from .schemas import (
    CompatibleEmbedding,
    CompatibleEmbeddings,
    CompatibleModel,
    CompatibleModels,
    Usage,
)

router = APIRouter(prefix=PREFIX, tags=["OpenAI"], dependencies=[Depends(check_key)])


# --8<-- [start:routes]
@router.post("/embeddings")
async def create_embeddings(
    body: CompatibleBody, batcher: BatcherDep, request: Request
) -> CompatibleEmbeddings:
    """Embed a text or several, each as it is or as the token ids of the model's tokenizer."""
    check_model(batcher, body.model)
    check_dimensions(batcher, body.dimensions)
    check_token_ids(batcher, body.inputs)
    embedded = await embed_for(request, batcher, body.inputs)
    write = as_base64 if body.encoding_format == "base64" else torch.Tensor.tolist
    return CompatibleEmbeddings(
        data=[
            CompatibleEmbedding(index=index, embedding=write(row))
            for index, row in enumerate(embedded.rows)
        ],
        model=batcher.files.name,
        version=batcher.files.version,
        usage=Usage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens),
    )


@router.get("/models")
async def list_models(batcher: BatcherDep) -> CompatibleModels:
    """The model that serves."""
    return CompatibleModels(data=[describe(batcher)])


@router.get("/models/{model:path}")
async def read_model(model: str, batcher: BatcherDep) -> CompatibleModel:
    """The same, if it has this name."""
    check_model(batcher, model)
    return describe(batcher)


# --8<-- [end:routes]


def describe(batcher: Batcher) -> CompatibleModel:
    files = batcher.files
    return CompatibleModel(id=files.name, version=files.version, created=batcher.started_at)


def check_model(batcher: Batcher, name: str) -> None:
    serving = batcher.files.name
    if name != serving:
        problem = f"There is no such model here. Ask for {serving!r}: GET {PREFIX}/models lists it."
        raise Refused(404, problem, param="model", code="model_not_found")


def check_dimensions(batcher: Batcher, wanted: int | None) -> None:
    if wanted not in (None, batcher.dimensions):
        problem = (
            f"The embeddings of {batcher.files.name!r} have {batcher.dimensions} dimensions, and"
            " can't be shortened. Leave `dimensions` out."
        )
        raise Refused(400, problem, param="dimensions")


def check_token_ids(batcher: Batcher, inputs: Sequence[Input]) -> None:
    size = batcher.encoder.vocabulary_size
    for given in inputs:
        if not isinstance(given, str) and not all(0 <= token_id < size for token_id in given):
            problem = f"The token ids of {batcher.files.name!r} are from 0 to {size - 1:,}."
            raise Refused(400, problem, param="input")


def as_base64(row: torch.Tensor) -> str:
    """As 32-bit floating-point numbers, the lowest byte first."""
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()
