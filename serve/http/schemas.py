"""The bodies that the API takes and gives, as the OpenAI protocol writes them. Knows nothing about what they mean.

Requests are strict about types and take whatever keys a client adds; replies are the `openai` package's own shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openai.types import CreateEmbeddingResponse, Embedding
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES = 200
MAX_TEXT = 16_000
"""Longest text of one message [characters]."""
MAX_IMAGES = 16
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_INPUTS = 64
"""Most texts or pictures of one embedding or classification request."""
MAX_SIDECAR = 2**20
"""Longest side-car [characters]."""


class Wire(BaseModel):
    """Base of the shapes on the wire: no type is guessed, keys that other servers take are let pass."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_integers(cls, tree: Any) -> Any:
        """JSON knows one kind of number: 4.0 is 4, as its schemas say too."""
        if not isinstance(tree, dict):
            return tree
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in tree.items()}


class Sidecar(Wire):
    """The text file that lies beside a picture on the instrument's disk."""

    name: Annotated[str, Field(min_length=1, max_length=255, examples=["wafer.tif.txt", "wafer.hdr"])]
    text: Annotated[str, Field(max_length=MAX_SIDECAR)]


class PictureExtension(Wire):
    """What belongs to one picture."""

    sidecar: Sidecar | None = None


class TextPart(Wire):
    type: Literal["text", "input_text", "refusal"]
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    refusal: str | None = None


class ImageUrl(Wire):
    url: Annotated[str, Field(examples=["data:image/tiff;base64,SUkqAA..."])]


class PicturePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl | str
    extension: Annotated[PictureExtension, Field(alias="x-micrograph")] = PictureExtension()

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


Part = Annotated[TextPart | PicturePart, Field(discriminator="type")]


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content.strip()
        texts = (part.text or "" for part in self.content or () if isinstance(part, TextPart))
        return "\n".join(text.strip() for text in texts if text.strip())

    @property
    def pictures(self) -> list[PicturePart]:
        return [part for part in self.content or () if isinstance(part, PicturePart)]


class StreamOptions(Wire):
    include_usage: bool | None = None


class JsonSchema(Wire):
    name: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class RequestExtension(Wire):
    """What micrographs need and the protocol has no word for."""

    description: Annotated[str, Field(max_length=2000)] | None = None
    pixel_size_nm: Annotated[float, Field(ge=1e-4, le=1e7)] | None = None


Limit = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class ChatRequest(Wire):
    """`POST /v1/chat/completions`. What is named below and has no effect here is let pass and told as a warning."""

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    logit_bias: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    extension: Annotated[RequestExtension, Field(alias="x-micrograph")] = RequestExtension()

    @field_validator("logit_bias", "tools", "functions", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return value or None


class EmbeddedPicture(Wire):
    """A picture to embed, as a data: URI."""

    image: str


class EmbeddingRequest(Wire):
    """`POST /v1/embeddings`: texts, and pictures as data: URIs or as `{"image": "data:..."}`."""

    model: Annotated[str, Field(max_length=200)]
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str | EmbeddedPicture], Field(min_length=1, max_length=MAX_INPUTS)]
        | EmbeddedPicture
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class ClassificationRequest(Wire):
    """`POST /v1/classifications`: pictures against labels, with a few example pictures of each where there are some."""

    model: Annotated[str, Field(max_length=200)]
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=100)]
    examples: dict[str, Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]] | None = None
    top: Annotated[int, Field(ge=1, le=100)] = 5


class Score(BaseModel):
    label: str
    probability: float


class Classification(BaseModel):
    """Scores of one picture; the verdict may be "unknown"."""

    object: Literal["classification"] = "classification"
    index: int
    scores: list[Score]
    verdict: str


class ClassificationReply(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Classification]


class ChatReply(ChatCompletion):
    """An OpenAI chat completion, and beside it what was read and measured."""

    extension: Annotated[dict[str, Any], Field(alias="x-micrograph")]


class EmbeddingVector(Embedding):
    """One vector; with `encoding_format: base64` little-endian float32 in base64."""

    embedding: list[float] | str  # type: ignore[assignment]  # the protocol's second form, which its own package lacks


class EmbeddingReply(CreateEmbeddingResponse):
    """An OpenAI list of embeddings."""

    data: list[EmbeddingVector]  # type: ignore[assignment]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """Every error of the API."""

    error: ErrorDetail
