from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

import grpc

from fastapi_lifespan_deps import Depends, LifespanContainer

from .batching import BatcherDep


class Ledger:
    """Stands for the table of how many texts each tenant has had classified."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()


LedgerDep = Annotated[Ledger, Depends(Ledger, scope="lifespan")]


async def get_tenant(context: grpc.aio.ServicerContext) -> str:
    metadata = dict(context.invocation_metadata())
    if "tenant" not in metadata:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Send your tenant.")
    return str(metadata["tenant"])


async def get_text(request: str, context: grpc.aio.ServicerContext) -> str:
    if len(request) > 10_000:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Send at most 10,000 characters.")
    return request.strip()


class Usage:
    texts = 0


async def get_usage(
    tenant: Annotated[str, Depends(get_tenant)], ledger: LedgerDep
) -> AsyncIterator[Usage]:
    usage = Usage()
    yield usage
    ledger.texts[tenant] += usage.texts


TextDep = Annotated[str, Depends(get_text)]
UsageDep = Annotated[Usage, Depends(get_usage)]

container = LifespanContainer()


class Classifier:
    @container.inject
    async def classify(
        self,
        request: str,
        context: grpc.aio.ServicerContext,
        usage: UsageDep,
        text: TextDep,
        batcher: BatcherDep,
    ) -> str:
        label = await batcher.classify(text)
        usage.texts += 1
        return label

    @container.inject
    async def classify_lines(
        self,
        request: str,
        context: grpc.aio.ServicerContext,
        usage: UsageDep,
        text: TextDep,
        batcher: BatcherDep,
    ) -> AsyncIterator[str]:
        for line in text.splitlines():
            yield await batcher.classify(line)
            usage.texts += 1


def handler_of(classifier: Classifier) -> grpc.GenericRpcHandler:
    """In the place of what protoc generates. Here messages are texts, which grpc encodes."""
    methods = {
        "Classify": grpc.unary_unary_rpc_method_handler(classifier.classify, bytes.decode),
        "ClassifyLines": grpc.unary_stream_rpc_method_handler(
            classifier.classify_lines, bytes.decode
        ),
    }
    return grpc.method_handlers_generic_handler("Classifier", methods)
