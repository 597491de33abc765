"""The trial of a model that has been loaded: it embeds what is hardest before it serves."""

import traceback
from collections.abc import Iterator

import torch

from .embedding import Encoder
from .errors import ModelLoadError
from .files import ModelFiles

# Of the length of an embedding, which is computed in float32.
TOLERANCE = 1e-3


# --8<-- [start:trial]
def try_model(encoder: Encoder, files: ModelFiles, batch_size: int) -> int:
    """Embed batches as large as they get, with every special token and the last word piece in them.

    Returns how many numbers an embedding has.

    Raises:
        ModelLoadError: a pass failed, or what came out is no embedding.
    """
    for batch in hardest_batches(encoder, batch_size):
        try:
            rows = encoder.encode(batch)
        except Exception as error:
            # They hold what was on the device, as long as anybody holds the error.
            traceback.clear_frames(error.__traceback__)
            said = f"{type(error).__name__}: {error}"
            raise _refusal(files, batch, "it failed", said) from error
        if not torch.isfinite(rows).all():
            raise _refusal(files, batch, "the embeddings have NaN or infinity in them")
        lengths = rows.norm(dim=1)
        if ((lengths - 1).abs() > TOLERANCE).any():
            shortest = f"one of its embeddings has the length {lengths.min():.3g}, not 1"
            raise _refusal(files, batch, shortest)
    return rows.shape[1]


def hardest_batches(encoder: Encoder, batch_size: int) -> Iterator[list[list[int]]]:
    """Texts of `max_tokens` word pieces each, made of one word and all that is special."""
    tokenizer = encoder.tokenizer
    [word, *_] = tokenizer.encode("warm", add_special_tokens=False)
    special = [*tokenizer.all_special_ids, max(tokenizer.get_vocab().values())]
    room = max(1, encoder.max_tokens - 1)
    pieces = [special[start : start + room] for start in range(0, len(special), room)]
    texts = [[word, *piece, *[word] * (room - len(piece))] for piece in pieces]
    texts += [texts[0]] * (-len(texts) % batch_size)
    for start in range(0, len(texts), batch_size):
        yield texts[start : start + batch_size]


# --8<-- [end:trial]


def _refusal(
    files: ModelFiles, batch: list[list[int]], problem: str, said: str | None = None
) -> ModelLoadError:
    tried = f"{len(batch)} texts of {len(batch[0])} word pieces"
    where: dict[str, object] = {"directory": files.directory}
    advice = "Serve another model: the numbers in this one's weights don't work."
    if said is not None:
        where["said"] = said
        advice = (
            "Serve another model; or, if the memory didn't suffice, set"
            " MODEL_SERVING_MAX_BATCH_TOKENS to less."
        )
    return ModelLoadError(
        f"The model in {str(files.directory)!r} was tried with {tried}",
        problem,
        where=where,
        advice=advice,
    )
