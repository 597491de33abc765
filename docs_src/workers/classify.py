from collections.abc import AsyncIterator

from .models import ModelDep


async def texts() -> AsyncIterator[str]:
    for text in ("so good", "so so"):
        yield text


def classify(text: str, model: ModelDep) -> None:
    print(f"{text}: {model.classify(text)}")
