"""Try the application without its model: what is in the place of the model loads at once."""

from types import SimpleNamespace
from typing import Any

import torch
from fastapi.testclient import TestClient

from .embedding import get_model
from .main import app


class CountWords(torch.nn.Module):
    """The embedding of a text is its bag of word pieces."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, **inputs: Any) -> SimpleNamespace:
        input_ids = inputs["input_ids"]
        special = input_ids < 1000  # Padding and the marks around a text.
        counted = torch.nn.functional.one_hot(input_ids.masked_fill(special, 0) % 1_009, 1_009)
        counted[..., 0] = 0
        return SimpleNamespace(last_hidden_state=counted.float())


def test_the_best_comes_first() -> None:
    app.dependency_overrides[get_model] = CountWords
    try:
        with TestClient(app) as client:
            body = {"query": "red car", "candidates": ["blue sky", "red house", "red car"]}
            results = client.post("/similarity", json=body).json()["results"]
    finally:
        app.dependency_overrides.clear()
    assert [result["text"] for result in results] == ["red car", "red house", "blue sky"]
