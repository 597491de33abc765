"""Bodies and answers. How much a body may hold is a setting: see limits.py."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, StrictInt, Tag
from typing_extensions import TypeAliasType

# One error for a million of numbers, not a million of errors.
Texts: TypeAlias = Annotated[list[str], FailFast()]
TokenIds: TypeAlias = Annotated[list[StrictInt], FailFast()]
# The same by names of their own: `FailFast` can't be hashed, and so not be part of a union.
ManyTexts = TypeAliasType("ManyTexts", Texts)
ManyTokenIds = TypeAliasType("ManyTokenIds", TokenIds)
ManyLists = TypeAliasType("ManyLists", Annotated[list[TokenIds], FailFast()])


class EmbeddingsRequest(BaseModel):
    texts: Texts


class SimilarityRequest(BaseModel):
    query: str
    candidates: Texts


class Answer(BaseModel):
    model: str
    version: str
    batch_size: int
    """How many texts, of all requests, were in the largest batch that worked on this one."""


class EmbeddingsResponse(Answer):
    embeddings: list[list[float]]


class SimilarityResult(BaseModel):
    index: int
    text: str
    score: float


class SimilarityResponse(Answer):
    results: list[SimilarityResult]


def kind_of_input(given: Any) -> str | None:
    """What an input is meant to be: the first of a list says it, and what follows has to be so."""
    if isinstance(given, str):
        return "text"
    if not isinstance(given, list) or not given:
        return None
    kinds: dict[type, str] = {str: "texts", int: "token ids", list: "lists of token ids"}
    return kinds.get(type(given[0]))


class CompatibleRequest(BaseModel):
    """OpenAI's. What else its clients send, such as `user`, is ignored."""

    model: str
    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[ManyTexts, Tag("texts")]
        | Annotated[ManyTokenIds, Tag("token ids")]
        | Annotated[ManyLists, Tag("lists of token ids")],
        Discriminator(
            kind_of_input,
            custom_error_type="input",
            custom_error_message="Send a text, a list of texts, the token ids of a text, or a list"
            " of such lists, and nothing that is empty.",
        ),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None

    @property
    def is_list(self) -> bool:
        """Whether there may be several texts, each of which has its index."""
        return isinstance(self.input, list) and not isinstance(self.input[0], int)

    @property
    def inputs(self) -> list[str | list[int]]:
        given: Any = self.input
        return list(given) if self.is_list else [given]


class CompatibleEmbedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """In word pieces: those that the model has read."""

    prompt_tokens: int
    total_tokens: int


class CompatibleEmbeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[CompatibleEmbedding]
    model: str
    version: str
    """OpenAI has none. Its clients let it pass."""
    usage: Usage


class CompatibleModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Since when it serves, in seconds since 1970."""
    owned_by: Literal["model_serving"] = "model_serving"
    version: str


class CompatibleModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[CompatibleModel]


class SwapRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")  # A typo must not swap in another model.

    # Not a `Path`: that may have what can't be sent back in an answer.
    directory: str | None = Field(None, max_length=4_096)
    """On the server. Without one, the model that the settings say."""
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    """Of model.safetensors. Without one, the directory is trusted."""


class SwapResponse(BaseModel):
    model: str
    version: str


class Health(BaseModel):
    status: Literal["ready", "starting", "draining", "no model"]
    model: str | None = None
    version: str | None = None
    device: str | None = None
