"""The model, for servers that leave it to their users how to call it."""

import os

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256


class Embedder:
    """Embeds a batch in one forward pass, which takes all cores: one thread at a time calls it."""

    def __init__(self) -> None:
        directory = os.environ["PEER_MODEL"]
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()

    def embed(self, texts: list[str]) -> np.ndarray:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            return torch.nn.functional.normalize(mean).numpy()
