"""What a request may ask for: request-scoped dependencies that use the lifespan's settings."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError

from fastapi_lifespan_deps import Depends

from .embedding import Input
from .schemas import CompatibleRequest, EmbeddingsRequest, SimilarityRequest
from .settings import Settings, SettingsDep

# The form of FastAPI's own validation errors, without `input`: it would send back the very text
# that is too long.
Problem = dict[str, Any]


async def check_embeddings(body: EmbeddingsRequest, settings: SettingsDep) -> EmbeddingsRequest:
    """Answer 422 when the texts are over the limits."""
    _refuse(*_problems_of_list("texts", body.texts, settings))
    return body


async def check_similarity(body: SimilarityRequest, settings: SettingsDep) -> SimilarityRequest:
    """Answer 422 when the query or the candidates are over the limits."""
    _refuse(
        *_problems_of_text(("query",), body.query, settings),
        *_problems_of_list("candidates", body.candidates, settings),
    )
    return body


async def check_compatible(body: CompatibleRequest, settings: SettingsDep) -> CompatibleRequest:
    """Answer 400 when the input is over the limits, or has nothing in it, as OpenAI does."""
    if body.is_list:
        problems = _problems_of_list("input", body.inputs, settings)
    else:
        problems = _problems_of_input(("input",), body.inputs[0], settings)
    _refuse(*problems, *_problems_of_nothing(body))
    return body


def _refuse(*problems: Problem) -> None:
    if problems:
        raise RequestValidationError(problems)


def _problems_of_list(field: str, texts: Sequence[Input], settings: Settings) -> Iterator[Problem]:
    count, limit = len(texts), settings.max_texts
    if count == 0:
        yield {
            "type": "too_short",
            "loc": ("body", field),
            "msg": "Send at least 1 text: the list is empty.",
            "ctx": {"min_length": 1, "actual_length": 0},
        }
    elif count > limit:
        yield {
            "type": "too_long",
            "loc": ("body", field),
            "msg": f"Send at most {limit:,} texts: the list has {count:,}.",
            "ctx": {"max_length": limit, "actual_length": count},
        }
    else:
        for index, text in enumerate(texts):
            yield from _problems_of_input((field, index), text, settings)


def _problems_of_nothing(body: CompatibleRequest) -> Iterator[Problem]:
    if not all(body.inputs):
        yield {
            "type": "too_short",
            "loc": ("body", "input"),
            "msg": "Send no text and no list of token ids that is empty.",
        }


def _problems_of_input(
    place: tuple[str | int, ...], given: Input, settings: Settings
) -> Iterator[Problem]:
    if isinstance(given, str):
        yield from _problems_of_text(place, given, settings)
    # What the model doesn't read is cut off later, but it may not be without end.
    elif (length := len(given)) > (limit := settings.max_text_length):
        yield {
            "type": "too_long",
            "loc": ("body", *place),
            "msg": f"Send at most {limit:,} token ids for a text: this list has {length:,}.",
            "ctx": {"max_length": limit, "actual_length": length},
        }


def _problems_of_text(
    place: tuple[str | int, ...], text: str, settings: Settings
) -> Iterator[Problem]:
    # JSON may hold half of a surrogate pair, which is no letter. No tokenizer takes it.
    try:
        text.encode()
    except UnicodeEncodeError:
        yield {
            "type": "string_unicode",
            "loc": ("body", *place),
            "msg": "Send valid Unicode: this text has half of a surrogate pair.",
        }
    length, limit = len(text), settings.max_text_length
    if length > limit:
        yield {
            "type": "string_too_long",
            "loc": ("body", *place),
            "msg": f"Send at most {limit:,} characters in a text: this one has {length:,}.",
            "ctx": {"max_length": limit, "actual_length": length},
        }


CompatibleBody = Annotated[CompatibleRequest, Depends(check_compatible)]
EmbeddingsBody = Annotated[EmbeddingsRequest, Depends(check_embeddings)]
SimilarityBody = Annotated[SimilarityRequest, Depends(check_similarity)]
