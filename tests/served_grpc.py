"""docs_src/grpc in a process of its own, with a model that waits for what is written to a pipe."""

import asyncio
import os
from pathlib import Path

from docs_src.grpc.batching import Model, load_model
from docs_src.grpc.server import main
from docs_src.grpc.service import container


class Waiting(Model):
    def classify(self, texts: list[str]) -> list[str]:
        print("classifying", flush=True)
        answer = Path(os.environ["PIPE"]).read_text()
        return [answer] * len(texts)


def load_waiting() -> Waiting:
    return Waiting()


if __name__ == "__main__":
    container.dependency_overrides[load_model] = load_waiting
    asyncio.run(main())
